"""The weight side of Winograd's convolution: OIHW weights to transformed, interleaved blocks."""

from dataclasses import dataclass

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.machine import Dot
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.winograd_input import Shifts, clear
from sqcompile.backends.cpu.winograd_ranges import SIDE, TAPS, WEIGHT, Split, padded

ORDER = ((1, 2), (0, 3))
"""Rows (and columns) of positions in the order in which they are summed: a pair at a time."""


@dataclass(frozen=True)
class Filters:
    """Weights (O, C, 3, 3) seen as `depth` reduced channels times `columns` results: fprop
    reduces C, dgrad (`flipped`) reduces O and turns the taps around.

    A block holds `vectors` vectors of columns: [column pair][column][row pair][depth / 4][row of
    the pair][vector][lane][4 channels], as products read it.
    """

    depth: int
    columns: int
    flipped: bool
    vectors: int
    dot: Dot

    @property
    def width(self) -> int:
        """Columns of a block."""
        return self.vectors * self.dot.lanes

    @property
    def blocks(self) -> int:
        """Blocks of all columns."""
        return -(-self.columns // self.width)

    @property
    def steps(self) -> int:
        """Dot products over the depth."""
        return padded(self.depth, self.dot.depth) // self.dot.depth

    @property
    def vector(self) -> int:
        """Bytes of a vector."""
        return self.dot.lanes * self.dot.depth

    @property
    def pair(self) -> int:
        """Bytes of two rows of one column."""
        return self.steps * 2 * self.vectors * self.vector

    @property
    def block(self) -> int:
        """Bytes of a block."""
        return SIDE * 2 * self.pair


def place_of(filters: Filters, i: int, j: int) -> int:
    """Where position (i, j) begins in a block."""
    column = next(p * 2 + q for p, pair in enumerate(ORDER) for q, c in enumerate(pair) if c == j)
    half, within = next(
        (p, q) for p, pair in enumerate(ORDER) for q, c in enumerate(pair) if c == i
    )
    return (column * 2 + half) * filters.pair + within * filters.vectors * filters.vector


class Packer:
    """Writes blocks and the corrections of their columns: 4 x width int32 a block, for the
    results (0, 0), (0, 1), (1, 0), (1, 1) of a tile."""

    def __init__(self, filters: Filters, source: Array, shifts: Shifts, split: Split) -> None:
        self.filters, self.source, self.shifts, self.split = filters, source, shifts, split

    def pack(self, block: Expr, out: Array, start: Expr, corrections: Array, first: Expr) -> None:
        """Block number `block` to out[start ...], corrections[first ...]."""
        filters = self.filters
        dot = filters.dot
        lanes = nest.ramp(0, dot.lanes)
        for v in range(filters.vectors):
            sums = [nest.scratch(dot.lanes, "int32") for _ in TAPS]
            for one in sums:
                one.store(lanes, nest.splat(nest.zero("int32"), dot.lanes))
            with nest.serial(filters.steps, "k") as k:
                taps = self._taps(block * filters.width + v * dot.lanes, k)
                ones = nest.splat(nest.const(1, dot.left), filters.vector)
                for one, tap in zip(sums, taps, strict=True):
                    one.store(lanes, dot.add(one[lanes], ones, tap))
                at = start + k * (2 * filters.vectors * filters.vector) + v * filters.vector
                self._transform(taps, out, at)
            for result in range(4):
                factors = self.split.correction(result // 2, result % 2)
                total = nest.splat(nest.zero("int32"), dot.lanes)
                for factor, one in zip(factors, sums, strict=True):
                    if factor:
                        total = total + one[lanes] * nest.splat(factor, dot.lanes)
                at = first + result * filters.width + v * dot.lanes
                corrections.store(nest.ramp(at, dot.lanes), total)

    def _transform(self, taps: list[Expr], out: Array, at: Expr) -> None:
        size, dtype = self.filters.vector, out.dtype
        mixed = [[_mixed(factors, taps[b::3], size, dtype) for b in range(3)] for factors in WEIGHT]
        for i in range(SIDE):
            for j in range(SIDE):
                value = _mixed(WEIGHT[j], mixed[i], size, dtype)
                out.store(nest.ramp(at + place_of(self.filters, i, j), size), value)

    def _taps(self, column: Expr, k: Expr) -> list[Expr]:
        """For each tap, the weights of `lanes` columns and the depth of one step."""
        filters = self.filters
        dot = filters.dot
        found = [nest.scratch(filters.vector, "uint8") for _ in TAPS]
        for one in found:
            clear(one, 0, filters.vector)
        with nest.serial(dot.lanes, "lane") as lane:
            for d in range(dot.depth):
                inner, outer = k * dot.depth + d, column + lane
                with nest.when(tirx.all(inner < filters.depth, outer < filters.columns)):
                    base = inner * filters.columns + outer
                    if not filters.flipped:
                        base = outer * filters.depth + inner
                    for t, one in enumerate(found):
                        tap = len(TAPS) - 1 - t if filters.flipped else t
                        value = nest.cast(self.source[base * len(TAPS) + tap], "uint8")
                        value = self.shifts.weight(value, inner, 1)
                        one.store(lane * dot.depth + d, value)
        at = nest.ramp(0, filters.vector)
        kind = f"{dot.right}x{filters.vector}"
        return [nest.bound(tirx.reinterpret(kind, one[at])) for one in found]


def _mixed(factors: tuple[int, ...], values: list[Expr], lanes: int, dtype: str) -> Expr:
    """The sum of factor * value over three values."""
    if factors[1]:
        first = values[0] + values[2]
        total = first + values[1] if factors[1] > 0 else first - values[1]
    else:
        one = values[0] if factors[0] else values[2]
        total = one + one
        if factors[2] < 0:
            total = nest.splat(nest.zero(dtype), lanes) - total
    return nest.bound(total)
