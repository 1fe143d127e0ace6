"""Float sums that stay in the graph, in one written order on every target.

The reduced elements are taken in row-major order. Chunks of 1024 are summed in 16 lanes
(element k of a chunk into lane k mod 16, ascending), the lanes by halving (8, 4, 2, 1), the
chunks one after the other. Every accumulator starts at +0.0.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import pad

from sqcompile.ops.table import op

CHUNK = 1024
LANES = 16


def _summed_shape(shape: Sequence[int], axes: Sequence[int], keepdim: bool) -> list[int]:
    kept = [1 if axis in axes else size for axis, size in enumerate(shape)]
    return kept if keepdim else [size for axis, size in enumerate(shape) if axis not in axes]


@op("sq::ordered_sum", doc="Float sum in the one order that every target uses.")
def ordered_sum(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """x float32, axes non-negative, no repeats -> float32 without (or with size-1) axes."""
    kept = [axis for axis in range(x.dim()) if axis not in axes]
    count = prod(x.shape[axis] for axis in axes)
    results = prod(x.shape[axis] for axis in kept)
    rows = x.permute(*kept, *sorted(axes)).reshape(results, count)
    chunks = max(1, -(-count // CHUNK))
    steps = CHUNK // LANES if chunks > 1 else max(1, -(-count // LANES))
    lanes = pad(rows, (0, chunks * steps * LANES - count)).view(results, chunks, steps, LANES)
    total = torch.zeros_like(lanes[:, :, 0])
    for step in range(steps):
        total = total + lanes[:, :, step]
    half = LANES // 2
    while half:
        total = total[..., :half] + total[..., half : 2 * half]
        half //= 2
    result = torch.zeros_like(total[:, 0, 0])
    for chunk in range(chunks):
        result = result + total[:, chunk, 0]
    return result.reshape(_summed_shape(x.shape, axes, keepdim))


@ordered_sum.meta
def _(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    return x.new_empty(_summed_shape(x.shape, axes, keepdim))


def _ordered(bits: Tensor) -> Tensor:
    """The bits of floats as int32 that order like the numbers, and back; -0.0 is below 0.0."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@op("sq::amax", doc="The largest element of every row.")
def amax(x: Tensor) -> Tensor:
    """x float32 (..., n), n > 0 -> float32 (...): 0.0 of two zeros that differ."""
    return _ordered(_ordered(x.contiguous().view(torch.int32)).amax(-1)).view(torch.float32)


@amax.meta
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:-1])
