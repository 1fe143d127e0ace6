"""Rounding to a grid of integers, on scalars and on vectors: what every quantiser is made of.

Rounding never calls a library: a value clamped to the grid is rounded to nearest even by adding
1.5 * 2^23, whose sum has the integer in its low bits, and floored by the CPU's rounding
instruction or, where there is none, by truncating and correcting. Clamping first gives the same
integer, since the limits are integers, and keeps NaN and infinity out of the conversion.
"""

from collections.abc import Sequence

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.machine import machine
from sqcompile.backends.cpu.nest import Expr
from sqcompile.ops.quantize import TINY, limits

_ROUNDER = 1.5 * 2**23
_ROUNDER_BITS = 0x4B400000
_NEAREST, _DOWN = 8, 9
"""Rounding of an AVX-512 conversion, without exceptions: ties to even, toward minus infinity."""


def lanes_of(value: Expr) -> int:
    """Lanes of a vector, 1 for a scalar."""
    _, _, lanes = nest.dtype_of(value).partition("x")
    return int(lanes or 1)


def typed(dtype: str, lanes: int) -> str:
    """The dtype of a vector of `lanes`, or of a scalar."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def cast(value: Expr, dtype: str) -> Expr:
    """A scalar or vector as another dtype; float to integer truncates."""
    return tirx.Cast(typed(dtype, lanes_of(value)), value)


def bits_of(value: Expr, dtype: str) -> Expr:
    """The bits of a scalar or vector read as a dtype of equal width."""
    return tirx.reinterpret(typed(dtype, lanes_of(value)), value)


def same(value: float, dtype: str, like: Expr) -> Expr:
    """A constant in every lane of `like`."""
    lanes, constant = lanes_of(like), nest.const(value, dtype)
    return constant if lanes == 1 else nest.splat(constant, lanes)


def magnitude(value: Expr) -> Expr:
    """The bits of a float32 without its sign, as int32: they order like the magnitudes, NaN
    above all."""
    return tirx.bitwise_and(bits_of(value, "int32"), same(0x7FFFFFFF, "int32", value))


def is_tiny(r: Expr) -> Expr:
    """An absmax that counts as zero."""
    return r < same(TINY, "float32", r)


def inverse(outer: Expr) -> Expr:
    """1 / outer, or 1 where outer counts as zero."""
    one = same(1.0, "float32", outer)
    return nest.select(is_tiny(outer), one, one / outer)


def unless_tiny(r: Expr) -> Expr:
    """r, or 1 where it counts as zero."""
    return nest.select(is_tiny(r), same(1.0, "float32", r), r)


def steps_per_unit(bits: int, signed: bool, r: Expr) -> Expr:
    """qmax / r in one rounding. 0 where r counts as zero: finite values then quantise to 0."""
    highest = same(limits(bits, signed)[1], "float32", r)
    return nest.select(is_tiny(r), same(0.0, "float32", r), highest / r)


def step(bits: int, signed: bool, groups: int, r: Expr) -> Expr:
    """What an integer step is worth, (r / qmax) * 2^-(groups - 1); 1 where r counts as zero."""
    highest = same(limits(bits, signed)[1], "float32", r)
    value = (r / highest) * same(2.0 ** -(groups - 1), "float32", r)
    return nest.select(is_tiny(r), same(1.0, "float32", r), value)


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


def floored(value: Expr) -> Expr:
    """A float32 within int32 -> its floor as int32."""
    if machine().vector_bits > 128:  # SSE2 has no rounding instruction: LLVM would call floorf
        return cast(_floor(value), "int32")
    truncated = cast(value, "int32")
    above = cast(truncated, "float32") > value
    return truncated - cast(above, "int32")


def below(value: Expr) -> Expr:
    """A float32 within int32 -> its floor as float32."""
    if machine().vector_bits > 128:
        return _floor(value)
    return cast(floored(value), "float32")


def _floor(value: Expr) -> Expr:
    kind = typed("float32", lanes_of(value))
    return tirx.call_llvm_pure_intrin(kind, "llvm.floor", value)


def floor_to_int8(value: Expr, low: int, high: int) -> Expr:
    """A float32, or a vector of 16 -> its floor within [low, high] as int8.

    AVX-512 rounds down as it converts, and saturates as it narrows: what is below int32 becomes
    its lowest number, so only the upper limit goes before the conversion. A third less
    instructions than clamping first.
    """
    if machine().vector_bits < 512 or lanes_of(value) != nest.LANES:
        return floor_to(clamp(value, low, high), "int8")
    narrow = _call(
        "int8x16",
        "mask.pmovs.db.512",
        _converted(value, high, _DOWN),
        nest.splat(nest.zero("int8")),
        tirx.const(-1, "int16"),
    )
    return tirx.max(narrow, same(low, "int8", value))


def floor_to(value: Expr, dtype: str) -> Expr:
    """A float32 within the range of dtype -> its floor as dtype."""
    return cast(floored(value), dtype)


def to_bytes(
    values: Sequence[Expr], low: int, high: int, down: bool, bounded: bool = False
) -> list[Expr]:
    """clamp(floor(value), low, high), or the nearest integer instead of the floor, as int8 or
    (low = 0) uint8 of scalars or vectors; neighbours are joined where the CPU packs them so.

    AVX-512 rounds as it converts, and four vectors become one by saturating packs, so that the
    lower limit costs a comparison of bytes: 3 instructions a vector, not 6 and a store. A
    positive value is clamped before, since conversion overflows to the lowest integer; one that
    is `bounded`, below 2^31, is clamped as a byte.
    """
    dtype = "int8" if low else "uint8"
    if len(values) != 4 or machine().vector_bits != 512:
        round_to = floored if down else rounded
        return [cast(round_to(clamp(value, low, high)), dtype) for value in values]
    most = None if bounded else high
    whole = [_converted(value, most, _DOWN if down else _NEAREST) for value in values]
    shorts = [_call("int16x32", "packssdw.512", *whole[i : i + 2]) for i in (0, 2)]
    pack = "packsswb.512" if low else "packuswb.512"
    mixed = tirx.reinterpret("int32x16", _call("int8x64", pack, *shorts))
    order = [tirx.const(4 * (i % 4) + i // 4, "int32") for i in range(16)]  # packs stay in 128 bits
    joined = tirx.reinterpret(f"{dtype}x64", tirx.Shuffle([mixed], order))
    if bounded:
        joined = tirx.min(joined, same(high, dtype, joined))
    return [tirx.max(joined, same(low, dtype, joined))]


def _converted(value: Expr, high: int | None, mode: int) -> Expr:
    """16 floats -> int32, rounded by `mode`, at most `high` where it is given; what is below int32
    becomes its lowest number."""
    below = value if high is None else tirx.min(same(high, "float32", value), value)
    passed, mask = nest.splat(nest.zero("int32")), tirx.const(-1, "int16")
    rounding = tirx.const(mode, "int32")
    return _call("int32x16", "mask.cvtps2dq.512", below, passed, mask, rounding)


def _call(kind: str, name: str, *arguments: Expr) -> Expr:
    return tirx.call_llvm_pure_intrin(kind, f"llvm.x86.avx512.{name}", *arguments)


def group_of(r: Expr, largest: Expr, groups: int) -> Expr:
    """The ShiftQuant group of a channel with absmax r, as int8."""
    group = nest.zero("int8")
    for j in range(1, groups):
        group = group + nest.cast(r <= largest * nest.const(2.0**-j, "float32"), "int8")
    return group
