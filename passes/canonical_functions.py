"""Float functions, softmax and losses of classes in the forms of canonicalize: a table of rewrites.

What a formula here computes in several nodes, lowering joins in one kernel. Nodes that depend on
forward values alone but belong to a gradient carry meta["backward"], so that forward does not keep
their results.
"""

from math import prod
from typing import Any

import torch
from torch.fx import Node

from sqcompile.ops import activation, functions, loss, softmax
from sqcompile.ops.elementwise import sqrt
from sqcompile.ops.reduce import amax, ordered_sum
from sqcompile.ops.table import Op
from sqcompile.passes.canonical_forms import Rule
from sqcompile.passes.canonical_losses import MEAN, NONE
from sqcompile.passes.editing import Editor, arguments, replace, shape, value

aten = torch.ops.aten


def _is_float(node: Node) -> bool:
    return value(node).dtype == torch.float32


def _one(op: Op) -> Rule:
    """A function of one tensor."""

    def rule(editor: Editor, node: Node) -> None:
        if _is_float(node):
            replace(node, editor.call(op, arguments(node)["self"], like=node))

    return rule


def _gradient(op: Op, *names: str) -> Rule:
    """A call of `op` with the arguments called `names`, of tensors and options."""

    def rule(editor: Editor, node: Node) -> None:
        given = arguments(node)
        if _is_float(node):
            replace(node, editor.call(op, *(given[name] for name in names), like=node))

    return rule


def _gelu(editor: Editor, node: Node) -> None:
    given = arguments(node)
    if _is_float(node):
        approximate = given["approximate"] == "tanh"
        replace(node, editor.call(activation.gelu, given["self"], approximate, like=node))


def _gelu_backward(editor: Editor, node: Node) -> None:
    given = arguments(node)
    if _is_float(node):
        g, x, approximate = given["grad_output"], given["self"], given["approximate"] == "tanh"
        replace(node, editor.call(activation.gelu_backward, g, x, approximate, like=node))


def _curve(editor: Editor, node: Node) -> None:
    """ELU, and CELU, which is ELU of x / alpha."""
    given = arguments(node)
    alpha = float(given["alpha"])
    scales = [float(given.get("scale", 1.0)), float(given.get("input_scale", 1.0 / alpha))]
    if _is_float(node):
        replace(node, editor.call(activation.elu, given["self"], alpha, *scales, like=node))


def _curve_backward(editor: Editor, node: Node) -> None:
    given = arguments(node)
    numbers = [float(given[name]) for name in ("alpha", "scale", "input_scale")]
    g, of = given["grad_output"], given["self_or_result"]
    if _is_float(node):
        is_result = bool(given["is_result"])
        new = editor.call(activation.elu_backward, g, of, *numbers, is_result, like=node)
        replace(node, new)


def _sigmoid_backward(editor: Editor, node: Node) -> None:
    """g * ((1 - y) * y)."""
    given = arguments(node)
    g, y = given["grad_output"], given["output"]
    rest = _one_minus(editor, y, node)
    slope = editor.call(aten.mul.Tensor, rest, y, like=node, backward=True)
    replace(node, editor.call(aten.mul.Tensor, g, slope, like=node))


def _tanh_backward(editor: Editor, node: Node) -> None:
    """g * (1 - y * y)."""
    given = arguments(node)
    g, y = given["grad_output"], given["output"]
    square = editor.call(aten.mul.Tensor, y, y, like=node, backward=True)
    slope = _one_minus(editor, square, node)
    replace(node, editor.call(aten.mul.Tensor, g, slope, like=node))


def _one_minus(editor: Editor, y: Node, like: Node) -> Node:
    negative = editor.call(aten.neg.default, y, like=like, backward=True)
    return editor.call(aten.add.Tensor, negative, 1.0, like=like, backward=True)


def _hardsigmoid(editor: Editor, node: Node) -> None:
    """clamp(x + 3, 0, 6) / 6."""
    raised = editor.call(aten.add.Tensor, arguments(node)["self"], 3.0, like=node)
    inside = editor.call(aten.clamp.default, raised, 0.0, 6.0, like=node)
    replace(node, editor.call(aten.div.Tensor, inside, 6.0, like=node))


def _hardsigmoid_backward(editor: Editor, node: Node) -> None:
    """g / 6 between -3 and 3: forward keeps a mask."""
    given = arguments(node)
    x = given["self"]
    with editor.after(x):
        above = editor.call(aten.gt.Scalar, x, -3.0, like=node)
        below = editor.call(aten.lt.Scalar, x, 3.0, like=node)
        mask = editor.call(aten.logical_and.default, above, below, like=node, name="mask")
    slope = editor.call(aten.div.Tensor, given["grad_output"], 6.0, like=node)
    replace(node, editor.call(aten.where.ScalarOther, mask, slope, 0.0, like=node))


def _rsqrt(editor: Editor, node: Node) -> None:
    x = arguments(node)["self"]
    if _is_float(node):
        root = editor.call(sqrt, x, like=node)
        replace(node, editor.call(aten.reciprocal.default, root, like=node))


def _by_row(op: Op, *names: str) -> Rule:
    """An op over the last axis: another axis goes there and comes back."""

    def rule(editor: Editor, node: Node) -> None:
        given = arguments(node)
        rank = value(node).dim()
        if not _is_float(node) or not all(_is_float(given[name]) for name in names) or not rank:
            return
        axes = list(range(rank))
        axes.append(axes.pop(given["dim"] % rank))
        moved = axes != list(range(rank))
        operands = [given[name] for name in names]
        if moved:
            permute = aten.permute.default
            operands = [editor.call(permute, one, axes, like=node) for one in operands]
        new = editor.call(op, *operands, like=node)
        if moved:
            back = [axes.index(axis) for axis in range(rank)]
            new = editor.call(aten.permute.default, new, back, like=node)
        replace(node, new)

    return rule


