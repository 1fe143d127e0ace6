"""Carried stochastic rounding of a scaled tensor: 16 rows of 64 columns at a time.

The carries of the columns stay in registers, so the rows of a strip of columns follow one another;
where a few rows are 64 elements together, those are what is narrowed and stored at once. The last
strip of a row may overlap the one before: the same integers are written twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.carry import Starts
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.philox import Philox
from sqcompile.backends.cpu.rounding import clamp, floor_to_int8, lanes_of, to_bytes
from sqcompile.backends.cpu.scaled import Factor, Scaled
from sqcompile.ops.carried import ROWS
from sqcompile.ops.quantize import limits

STRIP = 4 * LANES
"""Columns whose carries are in registers together: their integers fill a vector of bytes."""
TILE = 2048
"""Columns of a task, at most: their first carries take 8 KB."""
TASK = 8192
"""Elements of a task of whole rows, about."""


@dataclass(frozen=True)
class Rounding:
    """q = floor(scaled * (scale * scale ...) + carry), clamped, the scales multiplied first;
    bounded: they come from the tensor's absmax, so that what is scaled stays within a step of the
    grid."""

    scaled: Scaled
    scales: Sequence[Factor]
    q: Array
    bounded: bool = False

    def of(self, row: Expr, column: Expr, lanes: int, bits: int) -> Expr:
        """t of an element of the tensor seen as rows, or of a vector of them."""
        *heads, inner = self.scaled.extents
        columns = _columns(self.q)
        at = row * columns + column
        if inner % columns == 0:
            joined = inner // columns  # rows of the tensor in a row of the merged extents
            head, place = tirx.floordiv(row, joined), tirx.floormod(row, joined) * columns + column
        else:  # a row of the tensor does not lie in one run
            head, place = tirx.floordiv(at, inner), tirx.floormod(at, inner)
        head = nest.unravel(head, heads) if heads else []

        def read(factor: Factor) -> Expr:
            return factor.read(head, place, lanes)

        where = self.scaled.place(at)
        value = self.scaled.x[where] if lanes == 1 else self.scaled.x[nest.ramp(where, lanes)]
        for factor in self.scaled.factors:
            value = value * read(factor)
        first, *others = self.scales
        scale = read(first)
        for factor in others:
            scale = scale * read(factor)
        t = nest.fence(value * scale, lanes)
        return t if self.bounded else within(t, bits)


def within(t: Expr, bits: int) -> Expr:
    """t, which no absmax bounds, within a step of the grid."""
    low, high = limits(bits, True)
    return clamp(t, low - 1, high + 1)


def _columns(q: Array) -> int:
    return q.shape[-1] if q.shape else 1


def quantize_runs(roundings: Sequence[Rounding], philox: Philox, bits: int) -> None:
    """Round a tensor, in one way or several that begin their runs by the same draws.

    Parallel over groups of runs, and over tiles of columns where rows are long. Element by element
    where rows are shorter than a vector.
    """
    q = roundings[0].q
    columns = _columns(q)
    if not q.size:
        return
    runs = -(-(q.size // columns) // ROWS)
    tiles = -(-columns // TILE)
    width = min(columns, -(-columns // (tiles * STRIP)) * STRIP)
    group = min(runs, max(1, TASK // (ROWS * columns))) if tiles == 1 else 1
    with nest.parallel(-(-runs // group) * tiles, q.size * 8, "task") as task:
        first = tirx.floordiv(task, tiles) * group
        left = tirx.min(tirx.floormod(task, tiles) * width, columns - width) if tiles > 1 else 0
        count = tirx.min(group, runs - first) if runs % group else group
        starts = Starts(philox, group * width)
        starts.fill(first * columns + left, count * columns if tiles == 1 else width)
        with nest.serial(count, "run") as run:
            _Run(roundings, bits, starts, first + run, run * columns, left).strips(width)


class _Run:
    """Sixteen rows (of the last run perhaps less), from column `left` on; their first carries are
    `place` places after the first that was drawn."""

    def __init__(
        self,
        roundings: Sequence[Rounding],
        bits: int,
        starts: Starts,
        run: Expr,
        place: Expr,
        left: Expr,
    ) -> None:
        self.roundings, self.bits, self.starts = roundings, bits, starts
        self.columns = _columns(roundings[0].q)
        self.rows = roundings[0].q.size // self.columns
        self.first, self.place, self.left = run * ROWS, place, left

    def strips(self, width: int) -> None:
        """All of `width` columns."""
        if width < LANES:
            with nest.serial(width, "column") as column:
                self._strip(column, [0], 1)
            return
        whole, rest = divmod(width, STRIP)
        if whole:
            with nest.serial(whole, "strip") as strip:
                self._strip(strip * STRIP, range(0, STRIP, LANES))
        if rest:
            starts = [*range(0, rest - LANES + 1, LANES)]
            starts += [rest - LANES] if rest % LANES else []
            self._strip(whole * STRIP, starts)

    def _strip(self, column: Expr, offsets: Sequence[int], lanes: int = LANES) -> None:
        """The vectors of columns that begin `offsets` after `column`, down all rows."""
        carries = [
            [self.starts.carry(self.place + column + o, lanes) for o in offsets]
            for _ in self.roundings
        ]

        def take(row: Expr, rows: int) -> None:
            for rounding, columns in zip(self.roundings, carries, strict=True):
                moved = [
                    carry.step(rounding.of(row + r, self.left + column + o, lanes, self.bits))
                    for r in range(rows)
                    for carry, o in zip(columns, offsets, strict=True)
                ]
                at = row * self.columns + self.left + column
                self._store(rounding, at, offsets if rows == 1 else range(0, STRIP, LANES), moved)

        together = STRIP // self.columns if STRIP % self.columns == 0 and lanes > 1 else 1
        count = ROWS if self.rows % ROWS == 0 else tirx.min(ROWS, self.rows - self.first)
        whole = count // together if isinstance(count, int) else tirx.floordiv(count, together)
        with nest.serial(whole, "rows") as rows:
            take(self.first + rows * together, together)
        if self.rows % together:
            with nest.serial(count, "row", whole * together) as row:
                take(self.first + row, 1)

    def _store(
        self, rounding: Rounding, at: Expr, offsets: Sequence[int], moved: Sequence[Expr]
    ) -> None:
        low, high = limits(self.bits, True)
        if list(offsets) == [*range(0, STRIP, LANES)]:
            store_bytes(rounding.q, at, moved, self.bits)
            return
        for offset, v in zip(offsets, moved, strict=True):
            place = at + offset
            index = place if lanes_of(v) == 1 else nest.ramp(place, lanes_of(v))
            rounding.q.store(index, floor_to_int8(v, low, high))


def store_bytes(q: Array, at: Expr, values: Sequence[Expr], bits: int) -> None:
    """Round vectors within a step of the grid down, to elements of q from `at` on."""
    for value in to_bytes(values, *limits(bits, True), down=True, bounded=True):
        q.store(nest.ramp(at, lanes_of(value)), value)
        at = at + lanes_of(value)
