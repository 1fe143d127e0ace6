"""Make every absmax an output, so that the runtime can look for NaN and infinity."""

import operator

from torch.fx import GraphModule, Node

from sqcompile.ops.quantize import absmax, shift_quantize
from sqcompile.passes.editing import Editor, calls, copy_graph, finish, is_call
from sqcompile.passes.printing import source_line

_R = 4
"""The output of shift_quantize that is its absmax."""


def expose_absmax(module: GraphModule) -> tuple[GraphModule, list[str]]:
    """(graph, descriptions): after this pass the graph also returns every sq.absmax, and that of
    every sq.shift_quantize, in order; a description gives the user's source line, the node that
    was measured, its module and role. A NaN or an infinity in a quantised tensor shows in its
    absmax."""
    graph = copy_graph(module)
    editor = Editor(graph)
    nodes = calls(graph, absmax, shift_quantize)
    measured = [_absmax_of(editor, node) for node in nodes]
    output = graph.graph.output_node()
    output.args = ((*output.args[0], *measured),)  # type: ignore[misc]
    described = []
    for node in nodes:
        place = " ".join(
            part for part in (node.meta.get("role", ""), node.meta.get("module", "")) if part
        )
        described.append(f"{source_line(node)}\n  graph node {node.args[0]} ({place})".strip())
    return finish(graph), described


def _absmax_of(editor: Editor, node: Node) -> Node:
    if not is_call(node, shift_quantize):
        return node
    for user in node.users:
        if user.target is operator.getitem and user.args[1] == _R:
            return user
    with editor.after(node):
        return editor.item(node, _R)
