"""Make every absmax an output, so that the runtime can look for NaN and infinity."""

from torch.fx import GraphModule

from sqcompile.ops.quantize import absmax
from sqcompile.passes.editing import calls, copy_graph, finish
from sqcompile.passes.printing import source_line


def expose_absmax(module: GraphModule) -> tuple[GraphModule, list[str]]:
    """(graph, descriptions): after this pass the graph also returns every sq.absmax, in order; a
    description gives the user's source line, the node that was measured, its module and role. A
    NaN or an infinity in a quantised tensor shows in its absmax."""
    graph = copy_graph(module)
    nodes = calls(graph, absmax)
    output = graph.graph.output_node()
    output.args = ((*output.args[0], *nodes),)  # type: ignore[misc]
    described = []
    for node in nodes:
        place = " ".join(
            part for part in (node.meta.get("role", ""), node.meta.get("module", "")) if part
        )
        described.append(f"{source_line(node)}\n  graph node {node.args[0]} ({place})".strip())
    return finish(graph), described
