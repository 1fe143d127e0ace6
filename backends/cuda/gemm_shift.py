"""Group shifts of a product: the operand that takes them is packed, shifted, before the product.

A step of k is multiplied by 2^s, s = groups - 1 - exponent. The factor may go into either
operand. Where the proven range of one, shifted as far as groups go, still fits in a byte, it takes
all; where what both have to spare is enough, they share it; otherwise the shifted integers are cut
into planes of a byte, and the product has a sum for each plane: (256 h + l) b = 256 h b + l b.
All is exact modulo 2^32, and what a plane's sum loses there, the whole, which fits, does not.

What is packed lies along k in whole chunks, so that the product copies it as it stands.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from sqcompile.backends.cuda import grid
from sqcompile.backends.cuda.gemm_operands import Matrix, Operand
from sqcompile.backends.cuda.gemm_stage import CHUNK, WORD
from sqcompile.backends.cuda.grid import Array, Expr
from sqcompile.backends.kernels import TensorSpec

Range = tuple[int, int]
BYTE, NIBBLE = 8, 4
"""Bits of an integer in a plane."""
Shift = Callable[[Expr, Expr], Expr]
"""shift(z, k) of a step, as int32."""


@dataclass(frozen=True)
class Shared:
    """Which part of a shift an operand takes, min(max(s - first, 0), most), in how many planes;
    most = 0: none."""

    first: int = 0
    most: int = 0
    planes: int = 1

    def part(self, shift: Expr) -> Expr:
        """The part of a shift."""
        own = tirx.max(shift - self.first, grid.zero("int32")) if self.first else shift
        return tirx.min(own, grid.const(self.most, "int32"))


def divided(
    ranges: tuple[Range, Range], groups: int, sizes: tuple[int, int], bits: int = BYTE
) -> list[Shared]:
    """How both operands, of these ranges and sizes, share shifts up to groups - 1 in planes of so
    many bits: the smaller one takes what it can."""
    needed = groups - 1
    if not needed:
        return [Shared(), Shared()]
    order = sorted((0, 1), key=lambda side: sizes[side])
    spare = [_spare(one, bits) for one in ranges]
    found = [Shared(), Shared()]
    for side in order:
        if spare[side] >= needed:
            found[side] = Shared(0, needed)
            return found
    if sum(spare) >= needed:
        one, other = order
        found[one] = Shared(0, spare[one])
        found[other] = Shared(spare[one], needed - spare[one])
        return found
    (side, _) = order
    found[side] = Shared(0, needed, _planes(ranges[side], needed, bits))
    return found


def shares(range_: Range, groups: int, bits: int = BYTE) -> Shared:
    """All shifts of `groups` in an operand of this range."""
    return Shared(0, groups - 1, _planes(range_, groups - 1, bits))


def signs(a: Array, b: Array, ranges: tuple[Range, Range], bits: int) -> tuple[bool, bool]:
    """Whether the integers of both operands are signed: as their types are, or, where these are
    wider than the integers, as their ranges."""
    if bits == BYTE:
        return a.dtype == "int8", b.dtype == "int8"
    return ranges[0][0] < 0, ranges[1][0] < 0


def _spare(range_: Range, bits: int) -> int:
    """How far integers of a range can be shifted within a plane."""
    shift = 0
    while _planes(range_, shift + 1, bits) == 1 and shift < bits:
        shift += 1
    return shift


def _planes(range_: Range, shift: int, bits: int) -> int:
    """Planes of the shifted integers of a range."""
    low, high = (value << shift for value in range_)
    planes, signed = 1, low < 0
    while high >= 1 << (bits * planes - signed) or (signed and low < -(1 << (bits * planes - 1))):
        planes += 1
    return planes


def packed(
    operand: Operand, batch: int, shared: Shared, shift: Shift | None, bits: int = BYTE
) -> Sequence[Matrix]:
    """A launch that packs an operand, its part of shift(z, k) applied: its planes, the lowest
    first, whose steps are bytes: of one integer, or of two nibbles."""
    per_word = 32 // bits
    steps = -(-operand.steps // (per_word * CHUNK // WORD)) * CHUNK
    size = operand.rows * steps
    plane = batch * size
    bytes_ = grid.workspace(shared.planes * plane, "int8")
    words = grid.viewed(bytes_, TensorSpec((max(shared.planes * plane // WORD, 1),), "int32"))
    extents = [batch, operand.rows, steps // WORD]
    if operand.adjacent:
        extents = [batch, steps // WORD, operand.rows]

    def emit(item: Expr) -> None:
        z, *inner = grid.unravel(item, extents)
        row, word = reversed(inner) if operand.adjacent else inner
        line = operand.row(z, row).kept()
        values = [
            _value(operand, line, z, word * per_word + i, shared, shift) for i in range(per_word)
        ]
        for number in range(shared.planes):
            at = [z, row, word, number]
            lengths = [size // WORD, steps // WORD, 1, plane // WORD]
            words.store(grid.linear(at, lengths), word_of(values, number, bits))

    grid.each(batch * operand.rows * (steps // WORD), emit)
    return [
        Matrix(bytes_, operand.rows, steps, steps, 1, size if batch > 1 else 0, number * plane)
        for number in range(shared.planes)
    ]


def _value(
    operand: Operand, line: object, z: Expr, k: Expr, shared: Shared, shift: Shift | None
) -> Expr:
    step = operand.step(z, k).kept()
    at, there = operand.at(line, step)  # type: ignore[arg-type]
    there = grid.keep(there)
    value = tirx.if_then_else(there, grid.cast(operand.array[at], "int32"), grid.zero("int32"))
    if not shared.most or shift is None:
        return grid.keep(value)
    own = tirx.if_then_else(there, shared.part(shift(z, k)), grid.zero("int32"))
    bits = tirx.shift_left(grid.cast(grid.keep(value), "uint32"), grid.cast(own, "uint32"))
    return grid.keep(grid.cast(bits, "int32"))


def word_of(values: Sequence[Expr], plane: int, bits: int) -> Expr:
    """Plane number `plane` of as many integers as a word has."""
    total: Expr = None
    for i, value in enumerate(values):
        part = tirx.shift_right(value, grid.const(bits * plane, "int32")) if plane else value
        part = tirx.bitwise_and(part, grid.const((1 << bits) - 1, "int32"))
        moved = tirx.shift_left(grid.cast(part, "uint32"), grid.const(bits * i, "uint32"))
        total = moved if total is None else tirx.bitwise_or(total, moved)
    return grid.cast(total, "int32")


def exponent_shift(exponent: Array, groups: int, batch_step: int, step: int) -> Shift:
    """groups - 1 - exponent, at step k of number z."""

    def shift(z: Expr, k: Expr) -> Expr:
        at = z * batch_step + k * step if batch_step else k * step
        return groups - 1 - grid.cast(exponent[at], "int32")

    return shift
