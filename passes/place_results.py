"""Let a product write its result in the order in which it is read."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch.fx import GraphModule, Node

from sqcompile.ops import product
from sqcompile.passes.editing import (
    REORDERED,
    SAME_ORDER,
    Editor,
    arguments,
    calls,
    copy_graph,
    finish,
    is_call,
    replace,
    set_arguments,
    shape,
    update_value,
)

aten = torch.ops.aten

PRODUCTS = (product.shift_matmul_dequantize, product.shift_matmul_dequantize_absmax)
LANES = 16
"""Results are placed in runs of so many, or in whole rows: kernels write vectors."""


def place_results(module: GraphModule) -> GraphModule:
    """After this pass (it needs what fuse_tails leaves) a matrix product whose float result is only
    read through views and permutations writes it in that order, and a view follows, if runs of it
    that lie side by side then are whole vectors or whole rows, or columns where there is neither
    residual nor mask; permutations that undo each other are gone.
    Values do not change."""
    graph = copy_graph(module)
    editor = Editor(graph)
    for node in calls(graph, *PRODUCTS):
        found = _read_order(node)
        if found is not None:
            _place(editor, node, *found)
    return finish(graph)


class Digit(NamedTuple):
    """A part of an axis of a product: its coordinate divided by `step`, modulo `size`."""

    axis: int
    step: int
    size: int


def _read_order(node: Node) -> tuple[Node, list[Digit]] | None:
    """(What is read in place of a product's result, its digits in order), or None where nothing
    permutes the result."""
    result = _result(node)
    if result is None:
        return None
    sizes = shape(result)
    plain = not any(arguments(node).get(name) for name in ("residual", "mask"))
    axes = [[Digit(axis, 1, size)] if size != 1 else [] for axis, size in enumerate(sizes)]
    own = [digit for axis in axes for digit in axis]
    found, moved = None, False
    seen, readers = result, list(result.users)
    while prod(sizes) and len(readers) == 1 and is_call(readers[0], *SAME_ORDER, *REORDERED):
        seen, readers = readers[0], list(readers[0].users)
        if is_call(seen, *REORDERED):
            axes = [axes[axis] for axis in _permutation(seen)]
        else:
            split = _split([digit for axis in axes for digit in axis], shape(seen))
            if split is None:
                break
            axes = split
        order = _joined([digit for axis in axes for digit in axis])
        moved = moved or order != own
        if moved and (order == own or _in_vectors(order[-1], sizes, plain)):
            found = seen, order
    return found


def _result(node: Node) -> Node | None:
    """The result of a product, which is an item where the product measures it."""
    if is_call(node, product.shift_matmul_dequantize):
        return node
    return next((item for item in node.users if item.args[1] == 0), None)


def _permutation(node: Node) -> list[int]:
    """The axes of its argument in the order of a permuting node."""
    given = arguments(node)
    axes = list(range(len(shape(node))))
    if "dims" in given:
        return [axes[axis] for axis in given["dims"]]
    a, b = (axes[given.get(name, axis)] for name, axis in (("dim0", 0), ("dim1", -1)))
    axes[a], axes[b] = b, a
    return axes


def _split(digits: Sequence[Digit], sizes: Sequence[int]) -> list[list[Digit]] | None:
    """The digits that make up axes of these sizes, or None where an axis ends within one that does
    not divide."""
    left, axes = list(digits), []
    for size in sizes:
        parts: list[Digit] = []
        while size > 1:
            axis, step, whole = left.pop(0)
            taken = min(size, whole)
            rest = whole // taken
            if size % taken or whole % taken:
                return None
            if rest > 1:
                left.insert(0, Digit(axis, step, rest))
            parts.append(Digit(axis, step * rest, taken))
            size //= taken
        axes.append(parts)
    return axes


def _joined(digits: Sequence[Digit]) -> list[Digit]:
    """Digits that follow each other in one axis as one."""
    joined: list[Digit] = []
    for axis, step, size in digits:
        if joined and joined[-1][:2] == (axis, step * size):
            size *= joined.pop().size
        joined.append(Digit(axis, step, size))
    return joined


def _in_vectors(last: Digit, sizes: Sequence[int], plain: bool) -> bool:
    """Whether a result can be written in vectors when `last` is its innermost digit."""
    axis, step, size = last
    columns, rows = len(sizes) - 1, len(sizes) - 2
    if step != 1 or (axis != columns and not (axis == rows and plain)):
        return False
    return size % LANES == 0 or (size == sizes[axis] and (axis == columns or size >= LANES))


def _place(editor: Editor, node: Node, read: Node, order: list[Digit]) -> None:
    """Let a product write its digits in `order`, in which `read` has them."""
    own = sorted(order, key=lambda digit: (digit.axis, -digit.step))
    if order != own:
        sizes, places = [digit.size for digit in own], [own.index(digit) for digit in order]
        set_arguments(node, {**arguments(node), "sizes": sizes, "order": places})
        update_value(node)
    result = _result(node)
    assert result is not None
    if result is not node:
        update_value(result)
    with editor.after(result):
        seen = editor.call(aten.view.default, result, shape(read), like=read)
    replace(read, seen)
