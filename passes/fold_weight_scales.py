"""Move the scale of a weight, or of a softmax, off a reduced axis, into the gradient."""

import torch
from torch.fx import GraphModule, Node

from sqcompile.ops.quantize import absmax, quant_scale
from sqcompile.passes.assign_precision import ProductSpec, folded
from sqcompile.passes.contraction import FLOAT_PRODUCTS, contraction
from sqcompile.passes.editing import Editor, calls, copy_graph, finish, shape
from sqcompile.passes.quantize_softmax import integers_of

aten = torch.ops.aten


def fold_weight_scales(module: GraphModule) -> GraphModule:
    """After this pass no scale lies on a reduced axis: where a weight's per-channel scale, or a
    softmax's per row, would, the gradient is multiplied by it before it is quantised, and the
    operand is marked folded, so that the product takes its bare integers."""
    graph = copy_graph(module)
    editor = Editor(graph)
    for node in calls(graph, *FLOAT_PRODUCTS):
        spec: ProductSpec = node.meta["sq"]
        weight, reduced = spec.operands[1], contraction(node, 1).inner
        if spec.role == "fprop" or not set(weight.axes) & set(reduced):
            continue
        with editor.before(node):
            g, w = node.args[:2]
            assert isinstance(g, Node) and isinstance(w, Node)
            ready = integers_of(w)
            if ready is not None:
                scale = ready[1]
            else:
                scale = weight_scale(editor, w, weight.axes, weight.bits, node)
            channel = contraction(node, 0).inner[0]
            layout = [1] * len(shape(g))
            for axis in (channel, *_batch(node, weight.axes)):
                layout[axis] = shape(g)[axis]
            row = editor.call(aten.view.default, scale, layout, like=node)
            node.update_arg(0, editor.call(aten.mul.Tensor, g, row, like=node))
        node.meta["sq"] = folded(spec, 1)
    return finish(graph)


def _batch(node: Node, axes: tuple[int, ...]) -> list[int]:
    """The batch axis of a batched product, where each batch's weight has scales of its own."""
    return [result for axis, result in contraction(node, 1).outer if axis in axes]


def weight_scale(editor: Editor, w: Node, axes: tuple[int, ...], bits: int, like: Node) -> Node:
    """The scale of a weight quantised over all axes but `axes`, kept with size-1 axes."""
    reduced = [axis for axis in range(len(shape(w))) if axis not in axes]
    r = editor.call(absmax, w, None, reduced, like=like)
    return editor.call(quant_scale, r, bits, True, 1, like=like)
