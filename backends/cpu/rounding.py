"""Rounding to a grid of integers on this CPU's instructions, beside what every target shares
(`sqcompile.backends.rounding`).

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
from sqcompile.backends.rounding import (
    bits_of,
    cast,
    clamp,
    group_of,
    inverse,
    is_tiny,
    lanes_of,
    magnitude,
    power,
    rounded,
    same,
    step,
    steps_per_unit,
    typed,
    unless_tiny,
)

__all__ = [
    "below",
    "bits_of",
    "cast",
    "clamp",
    "floor_to",
    "floor_to_int8",
    "floored",
    "group_of",
    "inverse",
    "is_tiny",
    "lanes_of",
    "magnitude",
    "power",
    "rounded",
    "same",
    "step",
    "steps_per_unit",
    "to_bytes",
    "typed",
    "unless_tiny",
]

_NEAREST, _DOWN = 8, 9
"""Rounding of an AVX-512 conversion, without exceptions: ties to even, toward minus infinity."""


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
