"""Rounding to a grid of integers, on scalars and on vectors: what the quantisers of every target
are made of.

Rounding never calls a library: a value clamped to the grid is rounded to nearest even by adding
1.5 * 2^23, whose sum has the integer in its low bits. Clamping first gives the same integer, since
the limits are integers, and keeps NaN and infinity out of the conversion.
"""

from tvm import tirx

from sqcompile.backends import builder
from sqcompile.backends.builder import Expr
from sqcompile.ops.quantize import TINY, limits

_ROUNDER = 1.5 * 2**23

_ROUNDER_BITS = 0x4B400000


def lanes_of(value: Expr) -> int:
    """Lanes of a vector, 1 for a scalar."""
    _, _, lanes = builder.dtype_of(value).partition("x")
    return int(lanes or 1)


def typed(dtype: str, lanes: int) -> str:
    """The dtype of a vector of `lanes`, or of a scalar."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def cast(value: Expr, dtype: str) -> Expr:
    """A scalar or vector as another dtype; float to integer truncates."""
    return tirx.Cast(typed(dtype, lanes_of(value)), value)


def bits_of(value: Expr, dtype: str) -> Expr:
    """The bits of a scalar or vector read as a dtype of equal width."""
    return builder.bits_of(value, typed(dtype, lanes_of(value)))


def same(value: float, dtype: str, like: Expr) -> Expr:
    """A constant in every lane of `like`."""
    lanes, constant = lanes_of(like), builder.const(value, dtype)
    return constant if lanes == 1 else tirx.Broadcast(constant, lanes)


def magnitude(value: Expr) -> Expr:
    """The bits of a float32 without its sign, as int32: they order like the magnitudes, NaN
    above all."""
    return tirx.bitwise_and(bits_of(value, "int32"), same(0x7FFFFFFF, "int32", value))


def is_tiny(r: Expr) -> Expr:
    """An absmax that counts as zero."""
    return r < same(TINY, "float32", r)


def inverse(outer: Expr) -> Expr:
    """1 / outer, or 0 where outer counts as zero."""
    zero, one = same(0.0, "float32", outer), same(1.0, "float32", outer)
    return builder.select(is_tiny(outer), zero, one / outer)


def unless_tiny(r: Expr) -> Expr:
    """r, or 1 where it counts as zero."""
    return builder.select(is_tiny(r), same(1.0, "float32", r), r)


def steps_per_unit(bits: int, signed: bool, r: Expr) -> Expr:
    """qmax / r in one rounding. 0 where r counts as zero: finite values then quantise to 0."""
    highest = same(limits(bits, signed)[1], "float32", r)
    return builder.select(is_tiny(r), same(0.0, "float32", r), highest / r)


def step(bits: int, signed: bool, groups: int, r: Expr) -> Expr:
    """What an integer step is worth, (r / qmax) * 2^-(groups - 1); 1 where r counts as zero."""
    highest = same(limits(bits, signed)[1], "float32", r)
    value = (r / highest) * same(2.0 ** -(groups - 1), "float32", r)
    return builder.select(is_tiny(r), same(1.0, "float32", r), value)


def power(exponent: Expr) -> Expr:
    """2^exponent as float32, of an int32 in -126..127."""
    biased = exponent + same(127, "int32", exponent)
    return bits_of(tirx.shift_left(biased, same(23, "int32", exponent)), "float32")


def clamp(value: Expr, low: float, high: float) -> Expr:
    """value within [low, high]; NaN becomes a limit."""
    return tirx.min(tirx.max(value, same(low, "float32", value)), same(high, "float32", value))


def rounded(value: Expr) -> Expr:
    """A float32 below 2^21 in magnitude -> the nearest int32, ties to even."""
    moved = value + same(_ROUNDER, "float32", value)
    return bits_of(moved, "int32") - same(_ROUNDER_BITS, "int32", value)


def group_of(r: Expr, largest: Expr, groups: int) -> Expr:
    """The ShiftQuant group of a channel with absmax r, as int8."""
    group = builder.zero("int8")
    for j in range(1, groups):
        group = group + builder.cast(r <= largest * builder.const(2.0**-j, "float32"), "int8")
    return group
