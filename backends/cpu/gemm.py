"""The kernel of a matrix product, built of its plan, tables, packed operands and tiles.

b is packed once, in panels of a tile's columns; a is read where it is when its values can be
used as they stand, and packed a block of rows at a time otherwise. Tasks are blocks of rows
times groups of panels, and results go from registers to the epilogue. A reduction that is long
(more than a panel of b in cache, or than int32 holds) runs in segments, with totals in memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import prod

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.epilogue import Epilogue
from sqcompile.backends.cpu.gemm_groups import Exponents, Factors, Sorted
from sqcompile.backends.cpu.gemm_pack import Packing, Part, Places, Source
from sqcompile.backends.cpu.gemm_plan import plan
from sqcompile.backends.cpu.gemm_shape import ceil_div, shape_of
from sqcompile.backends.cpu.gemm_tile import InPlace, Packed, PanelB, Tile, dtypes, multiplied
from sqcompile.backends.cpu.machine import machine
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.kernels import KernelSpec

FAR_BYTES = 1 << 19
"""Size of a result that is not in cache when it is written."""


class Product:
    """A kernel under construction."""

    def __init__(self, spec: KernelSpec, f: nest.Function) -> None:
        cpu = machine()
        groups = spec["groups"] if f.get("exponent") is not None else 1
        self.dot = cpu.dot
        self.plan = plan(*spec.ranges("a", "b"), groups, 8 if cpu.dot.bytes else 16)
        self.shape = shape_of(spec, self.plan, cpu)
        self.epilogue = Epilogue(spec, f)
        self.a, self.b, self.exponent, self.groups = f["a"], f["b"], f.get("exponent"), groups
        self.a_contiguous, self.b_contiguous = not spec["transpose_a"], bool(spec["transpose_b"])
        self.dtype_a, self.dtype_b = dtypes(self.plan, self.dot)
        self.order: Sorted | None = None

    @property
    def in_place(self) -> bool:
        """Whether tiles read a where it is."""
        return self.shape.in_place

    def emit(self) -> None:
        """Emit the whole kernel."""
        shape = self.shape
        if not shape.batch * shape.m * shape.n:
            self.epilogue.finish(0)
            return
        self._tables()
        self._pack_b()
        extents = [shape.batch, shape.row_blocks, shape.column_blocks]
        tasks = prod(extents)
        self.epilogue.prepare(tasks)
        with nest.parallel(tasks, shape.work, "task") as task, self.epilogue.task(task):
            Block(self, *nest.unravel(task, extents)).emit()
        self.epilogue.finish(tasks)

    def _tables(self) -> None:
        factors: dict[str, Factors] = {}
        if self.exponent is not None and self.groups > 1 and self.shape.k:
            exponents = Exponents.of(self.exponent, self.groups, self.a, not self.a_contiguous)
            of_b, needed = self.plan.b.shift, self.groups - 1
            if self.plan.sorted:
                self.order = Sorted.of(exponents, self.shape, self.dtype_b)
            else:
                for name, first, last in (("b", 0, of_b), ("a", of_b, needed)):
                    if last > first:
                        factors[name] = Factors.of(exponents, self.dot, self.shape.k, (first, last))
        packing = partial(Packing, self.dot, self.shape, order=self.order)
        self.packing_a = packing(self.plan.a, self.dtype_a, factors.get("a"))
        self.packing_b = packing(self.plan.b, self.dtype_b, factors.get("b"), masked=True)

    def columns(self, parts: int) -> "Columns":
        """Memory for packed parts of b."""
        shape = self.shape
        packed = nest.scratch(parts * shape.quads * shape.width * shape.depth, self.dtype_b)
        corrected = bool(self.plan.a.bias)
        return Columns(
            self, packed, nest.scratch(parts * shape.width, "int32") if corrected else None
        )

    def _pack_b(self) -> None:
        """All of b, in parallel, unless tasks pack what they read."""
        shape = self.shape
        if shape.columns_once:
            return
        extents = [shape.batch, shape.panels, shape.segments]
        self.packed_b = self.columns(prod(extents))
        with nest.parallel(prod(extents), shape.batch * shape.n * shape.k // 4, "part") as part:
            self.packed_b.pack(part, *nest.unravel(part, extents))

    def column(self, panel: Expr, v: Expr) -> Expr:
        """The first column of a vector: the last one overlaps the one before it."""
        if self.shape.n < self.dot.lanes:
            return 0
        at = (panel * self.shape.vectors + v) * self.dot.lanes
        return tirx.min(at, self.shape.n - self.dot.lanes)

    def quads(self, segment: Expr) -> Expr:
        """Packed quads of a segment that is in order."""
        length = self.packing_b.length(segment)
        return tirx.floordiv(length + (self.dot.depth - 1), self.dot.depth)

    def reduce(
        self,
        batch: Expr,
        segment: Expr,
        count: Expr,
        step: Callable[[Expr], None],
        double: Callable[[], None],
    ) -> None:
        """Call step(quad) in a loop over `count` quads, or over those of a sorted segment with
        double() between groups."""
        if self.order is None:
            with nest.serial(count, "quad") as quad:
                step(quad)
            return
        table = self.order.table(batch, segment)
        with nest.serial(self.shape.groups, "group") as group:
            double()
            first, end = self.order.bound(table, group), self.order.bound(table, group + 1)
            with nest.serial(end - first, "quad") as quad:
                step(first + quad)


class Columns:
    """Packed panels of b, and what corrects their columns where a is biased."""

    def __init__(self, product: Product, packed: Array, correction: Array | None) -> None:
        self.product, self.packed, self.correction = product, packed, correction
        self.shape = product.shape
        self.size = self.shape.quads * self.shape.width * self.shape.depth

    def __getitem__(self, part: Expr) -> PanelB:
        base, columns = part * self.size, part * self.shape.width
        return PanelB(self.packed, base, self.correction, columns)

    def pack(self, part: Expr, batch: Expr, panel: Expr, segment: Expr) -> None:
        """Pack one segment of a panel as number `part`."""
        product, shape = self.product, self.shape
        start = batch * (shape.n * shape.k)
        source = Source(product.b, start, shape.n, shape.k, product.b_contiguous)
        places = Places(
            shape.vectors,
            shape.width,
            shape.n >= shape.lanes,
            lambda v: product.column(panel, v),
            lambda v: v * shape.lanes,
        )
        made = Part(source, places, self.packed, part * self.size, batch, segment)
        product.packing_b.pack(made)
        if self.correction is not None:
            self._correct(self[part], batch, segment)

    def _correct(self, panel: PanelB, batch: Expr, segment: Expr) -> None:
        """-bias * sum of b of every column of a panel."""
        assert panel.correction is not None
        product, dot, shape = self.product, self.product.dot, self.shape
        lanes, size = nest.ramp(0, dot.lanes), dot.lanes * dot.depth
        ones = nest.splat(nest.const(1, product.dtype_a), size)
        total = nest.scratch(dot.lanes, "int32")
        with nest.serial(shape.vectors, "v") as v:
            total.store(lanes, nest.splat(nest.zero("int32"), dot.lanes))

            def step(quad: Expr) -> None:
                b = dot.loaded(panel.array, panel.base + (quad * shape.vectors + v) * size)
                total.store(lanes, multiplied(product.plan, dot, total[lanes], ones, b))

            def double() -> None:
                total.store(lanes, total[lanes] + total[lanes])

            product.reduce(batch, segment, product.quads(segment), step, double)
            bias = nest.splat(nest.const(-product.plan.a.bias, "int32"), dot.lanes)
            out = nest.ramp(panel.correction_base + v * dot.lanes, dot.lanes)
            panel.correction.store(out, total[lanes] * bias)


class Block:
    """A task: the tiles of some rows and some panels, of one batch."""

    def __init__(self, product: Product, batch: Expr, block: Expr, group: Expr) -> None:
        self.product, self.batch = product, batch
        shape = product.shape
        self.shape, self.dot = shape, product.dot
        self.first_tile, self.tiles = _share(shape.tiles, shape.row_blocks, block)
        self.first_panel, self.panels = _share(shape.panels, shape.column_blocks, group)
        # A packed block is as long everywhere, so the last one may begin before its first tile.
        self.width = max(min(shape.m, shape.block_rows), self.dot.lanes)
        latest = max(shape.m - self.width, 0)
        self.first_row = tirx.min(self.first_tile * shape.rows, latest)

    def emit(self) -> None:
        """All segments of all tiles, then the epilogue where there are totals in memory."""
        shape = self.shape
        if not self.product.in_place:
            size = shape.quads * self.width * self.dot.depth
            self.packed = nest.scratch(size, self.product.dtype_a)
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
        if not self.product.in_place:
            self._pack_a(segment)
        with self._each_panel() as panel:
            part: Expr = (self.batch * shape.panels + panel) * shape.segments + segment
            if shape.columns_once:
                part = 0
                self.packed_b.pack(part, self.batch, panel, segment)
            with self._each_tile() as tile:
                self._tile(self.packed_b[part], panel, tile, segment, totals)

    def _tile(
        self, packed_b: PanelB, panel: Expr, tile: Expr, segment: Expr, totals: Array | None
    ) -> None:
        shape = self.shape
        if totals is None and self.product.epilogue.out.size * 4 > FAR_BYTES:
            self._fetch(panel, tile)
        sums = Tile(shape, self.product.plan, self.dot)
        sums.start(packed_b)
        self._reduce(sums, packed_b, tile, segment)
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
                row = self.batch * shape.m + self._row(tile) + r
                nest.prefetch(
                    epilogue.out, row * shape.n + self.product.column(panel, v), write=True
                )

    def _reduce(self, sums: Tile, packed_b: PanelB, tile: Expr, segment: Expr) -> None:
        product, shape, depth = self.product, self.shape, self.dot.depth
        rows: InPlace | Packed
        ahead = product.in_place and shape.segments == 1
        count, missing = product.quads(segment), 0
        if product.in_place:
            row = self.batch * shape.m + self._row(tile)
            start = row * shape.k + segment * shape.segment
            rows = InPlace(product.a, start, shape.k, product.plan, self.dot, product.dtype_a)
            if shape.segments == 1:
                count, missing = shape.k // depth, -shape.k % depth
        else:
            start = (self._row(tile) - self.first_row) * depth
            rows = Packed(self.packed, start, self.width, self.dot)
        following = self.batch * shape.m + self._row(tile + 1)

        def step(quad: Expr) -> None:
            if ahead:  # the rows of the next tile: interleaved reads of them are no pattern
                nest.prefetch(product.a, following * shape.k + quad * (shape.rows * depth))
            sums.step(rows, packed_b, quad)

        product.reduce(self.batch, segment, count, step, sums.double)
        if missing:
            assert isinstance(rows, InPlace)
            sums.step(rows.rest(missing), packed_b, count)

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

    def _write(self, value: Expr, panel: Expr, tile: Expr, r: Expr, v: Expr) -> None:
        """A vector of results, or the columns that there are."""
        epilogue, lanes = self.product.epilogue, self.dot.lanes
        at = [self._row(tile) + r, self.product.column(panel, v)]
        if len(epilogue.shape) == 3:
            at.insert(0, self.batch)
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
