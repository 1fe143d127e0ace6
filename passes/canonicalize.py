"""Bring a joint graph to the few forms that later passes know."""

from math import prod

import torch
from torch.fx import GraphModule, Node

from sqcompile.ops.product_float import conv, conv_input_grad, conv_weight_grad, matmul
from sqcompile.ops.reduce import ordered_sum
from sqcompile.passes.canonical_forms import FORMS
from sqcompile.passes.canonical_functions import FUNCTIONS
from sqcompile.passes.canonical_losses import LOSSES
from sqcompile.passes.canonical_pooling import POOLING
from sqcompile.passes.canonical_shapes import SHAPES
from sqcompile.passes.channels_last import permuted_first, permuted_last
from sqcompile.passes.editing import (
    Editor,
    arguments,
    finish,
    is_call,
    replace,
    rewrite_each,
    shape,
    tainted,
    value,
)
from sqcompile.passes.join_paddings import join_paddings

aten = torch.ops.aten


def canonicalize(module: GraphModule) -> GraphModule:
    """After this pass every product is sq.matmul, sq.conv, sq.conv_input_grad or
    sq.conv_weight_grad on root tensors (no alias, no transposed view), the gradient first in a
    backward product; convolutions and pooling read and give images channels last, with permutes
    around them; convolution_backward is apart; every float sum is sq.ordered_sum; every
    ReLU-like backward is a mask of forward values times the gradient; pooling is ours; parts of
    tensors are slices, what is read by number is sq.take, and gradients of all parts of a tensor
    are a concatenation.
    What has no rule here stays as it is and is reported before lowering if no target runs it.
    """
    graph = rewrite_each(module, dict.fromkeys(_ALIASES, _drop))
    graph = rewrite_each(graph, _REWRITES)
    return join_paddings(_gradients_first(graph))


_ALIASES = (
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
    aten.lift_fresh.default,
)


def _drop(editor: Editor, node: Node) -> None:
    source = node.args[0]
    assert isinstance(source, Node)
    replace(node, source)


def _root(node: Node) -> tuple[Node, bool]:
    """The tensor behind transposes of the last two axes, and whether they swap them."""
    swapped = False
    while isinstance(node.args[0] if node.args else None, Node) and _swaps_last_axes(node):
        swapped = not swapped
        node = node.args[0]  # type: ignore[assignment]
    return node, swapped


def _swaps_last_axes(node: Node) -> bool:
    rank = value(node).dim() if isinstance(node.meta.get("val"), torch.Tensor) else 0
    if is_call(node, aten.t.default):
        return rank == 2
    if is_call(node, aten.transpose.int):
        return rank in (2, 3) and {int(a) % rank for a in node.args[1:3]} == {rank - 2, rank - 1}  # type: ignore[arg-type]
    if is_call(node, aten.permute.default):
        axes = [int(a) % rank for a in node.args[1]]  # type: ignore[union-attr, arg-type]
        return axes == [*range(rank - 2), rank - 1, rank - 2]
    return False


def _matmul(editor: Editor, node: Node, a: Node, b: Node, bias: Node | None) -> None:
    (left, transpose_a), (right, transpose_b) = _root(a), _root(b)
    replace(node, editor.call(matmul, left, right, bias, transpose_a, transpose_b, like=node))


def _mm(editor: Editor, node: Node) -> None:
    a, b = node.args
    assert isinstance(a, Node) and isinstance(b, Node)
    _matmul(editor, node, a, b, None)


def _addmm(editor: Editor, node: Node) -> None:
    given = arguments(node)
    bias, a, b = given["self"], given["mat1"], given["mat2"]
    if given["alpha"] != 1 or given["beta"] != 1 or value(bias).dim() != 1:
        return
    _matmul(editor, node, a, b, bias)


def _transposed(editor: Editor, node: Node) -> None:
    """t(t(x)) is x; a lone t becomes a permute of its root."""
    root, swapped = _root(node)
    if not swapped:
        replace(node, root)
        return
    rank = value(root).dim()
    axes = [*range(rank - 2), rank - 1, rank - 2]
    replace(node, editor.call(aten.permute.default, root, axes, like=node))


def _t(editor: Editor, node: Node) -> None:
    if _swaps_last_axes(node):
        _transposed(editor, node)
    elif is_call(node, aten.permute.default):
        _permute(node)


def _permute(node: Node) -> None:
    """A permute that leaves every axis where it is goes."""
    source, axes = node.args
    assert isinstance(source, Node) and isinstance(axes, (list, tuple))
    if [int(axis) % len(axes) for axis in axes] == list(range(len(axes))):  # type: ignore[arg-type]
        replace(node, source)


def _convolution(editor: Editor, node: Node) -> None:
    given = arguments(node)
    if given["transposed"] or value(given["input"]).dim() != 4:
        return
    geometry = (given["stride"], given["padding"], given["dilation"], given["groups"])
    x = permuted_last(editor, given["input"], node)
    y = editor.call(conv, x, given["weight"], given["bias"], *geometry, like=node)
    replace(node, permuted_first(editor, y, node))


