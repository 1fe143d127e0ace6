"""Make every absmax an output, so that the runtime can look for NaN and infinity."""

from torch.fx import GraphModule, Node

from sqcompile.ops import norm_fused
from sqcompile.ops.quantize import absmax
from sqcompile.passes.editing import Editor, calls, copy_graph, finish, is_call, target_of
from sqcompile.passes.printing import source_line

FUSED = {
    target_of(norm_fused.l1_batch_norm_relu_quantize): 1,
    target_of(norm_fused.quantize_l1_layer_norm): 3,
}
"""Ops that measure what they quantise, and which of their outputs is the absmax."""


def expose_absmax(module: GraphModule) -> tuple[GraphModule, list[str]]:
    """(graph, descriptions): after this pass the graph also returns every absmax, in order; a
    description gives the user's source line, the node that was measured, its module and role. A
    NaN or an infinity in a quantised tensor shows in its absmax."""
    graph = copy_graph(module)
    editor = Editor(graph)
    nodes, described = [], []
    for node in calls(graph, absmax, *FUSED):
        measured = node.args[0] if is_call(node, absmax) else node
        exposed = node if is_call(node, absmax) else _absmax_of(editor, node)
        place = " ".join(
            part for part in (exposed.meta.get("role", ""), exposed.meta.get("module", "")) if part
        )
        nodes.append(exposed)
        described.append(f"{source_line(exposed)}\n  graph node {measured} ({place})".strip())
    output = graph.graph.output_node()
    output.args = ((*output.args[0], *nodes),)  # type: ignore[misc]
    return finish(graph), described


def _absmax_of(editor: Editor, fused: Node) -> Node:
    """The absmax among the outputs of a fused op."""
    index = FUSED[fused.target]
    for item in fused.users:
        if item.args[1] == index:
            return item
    with editor.after(fused):
        return editor.item(fused, index)
