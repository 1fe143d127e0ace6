"""Make every absmax an output, so that the runtime can look for NaN and infinity."""

import operator

from torch.fx import GraphModule, Node

from sqcompile.ops.norm_fused import (
    l1_batch_norm_relu_quantize,
    quantize_l1_layer_norm,
    quantize_l1_layer_norm_backward,
)
from sqcompile.ops.norm_residual import l1_batch_norm_add_relu
from sqcompile.ops.product import shift_matmul_dequantize_absmax
from sqcompile.ops.quantize import absmax, quantize_rows, shift_quantize
from sqcompile.passes.editing import Editor, calls, copy_graph, finish
from sqcompile.passes.printing import source_line

_PLACES = {
    absmax.target: None,
    shift_quantize.target: 4,
    quantize_rows.target: 2,
    shift_matmul_dequantize_absmax.target: 1,
    l1_batch_norm_relu_quantize.target: 1,
    l1_batch_norm_add_relu.target: 1,
    quantize_l1_layer_norm.target: 3,
    quantize_l1_layer_norm_backward.target: 1,
}
"""The output of an op that is an absmax; None where it is the only one."""


def expose_absmax(module: GraphModule) -> tuple[GraphModule, list[str]]:
    """(graph, descriptions): after this pass the graph also returns every sq.absmax, and those
    of ops that measure one themselves, in order; a description gives the user's source line, the
    node that was measured, its module and role. A NaN or an infinity in a quantised tensor shows
    in its absmax."""
    graph = copy_graph(module)
    editor = Editor(graph)
    nodes = calls(graph, *_PLACES)
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
    place = _PLACES[node.target]  # type: ignore[index]
    if place is None:
        return node
    for user in node.users:
        if user.target is operator.getitem and user.args[1] == place:
            return user
    with editor.after(node):
        return editor.item(node, place)
