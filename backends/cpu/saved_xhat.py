"""The saved xhat: k = floor(xhat / step) within `bits` bits, without a division where possible.

A division of 16 floats takes as long as all the rest of a norm's element (10 cycles of a Zen 4).
A product by 1 / step rounds differently near an integer, but two products in a row may round just
as the division does at every one of the few integers that count: all three are monotone in xhat,
so k is the same everywhere if it is the same beside each threshold. The generator looks for such
factors: 4 bits and less have them in practice, 8 bits do not and divide.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.machine import Dot, machine
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.rounding import clamp, floor_to

CANDIDATES = 512
"""First factors that are tried, between 1 and 2."""
NEIGHBOURS = 8
"""Floats on each side of a threshold that are compared: its rounding errors are below 3."""


@lru_cache
def exact_factors(bits: int, step: float) -> tuple[float, ...]:
    """Factors whose products in a row give floor(xhat / step) of every float32 that is clamped to
    `bits` bits, () when there are none."""
    unit = np.float32(step)
    if not 2.0**-20 < unit <= 1:
        return ()  # a factor below 1 might take a small negative number to zero
    integers = [j for j in range(1 - 2 ** (bits - 1), 2 ** (bits - 1)) if j]
    thresholds = np.array(integers, dtype=np.float32)[:, None]
    near = [(thresholds * unit).astype(np.float32)]
    for direction in (-np.inf, np.inf):
        value = near[0]
        for _ in range(NEIGHBOURS):
            value = np.nextafter(value, np.float32(direction))
            near.append(value)
    floats = np.concatenate(near, axis=1)
    wanted = floats / unit >= thresholds
    for index in range(CANDIDATES):
        first = np.float32(1 + index / CANDIDATES)
        second = np.float32(1 / (float(unit) * float(first)))
        if second < 1:
            break
        if np.array_equal(floats * first * second >= thresholds, wanted):
            return (float(second),) if first == 1 else (float(first), float(second))
    return ()


def saved(xhat: Expr, bits: int, step: float) -> Expr:
    """The integer k of the saved value (k + 1/2) * step, int32."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    factors = exact_factors(bits, step)
    value = xhat
    for factor in factors:
        value = value * nest.const(factor, "float32")
    clamped = clamp(value if factors else xhat / nest.const(step, "float32"), low, high)
    if machine().vector_bits > 128:
        return nest.cast(tirx.floor(clamped), "int32")
    return floor_to(clamped, "int32")  # SSE2 has no instruction that rounds down


def _expanded(packed: Expr, dtype: str, count: int) -> Expr:
    """count / 2 bytes -> `count` nibbles as unsigned integers of dtype."""
    bits = int(dtype.lstrip("uint"))
    half, pair = count // 2, f"uint{2 * bits}"

    def same(value: int) -> Expr:
        return nest.splat(nest.const(value, pair), half)

    wide = nest.cast(packed, pair, half)
    both = tirx.bitwise_or(wide, tirx.shift_left(wide, same(bits - 4)))
    kept = tirx.bitwise_and(both, same(0xF | 0xF << bits))
    return tirx.reinterpret(f"{dtype}x{count}", kept)


def _not_negative(packed: Expr) -> Expr:
    """8 bytes -> boolx16: nibbles without a sign bit. A lane gets the byte it is in, by one shuffle
    of bytes, and tests its bit. (A shuffle has no more lanes than its operands, hence eight.)"""
    places = [nest.const(lane // 2, "int32") for lane in range(LANES) for _ in range(4)]
    spread = tirx.reinterpret(f"int32x{LANES}", tirx.Shuffle([packed] * 8, places))
    pair = nest.splat(nest.const(0x80 << 32 | 0x08, "int64"), LANES // 2)
    signs = tirx.bitwise_and(spread, tirx.reinterpret(f"int32x{LANES}", pair))
    return tirx.EQ(signs, nest.splat(nest.zero("int32")))


@dataclass(frozen=True)
class Saved:
    """The saved k of some elements: int8 as they are, or packed two to a byte."""

    array: Array
    packed: bool

    def vector(self, at: Expr, dot: Dot) -> tuple[Expr, int]:
        """(k + offset, offset) of a vector of the dot product, of its left dtype, from element
        `at` on (even)."""
        count = dot.lanes * dot.depth
        if self.packed:
            bytes_at = nest.ramp(tirx.floordiv(at, 2), count // 2)
            nibbles = _expanded(self.array[bytes_at], dot.left, count)
            eight = nest.splat(nest.const(8, dot.left), count)
            return tirx.bitwise_xor(nibbles, eight), 8
        k = self.array[nest.ramp(at, count)]
        if not dot.bytes:
            return nest.cast(k, dot.left, count), 0
        moved = tirx.bitwise_xor(k, nest.splat(nest.const(-128, "int8"), count))
        return tirx.reinterpret(f"uint8x{count}", moved), 128

    def offset(self, dot: Dot) -> int:
        """What `vector` adds."""
        return 8 if self.packed else 128 if dot.bytes else 0

    def scalar(self, i: Expr) -> Expr:
        """k of one element, int32."""
        if not self.packed:
            return nest.cast(self.array[i], "int32")
        byte = nest.cast(self.array[tirx.floordiv(i, 2)], "int32")
        nibble = tirx.shift_right(byte, nest.cast(tirx.floormod(i, 2) * 4, "int32"))
        low, eight = nest.const(0xF, "int32"), nest.const(8, "int32")
        return tirx.bitwise_xor(tirx.bitwise_and(nibble, low), eight) - eight

    def positive(self, at: Expr, count: int = LANES) -> Expr:
        """boolx16: which of 16 elements from `at` on (even) are not negative; or of `count`."""
        if self.packed:
            packed = self.array[nest.ramp(tirx.floordiv(at, 2), count // 2)]
            if count == LANES:
                return _not_negative(packed)
            return _expanded(packed, "uint8", count) < nest.splat(nest.const(8, "uint8"), count)
        return self.array[nest.ramp(at, count)] >= nest.splat(nest.zero("int8"), count)
