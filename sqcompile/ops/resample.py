"""Weighted sums of neighbours along an axis: interpolation, and averages of uneven windows.

A table says for every result which elements it reads: `first` (int32, (R,)) is the first one,
`weight` (float32, (R, taps)) what each of the neighbours from there on counts. A gradient is the
same op on the transposed table.
"""

from typing import Any

from torch import Tensor

from sqcompile.ops.table import op


@op("sq::resample", doc="Each result along an axis is a weighted sum of neighbouring elements.")
def resample(
    x: Tensor,
    axis: int,
    first: Tensor,
    weight: Tensor,
    back_first: Tensor | None,
    back_weight: Tensor | None,
) -> Tensor:
    """x float32 (..., S, ...), axis >= 0 -> float32 (..., R, ...):
    y[i] = sum over t, ascending from +0.0, of weight[i, t] * x[first[i] + t]; every product is
    rounded, then added. 0 <= first[i] <= S - taps.

    `back_first` and `back_weight` are the transposed table; autograd needs it, nothing else.
    """
    layout = [1] * x.dim()
    layout[axis] = -1
    total = x.new_zeros([*x.shape[:axis], first.shape[0], *x.shape[axis + 1 :]])
    for tap in range(weight.shape[1]):
        part = x.index_select(axis, first + tap)
        total = total + weight[:, tap].reshape(layout) * part
    return total


@resample.meta
def _(x: Tensor, axis: int, first: Tensor, *_: Any) -> Tensor:
    return x.new_empty([*x.shape[:axis], first.shape[0], *x.shape[axis + 1 :]])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.axis, *tables = inputs
    ctx.save_for_backward(*tables)


@resample.gradient(_save)
def _(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    first, weight, back_first, back_weight = ctx.saved_tensors
    dx = resample(g, ctx.axis, back_first, back_weight, first, weight)
    return dx, None, None, None, None, None