def _amax(editor: Editor, node: Node) -> None:
    """Over the last axis: the others that are reduced go there too, and are merged."""
    given = arguments(node)
    x, rank = given["self"], value(given["self"]).dim()
    reduced = sorted(int(axis) % rank for axis in given["dim"] or range(rank)) if rank else []
    if not _is_float(x) or not reduced:
        return
    kept = [axis for axis in range(rank) if axis not in reduced]
    axes = kept + reduced
    if axes != sorted(axes):
        x = editor.call(aten.permute.default, x, axes, like=node)
    merged = [*shape(x)[: len(kept)], prod(shape(x)[len(kept) :])]
    if shape(x) != merged:
        x = editor.call(aten.reshape.default, x, merged, like=node)
    replace(node, _viewed(editor, editor.call(amax, x, like=node), shape(node), node))


def _nll_loss(editor: Editor, node: Node) -> None:
    """Losses by row, then their sum, divided by the sum of the weights for a mean."""
    given = arguments(node)
    x, target, reduction = given["self"], given["target"], given["reduction"]
    if not _is_float(x) or value(x).dim() > 2:
        return
    rows = shape(target)
    x = _viewed(editor, x, [prod(rows), shape(x)[-1]], node)
    target = _viewed(editor, target, [prod(rows)], node)
    both = editor.call(loss.nll_loss, x, target, given["weight"], given["ignore_index"], like=node)
    losses, weights = editor.item(both, 0), editor.item(both, 1)
    count = editor.call(ordered_sum, weights, [0], False, like=node)
    if reduction == NONE:
        result = _viewed(editor, losses, rows, node)
    else:
        result = editor.call(ordered_sum, losses, [0], False, like=node)
    if reduction == MEAN:
        result = editor.call(aten.div.Tensor, result, count, like=node)
    for item in list(node.users):
        replace(item, result if item.args[1] == 0 else count)


def _nll_loss_backward(editor: Editor, node: Node) -> None:
    given = arguments(node)
    g, target, sizes = given["grad_output"], given["target"], shape(node)
    if not _is_float(node) or len(sizes) > 2:
        return
    if given["reduction"] == MEAN:
        g = editor.call(aten.div.Tensor, g, given["total_weight"], like=node)
    rows = prod(shape(target))
    g = _viewed(editor, g, [rows if given["reduction"] == NONE else 1], node)
    target = _viewed(editor, target, [rows], node)
    more = (given["weight"], given["ignore_index"], sizes[-1])
    new = editor.call(loss.nll_loss_backward, g, target, *more, like=node)
    replace(node, _viewed(editor, new, sizes, node))


def _viewed(editor: Editor, x: Node, sizes: list[int], like: Node) -> Node:
    return x if shape(x) == sizes else editor.call(aten.view.default, x, sizes, like=like)


def _logical(op: Any, *names: str) -> Rule:
    """A bitwise op of truth values."""

    def rule(editor: Editor, node: Node) -> None:
        given = arguments(node)
        if all(value(given[name]).dtype == torch.bool for name in names):
            replace(node, editor.call(op, *(given[name] for name in names), like=node))

    return rule


FUNCTIONS: dict[object, Rule] = {
    aten.exp.default: _one(functions.exp),
    aten.expm1.default: _one(functions.expm1),
    aten.log.default: _one(functions.log),
    aten.erf.default: _one(functions.erf),
    aten.tanh.default: _one(functions.tanh),
    aten.tanh_backward.default: _tanh_backward,
    aten.sigmoid.default: _one(functions.sigmoid),
    aten.sigmoid_backward.default: _sigmoid_backward,
    aten.rsqrt.default: _rsqrt,
    aten.gelu.default: _gelu,
    aten.gelu_backward.default: _gelu_backward,
    aten.silu.default: _one(activation.silu),
    aten.silu_backward.default: _gradient(activation.silu_backward, "grad_output", "self"),
    aten.hardswish.default: _one(activation.hardswish),
    aten.hardswish_backward.default: _gradient(
        activation.hardswish_backward, "grad_output", "self"
    ),
    aten.hardsigmoid.default: _hardsigmoid,
    aten.hardsigmoid_backward.default: _hardsigmoid_backward,
    aten.elu.default: _curve,
    aten.celu.default: _curve,
    aten.elu_backward.default: _curve_backward,
    aten._softmax.default: _by_row(softmax.softmax, "self"),
    aten._safe_softmax.default: _by_row(softmax.softmax, "self"),
    aten._softmax_backward_data.default: _by_row(softmax.softmax_backward, "grad_output", "output"),
    aten._log_softmax.default: _by_row(softmax.log_softmax, "self"),
    aten._log_softmax_backward_data.default: _by_row(
        softmax.log_softmax_backward, "grad_output", "output"
    ),
    aten.amax.default: _amax,
    aten.nll_loss_forward.default: _nll_loss,
    aten.nll_loss_backward.default: _nll_loss_backward,
    aten.bitwise_not.default: _logical(aten.logical_not.default, "self"),
    aten.bitwise_and.Tensor: _logical(aten.logical_and.default, "self", "other"),
    aten.bitwise_or.Tensor: _logical(aten.logical_or.default, "self", "other"),
}
