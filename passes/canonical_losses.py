"""Losses of differences in the forms of canonicalize: elementwise ops and ordered sums."""

from math import prod
from typing import Any

import torch
from torch.fx import Node

from sqcompile.ops.reduce import ordered_sum
from sqcompile.passes.canonical_forms import Rule
from sqcompile.passes.editing import Editor, arguments, replace, shape, value

aten = torch.ops.aten
NONE, MEAN = 0, 1
"""torch's numbers of a loss's reductions; 2 is the sum."""


def _operands(node: Node) -> tuple[dict[str, Any], bool]:
    """The arguments, and whether they are float32 tensors of one shape."""
    given = arguments(node)
    x, y = given["self"], given["target"]
    return given, value(node).dtype == torch.float32 and shape(x) == shape(y)


def _reduced(editor: Editor, losses: Node, reduction: int, like: Node) -> Node:
    if reduction == NONE:
        return losses
    axes = list(range(value(losses).dim()))
    total = editor.call(ordered_sum, losses, axes, False, like=like)
    if reduction != MEAN:
        return total
    return editor.call(aten.div.Tensor, total, float(prod(shape(losses))), like=like)


def _share(given: dict[str, Any]) -> float:
    """What one element's loss counts in the result."""
    return 1.0 / prod(shape(given["self"])) if given["reduction"] == MEAN else 1.0


def _squared(editor: Editor, node: Node) -> None:
    """The square of the difference."""
    given, known = _operands(node)
    if known:
        difference = editor.call(aten.sub.Tensor, given["self"], given["target"], like=node)
        square = editor.call(aten.mul.Tensor, difference, difference, like=node)
        replace(node, _reduced(editor, square, given["reduction"], node))


def _squared_backward(editor: Editor, node: Node) -> None:
    """(x - y) * (g * 2 / n), n the number of elements of a mean, else 1."""
    given, known = _operands(node)
    if not known:
        return
    factor = 2.0 * _share(given)
    scaled = editor.call(aten.mul.Tensor, given["grad_output"], factor, like=node)
    difference = _difference(editor, given, node)
    replace(node, editor.call(aten.mul.Tensor, difference, scaled, like=node))


def _difference(editor: Editor, given: dict[str, Any], like: Node) -> Node:
    """x - y, taken again in backward."""
    x, y = given["self"], given["target"]
    return editor.call(aten.sub.Tensor, x, y, like=like, backward=True)


def _bent(editor: Editor, node: Node) -> None:
    """With z = |x - y|: Huber's z^2 / 2 up to delta, then (z - delta / 2) * delta; smooth L1, the
    same with beta, divided by it."""
    given, known = _operands(node)
    smooth = "beta" in given
    limit = float(given["beta" if smooth else "delta"])
    if not known or not limit:
        return

    def call(op: object, *args: Any) -> Node:
        return editor.call(op, *args, like=node)

    z = call(aten.abs.default, call(aten.sub.Tensor, given["self"], given["target"]))
    low = call(aten.mul.Tensor, call(aten.mul.Tensor, z, z), 0.5 / limit if smooth else 0.5)
    high = call(aten.sub.Tensor, z, 0.5 * limit)
    if not smooth:
        high = call(aten.mul.Tensor, high, limit)
    losses = call(aten.where.self, call(aten.lt.Scalar, z, limit), low, high)
    replace(node, _reduced(editor, losses, given["reduction"], node))


def _bent_backward(editor: Editor, node: Node) -> None:
    """clamp(x - y, -delta, delta) * (g / n), or clamp((x - y) / beta, -1, 1) * (g / n)."""
    given, known = _operands(node)
    smooth = "beta" in given
    limit = float(given["beta" if smooth else "delta"])
    if not known or not limit:
        return
    slope = _difference(editor, given, node)
    if smooth:
        slope = editor.call(aten.div.Tensor, slope, limit, like=node, backward=True)
    top = 1.0 if smooth else limit
    slope = editor.call(aten.clamp.default, slope, -top, top, like=node, backward=True)
    scaled = editor.call(aten.mul.Tensor, given["grad_output"], _share(given), like=node)
    replace(node, editor.call(aten.mul.Tensor, slope, scaled, like=node))


LOSSES: dict[object, Rule] = {
    aten.mse_loss.default: _squared,
    aten.mse_loss_backward.default: _squared_backward,
    aten.huber_loss.default: _bent,
    aten.huber_loss_backward.default: _bent_backward,
    aten.smooth_l1_loss.default: _bent,
    aten.smooth_l1_loss_backward.default: _bent_backward,
}
