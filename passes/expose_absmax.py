"""Make every absmax an output, so that the runtime can look for NaN and infinity."""

import operator
from itertools import chain

from torch.fx import GraphModule, Node

from sqcompile.ops.norm_fused import (
    l1_batch_norm_relu_quantize,
    quantize_l1_layer_norm,
    quantize_l1_layer_norm_backward,
)
from sqcompile.ops.norm_gradient import l1_batch_norm_backward_quantize
from sqcompile.ops.norm_residual import l1_batch_norm_add_relu
from sqcompile.ops.product import shift_matmul_dequantize_absmax
from sqcompile.ops.quantize import absmax, quantize_rows, shift_quantize
from sqcompile.ops.quantize_pair import shift_quantize_pair
from sqcompile.passes.editing import Editor, calls, copy_graph, finish
from sqcompile.passes.printing import source_line

_PLACES: dict[object, tuple[int, ...]] = {
    absmax.target: (),
    shift_quantize.target: (4,),
    shift_quantize_pair.target: (4, 9),
    l1_batch_norm_backward_quantize.target: (4, 9),
    quantize_rows.target: (2,),
    shift_matmul_dequantize_absmax.target: (1,),
    l1_batch_norm_relu_quantize.target: (1,),
    l1_batch_norm_add_relu.target: (1,),
    quantize_l1_layer_norm.target: (3,),
    quantize_l1_layer_norm_backward.target: (1,),
}
"""The outputs of an op that are absmaxes; () where it has one output only."""


def expose_absmax(module: GraphModule) -> tuple[GraphModule, list[str]]:
    """(graph, descriptions): after this pass the graph also returns every sq.absmax, and those
    of ops that measure one themselves, in order; a description gives the user's source line, the
    node that was measured, its module and role. A NaN or an infinity in a quantised tensor shows
    in its absmax."""
    graph = copy_graph(module)
    editor = Editor(graph)
    nodes = calls(graph, *_PLACES)
    measured = [_absmaxes_of(editor, node) for node in nodes]
    output = graph.graph.output_node()
    output.args = ((*output.args[0], *chain(*measured)),)  # type: ignore[misc]
    described = []
    for node, found in zip(nodes, measured, strict=True):
        place = " ".join(
            part for part in (node.meta.get("role", ""), node.meta.get("module", "")) if part
        )
        text = f"{source_line(node)}\n  graph node {node.args[0]} ({place})".strip()
        described += [text] * len(found)
    return finish(graph), described


def _absmaxes_of(editor: Editor, node: Node) -> list[Node]:
    places = _PLACES[node.target]
    if not places:
        return [node]
    items = {user.args[1]: user for user in node.users if user.target is operator.getitem}
    with editor.after(node):
        return [items.get(place) or editor.item(node, place) for place in places]
