"""A task of a matrix product: the tiles of some rows and some panels, of one batch.

Rows of a are read where they are, from sorted lines, or from a packed block of the task's own;
each tile's sums go from registers to the epilogue, or into totals over segments in memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.gemm_lines import Lines, Sorting
from sqcompile.backends.cpu.gemm_pack import Part, Places, Source
from sqcompile.backends.cpu.gemm_shape import ceil_div
from sqcompile.backends.cpu.gemm_tile import InPlace, Packed, PanelB, Tile
from sqcompile.backends.cpu.nest import Array, Expr

if TYPE_CHECKING:
    from sqcompile.backends.cpu.gemm import Product

FAR_BYTES = 1 << 19
"""Size of a result that is not in cache when it is written."""


class Block:
    """A task: the tiles of some rows and some panels, of one batch."""

    def __init__(self, product: "Product", batch: Expr, block: Expr, group: Expr) -> None:
        self.product, self.batch = product, batch
        shape = product.shape
        self.shape, self.dot = shape, product.dot
        self.first_tile, self.tiles = _share(shape.tiles, shape.row_blocks, block)
        self.first_panel, self.panels = _share(shape.panels, shape.column_blocks, group)
        # A packed block is as long everywhere, so the last one may begin before its first tile.
        self.width = min(shape.m, shape.block_rows)
        if not shape.in_lines:
            self.width = max(self.width, self.dot.lanes)
        latest = max(shape.m - self.width, 0)
        self.first_row = tirx.min(self.first_tile * shape.rows, latest)

    def emit(self) -> None:
        """All segments of all tiles, then the epilogue where there are totals in memory."""
        shape = self.shape
        if not self.product.in_place and not shape.lines_first:
            dtype = self.product.a.dtype if shape.in_lines else self.product.dtype_a
            self.packed = nest.scratch(self.width * shape.places, dtype)
        once = shape.columns_once
        self.packed_b = self.product.columns(1) if once else self.product.packed_b
        if shape.segments == 1:
            self._segment(0, None)
            return
        self.row_length = shape.block_panels * shape.width
        size = ceil_div(shape.tiles, shape.row_blocks) * shape.rows * self.row_length
        totals = nest.scratch(size, "int64" if shape.wide else "int32")
        with nest.serial(size, "clear") as i:
            totals.store(i, nest.zero(totals.dtype))
        with nest.serial(shape.segments, "segment") as segment:
            self._segment(segment, totals)
        with (
            self._each_panel() as panel,
            self._each_tile() as tile,
            nest.serial(shape.rows, "r") as r,
            nest.serial(shape.vectors, "v") as v,
        ):
            at = nest.ramp(self._total_at(panel, tile, r, v), self.dot.lanes)
            self._write(totals[at], panel, tile, r, v)

    @contextmanager
    def _each_panel(self) -> Iterator[Expr]:
        with nest.serial(self.panels, "panel") as panel:
            yield self.first_panel + panel

    @contextmanager
    def _each_tile(self) -> Iterator[Expr]:
        with nest.serial(self.tiles, "tile") as tile:
            yield self.first_tile + tile

    def _segment(self, segment: Expr, totals: Array | None) -> None:
        shape = self.shape
        sorting: Sorting | None = None
        if shape.in_lines and not shape.lines_first:
            sorting = self.product.sorting(self._lines(segment), self.batch, segment)
            sorting.all(self._row(self.first_tile), shape.rows)
        elif not self.product.in_place and not shape.in_lines:
            self._pack_a(segment)
        with self._each_panel() as panel:
            part: Expr = (self.batch * shape.panels + panel) * shape.segments + segment
            if shape.columns_once:
                part = 0
                self.packed_b.pack(part, self.batch, panel, segment)
            with self._each_tile() as tile:
                following = None if sorting is None else self._following(sorting, panel, tile)
                self._tile(self.packed_b[part], panel, tile, segment, totals, following)

    def _following(self, sorting: Sorting, panel: Expr, tile: Expr) -> Callable[[], None]:
        """A step of sorting the rows of the next tile, while those of the first panel multiply:
        permutations and dot products are the work of different units.

        The last tile may overlap the one that reads its rows now: they are sorted, and each step
        leaves them as they are.
        """
        done, last = nest.scratch(1, "int32"), nest.scratch(1, "int32")
        first = tirx.all(panel == self.first_panel, tile + 1 < self.first_tile + self.tiles)
        done.store(0, nest.zero("int32"))
        last.store(0, nest.select(first, sorting.windows.count(sorting.table), 0))

        def step() -> None:
            with nest.when(done[0] < last[0]):
                sorting.window(self._row(tile + 1), self.shape.rows, done[0])
                done.store(0, done[0] + 1)

        return step

    def _tile(
        self,
        packed_b: PanelB,
        panel: Expr,
        tile: Expr,
        segment: Expr,
        totals: Array | None,
        following: Callable[[], None] | None,
    ) -> None:
        shape = self.shape
        if totals is None and self.product.epilogue.out.size * 4 > FAR_BYTES:
            self._fetch(panel, tile)
        sums = Tile(shape, self.product.plan, self.dot)
        sums.start(packed_b)
        self._reduce(sums, packed_b, tile, segment, following)
        for r in range(shape.rows):
            for v in range(shape.vectors):
                result = sums.result(packed_b, r, v)
                if totals is None:
                    self._write(result, panel, tile, r, v)
                    continue
                at = nest.ramp(self._total_at(panel, tile, r, v), self.dot.lanes)
                wide = nest.cast(result, totals.dtype, self.dot.lanes)
                totals.store(at, totals[at] + wide)

    def _fetch(self, panel: Expr, tile: Expr) -> None:
        """Ask for the memory of a tile's results, which no pattern tells the CPU in time: stores
        wait for it otherwise (4096 x 576 x 256 runs at 83 % of the peak instead of 90 %)."""
        epilogue, shape = self.product.epilogue, self.shape
        for r in range(shape.rows):
            for v in range(shape.vectors):
                nest.prefetch(epilogue.out, epilogue.place(self._at(panel, tile, r, v)), write=True)

    def _reduce(
        self,
        sums: Tile,
        packed_b: PanelB,
        tile: Expr,
        segment: Expr,
        following: Callable[[], None] | None,
    ) -> None:
        product, shape, depth = self.product, self.shape, self.dot.depth
        rows: InPlace | Packed
        count, missing = product.quads(segment), 0
        if product.in_place or shape.in_lines:
            lines = self._lines(segment)
            start = lines.at(self._row(tile))
            rows = InPlace(lines.array, start, lines.step, product.plan, self.dot, product.dtype_a)
            if product.in_place and shape.segments == 1:
                count, missing = shape.k // depth, -shape.k % depth
        else:
            start = (self._row(tile) - self.first_row) * depth
            rows = Packed(self.packed, start, self.width, self.dot)
        ahead = self._ahead(tile, segment, following is not None)

        def step(quad: Expr) -> None:
            if ahead is not None:
                nest.prefetch(ahead.array, ahead.at(0, quad * (shape.rows * depth)))
            sums.step(rows, packed_b, quad)
            if following is not None:
                following()

        product.reduce(self.batch, segment, count, step, sums.double)
        if missing:
            assert isinstance(rows, InPlace)
            sums.step(rows.rest(missing), packed_b, count)
        if following is not None:
            with nest.serial(shape.late_windows, "window"):
                following()

    def _ahead(self, tile: Expr, segment: Expr, sorts: bool) -> Lines | None:
        """The rows that are read in lines after those of a tile: interleaved reads of them are no
        pattern. Those of the next tile, or of the one after it where that is sorted now."""
        product, shape = self.product, self.shape
        if shape.segments > 1:
            return None
        if sorts:
            start = self.batch * (shape.m * shape.k) + self._row(tile + 2) * shape.k
            return Lines(product.a, start, shape.k)
        if product.in_place or shape.lines_first:
            lines = self._lines(segment)
            return Lines(lines.array, lines.at(self._row(tile + 1)), lines.step)
        return None

    def _lines(self, segment: Expr) -> Lines:
        """The rows of a segment of a that tiles read as lines, numbered as those of the batch."""
        product, shape = self.product, self.shape
        if product.in_place:
            start = self.batch * (shape.m * shape.k) + segment * shape.segment
            return Lines(product.a, start, shape.k)
        if shape.lines_first:
            return product.sorted_lines(self.batch, segment)
        return Lines(self.packed, -self.first_row * shape.places, shape.places)

    def _row(self, tile: Expr) -> Expr:
        """The first row of a tile: the last one overlaps the one before it."""
        return tirx.min(tile * self.shape.rows, self.shape.m - self.shape.rows)

    def _pack_a(self, segment: Expr) -> None:
        product, shape, lanes = self.product, self.shape, self.dot.lanes
        start = self.batch * (shape.m * shape.k)
        source = Source(product.a, start, shape.m, shape.k, product.a_contiguous)

        def slot(v: Expr) -> Expr:
            return tirx.min(v * lanes, self.width - lanes)

        places = Places(
            ceil_div(self.width, lanes),
            self.width,
            shape.m >= lanes,
            lambda v: self.first_row + slot(v),
            slot,
        )
        product.packing_a.pack(Part(source, places, self.packed, 0, self.batch, segment))

    def _total_at(self, panel: Expr, tile: Expr, r: Expr, v: Expr) -> Expr:
        row = (tile - self.first_tile) * self.shape.rows + r
        column = (panel - self.first_panel) * self.shape.width + v * self.dot.lanes
        return row * self.row_length + column

    def _at(self, panel: Expr, tile: Expr, r: Expr, v: Expr) -> list[Expr]:
        """Coordinates of the first result of a vector."""
        at = [self._row(tile) + r, self.product.column(panel, v)]
        return [self.batch, *at] if len(self.product.epilogue.shape) == 3 else at

    def _write(self, value: Expr, panel: Expr, tile: Expr, r: Expr, v: Expr) -> None:
        """A vector of results, or the columns that there are."""
        epilogue, lanes = self.product.epilogue, self.dot.lanes
        at = self._at(panel, tile, r, v)
        if self.shape.n >= lanes:
            epilogue.vector(value, at, lanes)
            return
        held = nest.scratch(lanes, "int64" if self.shape.wide else "int32")
        held.store(nest.ramp(0, lanes), value)
        with nest.serial(self.shape.n, "column") as column:
            epilogue.element(held[column], [*at[:-1], column])


def _share(size: int, parts: int, index: Expr) -> tuple[Expr, Expr]:
    """(first, count) of part `index` of `size` things that are shared evenly."""
    first = tirx.floordiv(index * size, parts)
    return first, tirx.floordiv((index + 1) * size, parts) - first
