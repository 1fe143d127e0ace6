"""Quantisers: absmax, group exponents, nearest-even and stochastic rounding, scales.

A tensor whose absmax is below 2^-100, all zeros included, quantises to zeros with scale 1:
there is no division by zero and nothing overflows. ShiftQuant is arXiv 2411.10948, section 3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sqcompile.ops.carried import carried
from sqcompile.ops.table import op

TINY = 2.0**-100


def limits(bits: int, signed: bool) -> tuple[int, int]:
    """(lowest, highest) integer of a grid: symmetric when signed, from zero when not.

    Raises ValueError unless bits is 2..8: wider integers would wrap in int8.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be 2..8, got {bits}")
    highest = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    return (-highest if signed else 0), highest


def _inverse(outer: Tensor) -> Tensor:
    """1 / outer; 0 where outer counts as zero, so that what it divides does."""
    return torch.where(outer < TINY, torch.zeros_like(outer), 1.0 / outer)


def _steps_per_unit(highest: int, r: Tensor) -> Tensor:
    """highest / r in one rounding: Python's `highest / r` would be torch's (1 / r) * highest."""
    return torch.full_like(r, float(highest)) / r


def _grouped(steps: Tensor, exponent: Tensor | None) -> Tensor:
    """steps * 2^exponent: the finer steps of the groups behind the first."""
    if exponent is None:
        return steps
    return steps * (1 << exponent.to(torch.int32)).to(torch.float32)


def _reduced(shape: Sequence[int], axes: Sequence[int]) -> list[int]:
    return [1 if axis in axes else size for axis, size in enumerate(shape)]


@op("sq::absmax", doc="Largest magnitude over some axes, optionally after an outer scale.")
def absmax(x: Tensor, outer: Tensor | None, axes: Sequence[int]) -> Tensor:
    """x float32, outer float32 (absmax kept from another axis, or None) -> float32, axes kept
    as size 1. With outer: max |x / outer|, the division as a product with 1 / outer.
    Comparison is on the bits without the sign, so a NaN comes through.
    """
    scaled = x if outer is None else x * _inverse(outer)
    magnitude = scaled.contiguous().view(torch.int32) & 0x7FFFFFFF
    if axes:  # torch takes an empty list for all axes
        magnitude = magnitude.amax(list(axes), keepdim=True)
    return magnitude.view(torch.float32)


@absmax.meta
def _(x: Tensor, outer: Tensor | None, axes: Sequence[int]) -> Tensor:
    return x.new_empty(_reduced(x.shape, axes))


@op("sq::clip_range", doc="The largest magnitude that a grid holds, as a share of an absmax.")
def clip_range(r: Tensor, share: float) -> Tensor:
    """r float32 absmax -> r * share, for `quantize` and `quant_scale`: magnitudes beyond it come to
    the grid's end. A smaller range has finer steps (Banner et al., arXiv 1810.05723)."""
    return r * share


@clip_range.meta
def _(r: Tensor, share: float) -> Tensor:
    return torch.empty_like(r)


@op("sq::group_exponent", doc="ShiftQuant: the power-of-two group of every channel.")
def group_exponent(r: Tensor, groups: int) -> Tensor:
    """r float32, absmax per inner index -> int8 of r's shape, in [0, groups - 1].

    e = #{ j in 1..groups-1 : r <= max(r) * 2^-j }: group j holds the channels whose absmax is
    within a factor two of max(r) * 2^-j; the last group takes all that are smaller.
    """
    largest = r.max()
    exponent = torch.zeros_like(r, dtype=torch.int8)
    for j in range(1, groups):
        exponent += (r <= largest * 2.0**-j).to(torch.int8)
    return exponent


@group_exponent.meta
def _(r: Tensor, groups: int) -> Tensor:
    return r.new_empty(r.shape, dtype=torch.int8)


@op("sq::quantize", doc="Nearest-even quantisation on a symmetric or unsigned grid.")
def quantize(
    x: Tensor,
    r: Tensor,
    bits: int,
    signed: bool,
    exponent: Tensor | None = None,
    shift_groups: int = 1,
) -> Tensor:
    """x float32, r float32 absmax broadcastable to x, exponent int8 group broadcastable to x ->
    int8 (signed) or uint8. With shift_groups > 1 the integers carry the shifts of so many groups.

    q = clamp(round_half_even(x * ((qmax / r) * 2^exponent))) << (shift_groups - 1 - exponent), the
    shift where shift_groups > 1; 0 where r < 2^-100.
    """
    low, high = limits(bits, signed)
    q = (x * _grouped(_steps_per_unit(high, r), exponent)).round().clamp(low, high)
    q = torch.where(r < TINY, torch.zeros_like(q), q)
    q = q.to(torch.int8 if signed else torch.uint8)
    if exponent is None or shift_groups == 1:
        return q
    return q << (shift_groups - 1 - exponent).to(q.dtype)


@quantize.meta
def _(
    x: Tensor,
    r: Tensor,
    bits: int,
    signed: bool,
    exponent: Tensor | None = None,
    shift_groups: int = 1,
) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.int8 if signed else torch.uint8)