def _convolution_backward(editor: Editor, node: Node) -> None:
    given = arguments(node)
    g, x, w = given["grad_output"], given["input"], given["weight"]
    if given["transposed"] or value(x).dim() != 4:
        return
    geometry = (given["stride"], given["padding"], given["dilation"], given["groups"])
    g, x = permuted_last(editor, g, node), permuted_last(editor, x, node)

    def input_grad() -> Node:
        dx = editor.call(conv_input_grad, g, w, shape(x), *geometry, like=node)
        return permuted_first(editor, dx, node)

    def weight_grad() -> Node:
        return editor.call(conv_weight_grad, g, x, shape(w), *geometry, like=node)

    def bias_grad() -> Node:
        return editor.call(ordered_sum, g, [0, 1, 2], False, like=node)

    parts = (input_grad, weight_grad, bias_grad)
    for item in list(node.users):
        index = item.args[1]
        assert isinstance(index, int)
        replace(item, parts[index]())


def _sum(editor: Editor, node: Node) -> None:
    """A float sum; a count of truths that only divides, which float32 holds, is one too."""
    x, axes, keepdim = _reduction(node)
    divides = [is_call(user, aten.div.Tensor) and user.args[0] is not node for user in node.users]
    if value(x).dtype == torch.bool and all(divides) and value(x).numel() <= 2**24:
        x = editor.call(aten.mul.Tensor, x, 1.0, like=node)
    if value(x).dtype == torch.float32:
        replace(node, editor.call(ordered_sum, x, axes, keepdim, like=node))


def _mean(editor: Editor, node: Node) -> None:
    x, axes, keepdim = _reduction(node)
    if value(x).dtype != torch.float32:
        return
    total = editor.call(ordered_sum, x, axes, keepdim, like=node)
    count = float(prod(shape(x)[axis] for axis in axes))
    replace(node, editor.call(aten.div.Tensor, total, count, like=node))


def _reduction(node: Node) -> tuple[Node, list[int], bool]:
    given = arguments(node)
    x = given["self"]
    rank = value(x).dim()
    axes = sorted(axis % rank for axis in (given.get("dim") or range(rank)))
    return x, axes, bool(given.get("keepdim", False))


def _threshold_backward(editor: Editor, node: Node) -> None:
    given = arguments(node)
    with editor.after(given["self"]):
        mask = editor.call(
            aten.gt.Scalar, given["self"], given["threshold"], like=node, name="mask"
        )
    _masked(editor, node, mask, given["grad_output"])


def _hardtanh_backward(editor: Editor, node: Node) -> None:
    given = arguments(node)
    with editor.after(given["self"]):
        above = editor.call(aten.gt.Scalar, given["self"], given["min_val"], like=node)
        below = editor.call(aten.lt.Scalar, given["self"], given["max_val"], like=node)
        mask = editor.call(aten.logical_and.default, above, below, like=node, name="mask")
    _masked(editor, node, mask, given["grad_output"])


def _masked(editor: Editor, node: Node, mask: Node, g: Node) -> None:
    replace(node, editor.call(aten.where.ScalarOther, mask, g, 0.0, like=node))


def _scaled_sum(editor: Editor, node: Node) -> None:
    """add or sub with a factor: the factor's product gets a rounding of its own."""
    given = arguments(node)
    if given["alpha"] == 1:
        return
    other = editor.call(aten.mul.Tensor, given["other"], given["alpha"], like=node)
    replace(node, editor.call(node.target, given["self"], other, like=node))


def _copy(editor: Editor, node: Node) -> None:
    """A buffer's new value is the value itself."""
    given = arguments(node)
    old, new = value(given["self"]), value(given["src"])
    if (old.shape, old.dtype) == (new.shape, new.dtype):
        replace(node, given["src"])


def _expand(editor: Editor, node: Node) -> None:
    """An expansion to the shape that is there goes."""
    source = node.args[0]
    assert isinstance(source, Node)
    if shape(source) == shape(node):
        replace(node, source)


def _view(editor: Editor, node: Node) -> None:
    """Views name their shape in full; one that changes nothing goes."""
    source = node.args[0]
    assert isinstance(source, Node)
    if shape(source) == shape(node):
        replace(node, source)
    elif value(source).is_contiguous():
        replace(node, editor.call(aten.view.default, source, shape(node), like=node))


_REWRITES = {
    **FORMS,
    **FUNCTIONS,
    **LOSSES,
    **POOLING,
    **SHAPES,
    aten.copy.default: _copy,
    aten.expand.default: _expand,
    aten.view.default: _view,
    aten.reshape.default: _view,
    aten._unsafe_view.default: _view,
    aten.mm.default: _mm,
    aten.bmm.default: _mm,
    aten.addmm.default: _addmm,
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
    aten.mean.default: _mean,
    aten.mean.dim: _mean,
    aten.threshold_backward.default: _threshold_backward,
    aten.hardtanh_backward.default: _hardtanh_backward,
    aten.add.Tensor: _scaled_sum,
    aten.sub.Tensor: _scaled_sum,
    aten.t.default: _t,
    aten.transpose.int: _t,
    aten.permute.default: _t,
}


def _gradients_first(module: GraphModule) -> GraphModule:
    """Turn a backward product whose gradient is the second operand: (a b)^T = b^T a^T."""
    backward = tainted(module)
    editor = Editor(module)
    for node in list(module.graph.nodes):
        if not is_call(node, matmul) or node not in backward or node.args[0] in backward:
            continue
        a, b, _, transpose_a, transpose_b = node.args
        with editor.before(node):
            turned = editor.call(matmul, b, a, None, not transpose_b, not transpose_a, like=node)
            rank = value(turned).dim()
            axes = [*range(rank - 2), rank - 1, rank - 2]
            back = editor.call(aten.permute.default, turned, axes, like=node)
        replace(node, back)
        backward |= {turned, back}  # the next product's gradient may be this one's result
    return finish(rewrite_each(module, {aten.permute.default: _t}))
