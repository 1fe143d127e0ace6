"""Rows by number: embeddings and constant selections, with their gradient in one written order."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sqcompile.ops.table import op


def _rows(index: Tensor, size: int) -> Tensor:
    """Row numbers as int64; one outside of 0 .. size - 1 stands for the nearest row."""
    return index.to(torch.int64).clamp(0, size - 1)


@op("sq::take", doc="Slices of a tensor along an axis, by number: an embedding where axis is 0.")
def take(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """x (..., R, ...) of any dtype, index int (T,), axis of x >= 0 -> (..., T, ...).

    A number outside of the axis reads the nearest slice, so that no kernel reads elsewhere; a step
    refuses such a number, before forward where it is given, after forward where it is computed.
    """
    return x.index_select(axis, _rows(index, x.shape[axis]))


def _taken(shape: Sequence[int], axis: int, count: int) -> list[int]:
    return [*shape[:axis], count, *shape[axis + 1 :]]


@take.meta
def _(x: Tensor, index: Tensor, axis: int) -> Tensor:
    return x.new_empty(_taken(x.shape, axis, index.shape[0]))


@op("sq::take_backward", doc="Gradient of take: what was read from a row, summed in its order.")
def take_backward(g: Tensor, index: Tensor, axis: int, size: int, skipped: int) -> Tensor:
    """g float32 (..., T, ...), index int (T,) -> float32 (..., size, ...): each row is the sum,
    from +0.0, of the slices of g that were read from it, by ascending position in `index`.

    `skipped`: a number whose slices count for nothing (an embedding's padding index), or -1.
    """
    rows = _rows(index, size)
    total = g.new_zeros(_taken(g.shape, axis, size)).movedim(axis, 0)
    for row, part in zip(rows.tolist(), g.movedim(axis, 0), strict=True):
        if row != skipped:
            total[row] += part
    return total.movedim(0, axis)


@take_backward.meta
def _(g: Tensor, index: Tensor, axis: int, size: int, *_: Any) -> Tensor:
    return g.new_empty(_taken(g.shape, axis, size))