@op("sq::quantize_rows", doc="Nearest-even quantisation of every row by its own absmax.")
def quantize_rows(x: Tensor, bits: int, signed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """x float32 -> (q int8 or uint8 like x, scale, r: float32 kept on the first axis).

    What absmax over all axes but the first, quantize and quant_scale (one group) give: a weight
    with a scale for every output channel.
    """
    r = absmax.reference(x, None, _every(x, [0]))
    return quantize.reference(x, r, bits, signed), quant_scale.reference(r, bits, signed, 1), r


@quantize_rows.meta
def _(x: Tensor, bits: int, signed: bool) -> tuple[Tensor, Tensor, Tensor]:
    kept = _reduced(x.shape, _every(x, [0]))
    dtype = torch.int8 if signed else torch.uint8
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(kept), x.new_empty(kept)


@op("sq::quantize_stochastic", doc="Unbiased quantisation, with outer scales and group shifts.")
def quantize_stochastic(
    x: Tensor,
    r: Tensor,
    outer: Tensor | None,
    exponent: Tensor | None,
    rng: Tensor,
    bits: int,
    stream: int,
) -> Tensor:
    """x float32, r float32 absmax, outer float32 absmax of the free axes, exponent int8 group
    of the reduced axes, rng int64[4] -> int8 in [-qmax, qmax].

    t = (x / outer) * ((qmax / r) * 2^exponent), 0 where r < 2^-100, rounded by `carried`: the mean
    of q over all draws is t to 2^-16, without a bias to one side.
    """
    low, high = limits(bits, signed=True)
    scale = _grouped(_steps_per_unit(high, r), exponent)
    scaled = x if outer is None else x * _inverse(outer)
    t = torch.where(r < TINY, torch.zeros_like(x), scaled * scale)
    return carried(t, low, high, rng, stream)


@quantize_stochastic.meta
def _(
    x: Tensor,
    r: Tensor,
    outer: Tensor | None,
    exponent: Tensor | None,
    rng: Tensor,
    bits: int,
    stream: int,
) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.int8)


@op("sq::quant_scale", doc="What one integer step of a quantised tensor is worth.")
def quant_scale(r: Tensor, bits: int, signed: bool, groups: int) -> Tensor:
    """r float32 absmax -> float32 of r's shape: (r / qmax) * 2^-(groups - 1); 1 where r < 2^-100.

    The power of two undoes the shift by which products raise the values of group 0.
    """
    scale = (r / float(limits(bits, signed)[1])) * 2.0 ** -(groups - 1)
    return torch.where(r < TINY, torch.ones_like(scale), scale)


@quant_scale.meta
def _(r: Tensor, bits: int, signed: bool, groups: int) -> Tensor:
    return r.new_empty(r.shape)


@op("sq::group_scale", doc="What one integer step of every group is worth, without shifts.")
def group_scale(r: Tensor, exponent: Tensor, bits: int, signed: bool) -> Tensor:
    """r float32 absmax of size 1, exponent int8 group of every channel -> float32 of exponent's
    shape: (r / qmax) * 2^-exponent; 1 where r < 2^-100.

    For a product that has the grouped axis free, and reads the integers as they are stored.
    """
    halved = 1.0 / (1 << exponent.to(torch.int32)).to(torch.float32)
    scale = (r / float(limits(bits, signed)[1])) * halved
    return torch.where(r < TINY, torch.ones_like(scale), scale)


@group_scale.meta
def _(r: Tensor, exponent: Tensor, bits: int, signed: bool) -> Tensor:
    return r.new_empty(exponent.shape)


@op("sq::outer_scale", doc="The factor that an outer absmax gives back to the result.")
def outer_scale(r: Tensor) -> Tensor:
    """r float32 -> r, or 1 where r < 2^-100 (the quantiser did not divide there)."""
    return torch.where(r < TINY, torch.ones_like(r), r)


@outer_scale.meta
def _(r: Tensor) -> Tensor:
    return r.new_empty(r.shape)


def _every(x: Tensor, kept: Sequence[int] = ()) -> list[int]:
    return [axis for axis in range(x.dim()) if axis not in kept]


@op("sq::shift_quantize", doc="ShiftQuant of a gradient in one op: integers, groups and scales.")
def shift_quantize(
    x: Tensor,
    factor: Tensor | None,
    rng: Tensor,
    outer_axes: Sequence[int],
    inner_axes: Sequence[int],
    bits: int,
    groups: int,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x float32, factor float32 broadcastable to x or None, rng int64[4] -> (q int8 like x,
    exponent int8 kept on inner_axes, scale of size 1, outer_scale kept on outer_axes, r of size 1).

    What absmax, group_exponent, quantize_stochastic, quant_scale and outer_scale give for
    x * factor: with an outer absmax on outer_axes (none, and a scale of 1, without axes), a group
    for every index of inner_axes, and r, the largest absmax after the outer scale.
    """
    scaled = x if factor is None else x * factor
    outer = absmax.reference(scaled, None, _every(x, outer_axes)) if outer_axes else None
    channel = absmax.reference(scaled, outer, _every(x, inner_axes))
    r = absmax.reference(channel, None, _every(x))
    exponent = group_exponent.reference(channel, groups)
    q = quantize_stochastic.reference(scaled, r, outer, exponent, rng, bits, stream)
    scale = quant_scale.reference(r, bits, True, groups)
    back = torch.ones_like(r) if outer is None else outer_scale.reference(outer)
    return q, exponent, scale, back, r


@shift_quantize.meta
def _(
    x: Tensor,
    factor: Tensor | None,
    rng: Tensor,
    outer_axes: Sequence[int],
    inner_axes: Sequence[int],
    bits: int,
    groups: int,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    one = [1] * x.dim()
    inner = _reduced(x.shape, _every(x, inner_axes))
    outer = _reduced(x.shape, _every(x, outer_axes))
    return (
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty(inner, dtype=torch.int8),
        x.new_empty(one),
        x.new_empty(outer),
        x.new_empty(one),
    )
