"""Stochastic rounding of a scaled tensor: blocks of 128 elements, each one Philox call.

Philox is a chain of dependent products and rounding a short run of independent operations, so
the rounds of the next block stand between the vectors of this one: both then fill the CPU's
execution units, where one after the other left a third of them idle (0.36 ns an element).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.philox import BLOCK, Philox, State
from sqcompile.backends.cpu.rounding import bits_of, lanes_of, same, to_bytes
from sqcompile.backends.cpu.scaled import Factor, Scaled
from sqcompile.ops.philox import DRAWS_PER_BLOCK, ROUNDS
from sqcompile.ops.quantize import limits

TASK = 64
"""Blocks of one parallel iteration: each draws one block too many."""


@dataclass(frozen=True)
class Rounding:
    """q = clamp(floor(scaled * (scale * scale ...) + u)), the scales multiplied first; bounded:
    they come from the tensor's absmax, so that what is scaled stays within a step of the grid."""

    scaled: Scaled
    scales: Sequence[Factor]
    q: Array
    bounded: bool = False

    def moved(self, x: Expr, read: Callable[[Factor], Expr], u: Expr) -> Expr:
        """One element x of the tensor, or a vector, scaled and plus u."""
        value = x
        for factor in self.scaled.factors:
            value = value * read(factor)
        first, *others = self.scales
        scale = read(first)
        for factor in others:
            scale = scale * read(factor)
        return nest.fence(value * scale, lanes_of(x)) + u


def quantize_blocks(roundings: Sequence[Rounding], philox: Philox, bits: int) -> None:
    """Round a tensor, in one way or several that take the same draws.

    Parallel over runs of blocks. In vectors of 16, of which one can lie across the end of a row;
    element by element where rows are shorter than a vector, and in the last block.
    """
    size = roundings[0].q.size
    short = any(len(one.scaled.extents) > 1 and one.scaled.extents[-1] < LANES for one in roundings)
    whole = 0 if short else size // BLOCK
    if whole:
        _whole_blocks(roundings, philox, bits, whole)
    if size > whole * BLOCK:
        blocks = -(-(size - whole * BLOCK) // BLOCK)
        with nest.parallel(blocks, blocks * BLOCK * 8, "block") as task:
            block = task + whole if whole else task
            held = nest.scratch(BLOCK, "uint32")
            for index, draw in enumerate(philox.draws(block)):
                held.store(nest.ramp(index * LANES), draw)
            with nest.serial(tirx.min(BLOCK, size - block * BLOCK), "e") as e:
                at = block * BLOCK + e
                u = uniform(held[e])
                for one in roundings:
                    x = one.scaled.x[one.scaled.place(at)]
                    moved = one.moved(x, _element(one.scaled.extents, at), u)
                    (value,) = to_bytes([moved], *limits(bits, True), down=True)
                    one.q.store(at, value)


def _element(extents: Sequence[int], at: Expr) -> Callable[[Factor], Expr]:
    """What reads a factor for the element at a flat index."""
    *heads, inner = extents
    row = nest.unravel(tirx.floordiv(at, inner), heads)
    column = tirx.floormod(at, inner)
    return lambda factor: factor.read(row, column, 1)


def _whole_blocks(roundings: Sequence[Rounding], philox: Philox, bits: int, whole: int) -> None:
    """The first `whole` blocks."""
    tasks = -(-whole // TASK)
    with nest.parallel(tasks, whole * BLOCK * 8, "task") as task:
        first = task * TASK
        draws = Draws(philox, first)
        with nest.serial(tirx.min(TASK, whole - first), "block") as i:
            block = first + i
            moved: list[list[Expr]] = [[] for _ in roundings]

            def vector(index: int, u: Expr) -> None:
                start = block * BLOCK + index * LANES
                for one, values in zip(roundings, moved, strict=True):
                    x = one.scaled.x[nest.ramp(one.scaled.place(start))]
                    values.append(one.moved(x, _reader(one.scaled.extents, start), u))
                    if index % 4 == 3:
                        store_bytes(one.q, start - 3 * LANES, values, bits, one.bounded)
                        values.clear()

            draws.block(block, vector)


class Draws:
    """The draws of consecutive blocks, from block `first` on."""

    def __init__(self, philox: Philox, first: Expr) -> None:
        self.philox = philox
        self.slots = [nest.scratch(LANES, "uint32") for _ in range(DRAWS_PER_BLOCK // 2)]
        state = philox.start(first)
        for index in range(ROUNDS):
            state.round(index)
        self._hold(state)

    def block(self, block: Expr, vector: Callable[[int, Expr], None]) -> None:
        """vector(index, u) for the eight vectors of a block, with rounds of the next between."""
        following = self.philox.start(block + 1)
        for index in range(DRAWS_PER_BLOCK):
            word = self.slots[index // 2][nest.ramp(0)]
            vector(index, (_uniform_low, _uniform_high)[index % 2](word))
            for r in range(*(ROUNDS * (index + i) // DRAWS_PER_BLOCK for i in (0, 1))):
                following.round(r)
        self._hold(following)

    def _hold(self, state: State) -> None:
        for slot, word in zip(self.slots, state.words(), strict=True):
            slot.store(nest.ramp(0), word)


def store_bytes(
    q: Array, at: Expr, values: Sequence[Expr], bits: int, bounded: bool = False
) -> None:
    """Round vectors down, to elements of q from `at` on."""
    for value in to_bytes(values, *limits(bits, True), down=True, bounded=bounded):
        q.store(nest.ramp(at, lanes_of(value)), value)
        at = at + lanes_of(value)


def _reader(extents: Sequence[int], start: Expr) -> Callable[[Factor], Expr]:
    """What reads a factor for the LANES elements from the flat index `start` on."""
    *heads, inner = extents
    if not heads:
        return lambda factor: factor.read([], start, LANES)
    row, column = tirx.floordiv(start, inner), tirx.floormod(start, inner)
    if inner % LANES:
        return lambda factor: factor.across(row, extents, column)
    return lambda factor: factor.read(nest.unravel(row, heads), column, LANES)


def uniform(draw: Expr) -> Expr:
    """(draw + 1/2) * 2^-16, exactly: the draw in the top of a mantissa makes 1 + u."""
    mantissa = tirx.shift_left(draw, same(7, "uint32", draw))
    return _with_exponent(mantissa, 0x3F800040, 1.0)


def _uniform_high(word: Expr) -> Expr:
    """`uniform` of the draw in the high half."""
    return _with_exponent(tirx.shift_right(word, same(16, "uint32", word)), 0x43000000, _BELOW)


def _uniform_low(word: Expr) -> Expr:
    """`uniform` of the draw in the low half, where it lies: no shift."""
    return _with_exponent(tirx.bitwise_and(word, same(0xFFFF, "uint32", word)), 0x43000000, _BELOW)


_BELOW = 2.0**7 - 2.0**-17
"""128 less half a step: 128 + draw * 2^-16, which ends in the draw, minus this is exact."""


def _with_exponent(mantissa: Expr, exponent: int, less: float) -> Expr:
    number = tirx.bitwise_or(mantissa, same(exponent, "uint32", mantissa))
    return bits_of(number, "float32") - same(less, "float32", mantissa)
