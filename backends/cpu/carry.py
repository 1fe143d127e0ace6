"""Carried stochastic rounding in registers: where runs of rows begin, and one step of a run.

A column's carry goes from row to row, so columns stand side by side in vectors and rows follow one
another. Only the first row of sixteen reads draws: Philox is a tenth of what it is with a draw for
every element.
"""

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.philox import BLOCK, Philox
from sqcompile.backends.cpu.rounding import below, bits_of, same
from sqcompile.ops.carried import BELOW_ONE


class Starts:
    """The carries with which runs begin: `draws` numbers of the stream in a row, in scratch."""

    def __init__(self, philox: Philox, draws: int) -> None:
        self.philox = philox
        self.blocks = (draws + BLOCK - 2) // BLOCK + 1
        self.held = nest.workspace(max(self.blocks * BLOCK, nest.STACK), "float32")
        self.skipped = nest.scratch(1, "int32")

    def fill(self, first: Expr, count: Expr) -> None:
        """Draw number `first` and those after it, `count` in all."""
        block = tirx.floordiv(first, BLOCK)
        with nest.serial(tirx.floordiv(first + count - 1, BLOCK) - block + 1, "block") as index:
            for place, draw in enumerate(self.philox.draws(block + index)):
                self.held.store(nest.ramp(index * BLOCK + place * LANES), uniform(draw))
        self.skipped.store(0, first - block * BLOCK)

    def carry(self, index: Expr, lanes: int = LANES) -> "Carry":
        """A carry that begins as the number `index` places after the first, in a register."""
        kept = self.in_place(index, lanes)
        return Carry.register(self.held[kept.at], lanes)

    def in_place(self, index: Expr, lanes: int = LANES) -> "Carry":
        """The same, that replaces the number."""
        return Carry(self.held, self.skipped[0] + index, lanes)


class Carry:
    """The carry of a vector of columns, or of one, at a place of an array."""

    def __init__(self, array: Array, at: Expr, lanes: int = LANES) -> None:
        self.array, self.lanes = array, lanes
        self.at = at if lanes == 1 else nest.ramp(at, lanes)

    @classmethod
    def register(cls, start: Expr, lanes: int = LANES) -> "Carry":
        """One that begins as `start` and stays in a register."""
        carry = cls(nest.scratch(lanes, "float32"), 0, lanes)
        carry.array.store(carry.at, start)
        return carry

    def step(self, t: Expr) -> Expr:
        """t of the next row (a product behind a fence) -> v = t + c, whose floor is the integer.
        Then c is what v loses, below 1."""
        moved = Carry.register(t + self.array[self.at], self.lanes)
        v = moved.array[moved.at]
        self.array.store(self.at, tirx.min(v - below(v), same(BELOW_ONE, "float32", v)))
        return v


def uniform(draw: Expr) -> Expr:
    """(draw + 1/2) * 2^-16, exactly: the draw in the top of a mantissa makes 1 + u."""
    mantissa = tirx.shift_left(draw, same(7, "uint32", draw))
    number = tirx.bitwise_or(mantissa, same(0x3F800040, "uint32", mantissa))
    return bits_of(number, "float32") - same(1.0, "float32", mantissa)
