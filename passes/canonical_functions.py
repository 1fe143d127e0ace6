"""Float functions, softmax and losses of classes in the forms of canonicalize: a table of rewrites.

What a formula here computes in several nodes, lowering joins in one kernel. Nodes that depend on
forward values alone but belong to a gradient carry meta["backward"], so that forward does not keep
their results.
"""

from math import prod
from typing import Any

import torch
from torch.fx import Node

from sqcompile.ops import functions, loss, softmax
from sqcompile.ops.elementwise import sqrt
from sqcompile.ops.reduce import amax, ordered_sum
from sqcompile.ops.table import Op
from sqcompile.passes.canonical_activations import ACTIVATIONS
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
    **ACTIVATIONS,
    aten.exp.default: _one(functions.exp),
    aten.expm1.default: _one(functions.expm1),
    aten.log.default: _one(functions.log),
    aten.erf.default: _one(functions.erf),
    aten.tanh.default: _one(functions.tanh),
    aten.sigmoid.default: _one(functions.sigmoid),
    aten.rsqrt.default: _rsqrt,
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
