"""The products of Winograd's convolution, and the results that come from them.

A group is TILES tiles by VECTORS vectors of columns. For one column of the 4 x 4 positions, the
products of rows 1 and 2 fill two sets of accumulators; their sum and difference then take the
products of rows 0 and 3, so that A^T costs two additions and no memory. Columns are combined in
the same way, two of them by way of L1.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.channel_sums import ChannelSums
from sqcompile.backends.cpu.epilogue import Epilogue
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.winograd_plan import TILES, VECTORS, Plan
from sqcompile.backends.cpu.winograd_ranges import OUTPUT, SIDE
from sqcompile.backends.cpu.winograd_weight import ORDER


@dataclass(frozen=True)
class Operands:
    """What a group of products reads: transformed inputs of `rows` tile rows from `row` on, the
    block of weights at weights[block] and its corrections, for columns from `column` on, whose
    channel sums stand at `place`."""

    inputs: Array
    row: Expr
    rows: Expr
    weights: Array
    block: Expr
    corrections: Array
    correction: Expr
    column: Expr
    place: Expr


Cell = tuple[int, int]
"""A tile and a vector of columns."""
Sums = dict[tuple[int, Cell], Array]


class Products:
    """Groups of tiles: 16 positions of a block of columns, and the results."""

    def __init__(
        self, made: Plan, epilogue: Epilogue, sums: ChannelSums | None, steps: Expr, rows: int
    ) -> None:
        self.plan, self.epilogue, self.channel_sums, self.steps = made, epilogue, sums, steps
        self.plane = made.plane(rows)
        self.cells = [(t, v) for t in range(TILES) for v in range(VECTORS)]
        self.lanes = made.dot.lanes
        self.own = nest.ramp(0, self.lanes)
        self.kept = nest.scratch(4 * len(self.cells) * self.lanes, "int32")
        self.results: Array | None = None
        self.partial = made.filters.columns % made.filters.width != 0
        if self.partial or sums is not None:
            self.results = nest.scratch(2 * len(self.cells) * self.lanes, "int32")

    def group(self, group: Expr, o: Operands) -> None:
        """The results of a group of tiles in the columns of a block."""
        sums = {
            (pair, cell): nest.scratch(self.lanes, "int32")
            for pair in range(2)
            for cell in self.cells
        }
        with nest.serial(2, "column") as column:
            self._column(group, o, column, column + 1, sums)
            for (row, cell), one in sums.items():
                self.kept.store(self._kept(column, row, cell), one[self.own])
        for half in range(2):
            self._column(group, o, 2 + half, ORDER[1][half], sums)
            for (row, cell), one in sums.items():
                one.store(self.own, self._result(o, half, row, cell, one[self.own]))
            self._write(group, o, half, sums)
            self._sum(group, o, half, sums)

    def _kept(self, column: Expr, row: int, cell: Cell) -> Expr:
        index = (column * 2 + row) * len(self.cells) + self.cells.index(cell)
        return nest.ramp(index * self.lanes, self.lanes)

    def _result(self, o: Operands, half: int, row: int, cell: Cell, total: Expr) -> Expr:
        first, second = (self.kept[self._kept(c, row, cell)] for c in range(2))
        total = total + (first + second if OUTPUT[half][2] > 0 else first - second)
        at = o.correction + (row * 2 + half) * self.plan.filters.width + cell[1] * self.lanes
        total = total + o.corrections[nest.ramp(at, self.lanes)]
        return tirx.shift_right(total, nest.splat(nest.const(2, "int32"), self.lanes))

    def _column(self, group: Expr, o: Operands, index: Expr, column: Expr, sums: Sums) -> None:
        """sums[row, cell] = A^T of one column of positions, the index-th in ORDER."""
        for one in sums.values():
            one.store(self.own, nest.splat(nest.zero("int32"), self.lanes))
        for half in range(2):
            self._add(group, o, index, column, half, sums)
            if half == 0:
                for cell in self.cells:
                    one, two = (nest.bound(sums[p, cell][self.own]) for p in (0, 1))
                    sums[0, cell].store(self.own, one + two)
                    sums[1, cell].store(self.own, one - two)

    def _add(
        self, group: Expr, o: Operands, index: Expr, column: Expr, half: int, sums: Sums
    ) -> None:
        filters, depth, dot = self.plan.filters, self.plan.image.depth, self.plan.dot
        first = group * (TILES * depth) + column * self.plane
        base = o.block + (index * 2 + half) * filters.pair
        with nest.serial(self.steps, "k") as k:
            for pair in range(2):
                at = base + (k * 2 + pair) * (VECTORS * filters.vector)
                right = [
                    nest.bound(dot.loaded(o.weights, at + v * filters.vector))
                    for v in range(VECTORS)
                ]
                row = first + ORDER[half][pair] * SIDE * self.plane + k * dot.depth
                for tile in range(TILES):
                    left = nest.bound(dot.repeated(o.inputs, row + tile * depth))
                    for v, one in enumerate(right):
                        total = sums[pair, (tile, v)]
                        total.store(self.own, dot.add(total[self.own], left, one))

    def _write(self, group: Expr, o: Operands, half: int, sums: Sums) -> None:
        if self.partial:
            self._write_part(group, o, half, sums)
            return
        for tile in range(TILES):
            with self._place(group * TILES + tile, o, half) as (n, y, x):
                for row in range(2):
                    with self._row(y + row, row):
                        for v in range(VECTORS):
                            at = [n, y + row, x, o.column + v * self.lanes]
                            self.epilogue.vector(sums[row, (tile, v)][self.own], at, self.lanes)

    def _write_part(self, group: Expr, o: Operands, half: int, sums: Sums) -> None:
        """Where the last block holds fewer columns: by way of memory."""
        width = self.plan.filters.width
        length = tirx.min(width, self.plan.filters.columns - o.column)
        with self._each(group, o, half, sums) as (results, at, (n, y, x)):
            self.epilogue.row(results, at, [n, y, x, o.column], length)

    def _sum(self, group: Expr, o: Operands, half: int, sums: Sums) -> None:
        """Add results to the sums of channels: all of a group's, or in memory those that exist."""
        channel_sums = self.channel_sums
        if channel_sums is None:
            return
        _, height, width, _ = self.plan.out
        if height % 2 == width % 2 == 0:
            whole = (group + 1) * TILES <= o.rows * self.plan.image.tiles
            with nest.when(whole):
                columns = [
                    [one[self.own] for (_, (_, v)), one in sums.items() if v == vector]
                    for vector in range(VECTORS)
                ]
                channel_sums.add(o.place, columns)
        else:
            whole = nest.const(0, "bool")
        with nest.when(tirx.Not(whole)), self._each(group, o, half, sums) as (results, at, _):
            ends = [nest.ramp(at + v * self.lanes, self.lanes) for v in range(VECTORS)]
            channel_sums.add(o.place, [[results[end]] for end in ends])

    @contextmanager
    def _each(
        self, group: Expr, o: Operands, half: int, sums: Sums
    ) -> Iterator[tuple[Array, Expr, tuple[Expr, Expr, Expr]]]:
        """A loop over the results of a group that exist: (memory, where one stands, its image,
        row and column)."""
        results, width = self.results, self.plan.filters.width
        assert results is not None
        for (row, cell), one in sums.items():
            index = row * len(self.cells) + self.cells.index(cell)
            results.store(nest.ramp(index * self.lanes, self.lanes), one[self.own])
        with (
            nest.loops([TILES, 2], "result") as (tile, row),
            self._place(group * TILES + tile, o, half) as (n, y, x),
            self._row(y + row, 1),
        ):
            yield results, (row * TILES + tile) * width, (n, y + row, x)

    @contextmanager
    def _row(self, y: Expr, row: int) -> Iterator[None]:
        """Whether row y of the results exists: the second of a tile may not."""
        if row and self.plan.out[1] % 2:
            with nest.when(y < self.plan.out[1]):
                yield
        else:
            yield

    @contextmanager
    def _place(self, tile: Expr, o: Operands, half: int) -> Iterator[tuple[Expr, Expr, Expr]]:
        """Image, row and column of the result (0, half) of a tile, if it exists."""
        image = self.plan.image
        row, column = o.row + tirx.floordiv(tile, image.tiles), tirx.floormod(tile, image.tiles)
        n, y = tirx.floordiv(row, image.rows), 2 * tirx.floormod(row, image.rows)
        x = 2 * column + half
        with nest.when(tirx.all(tile < o.rows * image.tiles, x < self.plan.out[2])):
            yield n, y, x
