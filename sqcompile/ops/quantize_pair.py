"""ShiftQuant of one gradient for both of its products, from one set of draws."""

from typing import Any

import torch
from torch import Tensor

from sqcompile.ops.quantize import shift_quantize
from sqcompile.ops.table import op

PER_QUANTIZER = 5
"""Outputs of each of the two: q, exponent, scale, outer_scale, r."""


@op("sq::shift_quantize_pair", doc="ShiftQuant of a gradient for dgrad and for wgrad.")
def shift_quantize_pair(
    x: Tensor,
    factor: Tensor | None,
    rng: Tensor,
    outer: bool,
    bits: int,
    groups: int,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x float32 (*, C), factor float32 broadcastable to x or None, rng int64[4] -> the five
    outputs of shift_quantize for dgrad, then those for wgrad.

    dgrad reduces over C: of x * factor, outer scales on the first axis, a group for each channel.
    wgrad reduces over the rows: of x, outer scales on the last axis, a group for each row. Without
    `outer` neither has outer scales. Both begin a run by the same draw; then each carries what it
    loses itself.
    """
    channel, rows = x.dim() - 1, list(range(x.dim() - 1))
    grouped = groups > 1
    rest = (bits, groups, stream)
    dgrad = shift_quantize.reference(
        x, factor, rng, [0] if outer else [], [channel] if grouped else [], *rest
    )
    wgrad = shift_quantize.reference(
        x, None, rng, [channel] if outer else [], rows if grouped else [], *rest
    )
    return (*dgrad, *wgrad)


@shift_quantize_pair.meta
def _(
    x: Tensor,
    factor: Tensor | None,
    rng: Tensor,
    outer: bool,
    bits: int,
    groups: int,
    *_: Any,
) -> tuple[Tensor, ...]:
    return pair_outputs(x, outer, groups)


def pair_outputs(x: Tensor, outer: bool, groups: int) -> tuple[Tensor, ...]:
    """Empty tensors of the shapes and dtypes of the pair's ten outputs, for x of any dtype."""
    channel = [1] * (x.dim() - 1) + [x.shape[-1]]
    row = [*x.shape[:-1], 1]
    sample = [x.shape[0]] + [1] * (x.dim() - 1)
    one = [1] * x.dim()
    found = []
    for inner, free in ((channel, sample), (row, channel)):
        found += [
            x.new_empty(x.shape, dtype=torch.int8),
            x.new_empty(inner if groups > 1 else one, dtype=torch.int8),
            x.new_empty(one, dtype=torch.float32),
            x.new_empty(free if outer else one, dtype=torch.float32),
            x.new_empty(one, dtype=torch.float32),
        ]
    return tuple(found)
