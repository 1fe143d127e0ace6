"""The kernel of a matrix product, built of its plan, tables, packed operands and tiles.

b is packed once, in panels of a tile's columns; a is read where it is when its values can be
used as they stand, from sorted lines when the reduction is sorted, and packed a block of rows at
a time otherwise. Tasks are blocks of rows
times groups of panels, and results go from registers to the epilogue. A reduction that is long
(more than a panel of b in cache, or than int32 holds) runs in segments, with totals in memory.
"""

from collections.abc import Callable
from functools import partial
from math import prod

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.epilogue import Epilogue
from sqcompile.backends.cpu.gemm_block import Block
from sqcompile.backends.cpu.gemm_groups import Exponents, Factors
from sqcompile.backends.cpu.gemm_lines import Lines, Sorting
from sqcompile.backends.cpu.gemm_order import Sorted
from sqcompile.backends.cpu.gemm_pack import Packing, Part, Places, Source
from sqcompile.backends.cpu.gemm_plan import plan
from sqcompile.backends.cpu.gemm_shape import Sides, ceil_div, shape_of
from sqcompile.backends.cpu.gemm_tile import PanelB, dtypes, multiplied
from sqcompile.backends.cpu.machine import machine
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.placement import Placement
from sqcompile.backends.kernels import KernelSpec

LINES = 32
"""Rows of a that are sorted in a task of their own."""


class Product:
    """A kernel under construction."""

    def __init__(self, spec: KernelSpec, f: nest.Function) -> None:
        cpu = machine()
        self.exponents, groups = None, 1
        if f.get("exponent") is not None and spec["groups"] > 1:
            groups = spec["groups"]
            self.exponents = Exponents.of(f["exponent"], groups, f["a"], spec["transpose_a"])
        placement = Placement.of(spec)
        self.dot, sides = cpu.dot, Sides.of(spec, placement.turned)
        self.plan = plan(*sides.ranges, groups, 8 if cpu.dot.bytes else 16)
        self.shape = shape_of(spec, placement.shape, sides, self.plan, cpu)
        self.epilogue = Epilogue(spec, f, placement)
        self.a, self.b, self.groups = *(f[name] for name in sides.names), groups
        self.a_contiguous, self.b_contiguous = sides.contiguous
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
        if not shape.k:
            self._empty_sums()
            return
        self._tables()
        if shape.lines_first:
            self._sort_a()
        self._pack_b()
        extents = [shape.batch, shape.row_blocks, shape.column_blocks]
        tasks = prod(extents)
        self.epilogue.prepare(tasks)
        with nest.parallel(tasks, shape.work, "task") as task, self.epilogue.task(task):
            Block(self, *nest.unravel(task, extents)).emit()
        self.epilogue.finish(tasks)

    def _empty_sums(self) -> None:
        """Nothing to add: results are what the epilogue makes of zero."""
        self.epilogue.prepare(1)
        with self.epilogue.task(0), nest.loops(self.epilogue.shape) as at:
            self.epilogue.element(nest.zero("int32"), at)
        self.epilogue.finish(1)

    def _tables(self) -> None:
        factors: dict[str, Factors] = {}
        if self.exponents is not None:
            exponents = self.exponents
            of_b, needed = self.plan.b.shift, self.groups - 1
            if self.plan.sorted:
                permuted = self.shape.in_lines or (self.shape.permutes and self.b_contiguous)
                self.order = Sorted.of(exponents, self.shape, self.dtype_b, permuted)
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

    def _sort_a(self) -> None:
        """All rows of a, a segment of some of them a task."""
        shape = self.shape
        rows = min(shape.m, LINES)
        size = shape.batch * shape.segments * shape.m * shape.places
        self.sorted_a = nest.scratch(size, self.a.dtype)
        extents = [shape.batch, shape.segments, ceil_div(shape.m, rows)]
        with nest.parallel(prod(extents), shape.batch * shape.m * shape.k // 4, "part") as part:
            batch, segment, block = nest.unravel(part, extents)
            first = tirx.min(block * rows, shape.m - rows)
            self.sorting(self.sorted_lines(batch, segment), batch, segment).all(first, rows)

    def sorted_lines(self, batch: Expr, segment: Expr) -> Lines:
        """Rows of a segment of a that were sorted before the tasks."""
        shape = self.shape
        line = (batch * shape.segments + segment) * shape.m
        return Lines(self.sorted_a, line * shape.places, shape.places)

    def sorting(self, out: Lines, batch: Expr, segment: Expr) -> Sorting:
        """How rows of a become those of `out`, numbered as those of the batch."""
        shape = self.shape
        assert self.order is not None and self.order.windows is not None
        source = Lines(self.a, batch * (shape.m * shape.k), shape.k)
        return Sorting(source, out, self.order.windows, self.order.table(batch, segment))

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
        with self.order.groups(self.order.table(batch, segment)) as (first, length):
            double()
            with nest.serial(length, "quad") as quad:
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
        """-bias * sum of b of every column of a panel, all vectors at once: a dot product waits
        four cycles for the one before it."""
        assert panel.correction is not None
        product, dot, shape = self.product, self.product.dot, self.shape
        lanes, size = nest.ramp(0, dot.lanes), dot.lanes * dot.depth
        ones = nest.splat(nest.const(1, product.dtype_a), size)
        totals = [nest.scratch(dot.lanes, "int32") for _ in range(shape.vectors)]
        for total in totals:
            total.store(lanes, nest.splat(nest.zero("int32"), dot.lanes))

        def step(quad: Expr) -> None:
            for v, total in enumerate(totals):
                b = dot.loaded(panel.array, panel.base + (quad * shape.vectors + v) * size)
                total.store(lanes, multiplied(product.plan, dot, total[lanes], ones, b))

        def double() -> None:
            for total in totals:
                total.store(lanes, total[lanes] + total[lanes])

        product.reduce(batch, segment, product.quads(segment), step, double)
        bias = nest.splat(nest.const(-product.plan.a.bias, "int32"), dot.lanes)
        for v, total in enumerate(totals):
            out = nest.ramp(panel.correction_base + v * dot.lanes, dot.lanes)
            panel.correction.store(out, total[lanes] * bias)
