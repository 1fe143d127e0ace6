"""3x3 convolutions with stride 1 in 16 products a tile instead of 36: Winograd's F(2x2, 3x3).

Exact on integers, see winograd_ranges.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.epilogue import Epilogue
from sqcompile.backends.cpu.machine import Dot, machine
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.winograd_input import WIDTH, Image, Shifts, Strip
from sqcompile.backends.cpu.winograd_ranges import OUTPUT, POSITIONS, SIDE, Split, split
from sqcompile.backends.cpu.winograd_weight import ORDER, Filters, Packer
from sqcompile.backends.kernels import KernelSpec

TILES, VECTORS = 6, 2
"""Tiles and vectors of columns of a group: twice as many sums, three loads beside, of 32
registers."""
CHUNK_BYTES = 3 << 17
"""Transformed inputs that a task keeps, at most: with a block of weights they fit L2."""
SHARED_BYTES = 5 << 17
"""Transformed inputs of the whole batch up to which weights are transformed block by block."""
OPAQUE = 256
"""Elements of the workspace that holds the number of steps over channels: LLVM must not know it,
or it unrolls short loops and moves their products into the branches that store (a third of the
speed at 16 channels)."""
TASKS = 4
"""Tasks that a kernel should have at least."""


@dataclass(frozen=True)
class Plan:
    """A convolution as tiles, blocks and their sizes."""

    image: Image
    filters: Filters
    split: Split
    out: tuple[int, ...]

    @property
    def dot(self) -> Dot:
        """The dot product compiled for."""
        return self.filters.dot

    @property
    def tile_rows(self) -> int:
        """Tile rows of all images."""
        return self.image.images * self.image.rows

    def groups(self, rows: int) -> int:
        """Groups of tiles in `rows` tile rows."""
        return -(-rows * self.image.tiles // TILES)

    def plane(self, rows: int) -> int:
        """Bytes of a position of `rows` tile rows; a vector more, which transforms may write."""
        return self.groups(rows) * TILES * self.image.depth + WIDTH

    @property
    def shared(self) -> bool:
        """Whether inputs of the whole batch are transformed first and stay in cache while blocks
        of weights pass, which few images with many channels need; else weights come first."""
        small = self.plane(self.tile_rows) * len(POSITIONS) <= SHARED_BYTES
        return small and self.filters.blocks >= TASKS and self.image.line % WIDTH == 0

    @property
    def chunk(self) -> int:
        """Tile rows of a task: the fewest groups of tiles in all, among sizes that fit CHUNK_BYTES
        and leave TASKS tasks."""
        line = self.image.line * len(POSITIONS)
        most = max(1, min(CHUNK_BYTES // line, self.tile_rows // TASKS))

        def total(rows: int) -> int:
            whole, rest = divmod(self.tile_rows, rows)
            return whole * self.groups(rows) + self.groups(rest)

        return min(range(1, most + 1), key=lambda rows: (total(rows), -rows))


def plan(spec: KernelSpec) -> Plan | None:
    """The plan of a convolution that Winograd computes exactly, None for others."""
    forward = spec.short_name.startswith("conv_fprop")
    if not (forward or spec.short_name.startswith("conv_dgrad")) or not machine().dot.bytes:
        return None
    w, out = spec.tensor("w").shape, spec.outputs[0]
    source = spec.tensor("x" if forward else "g")
    pad = spec["padding"][0]
    regular = all(tuple(spec[name]) == (1, 1) for name in ("stride", "dilation"))
    regular = regular and spec["groups"] == 1 and w[2:] == (3, 3) and out.dtype != "int64"
    if not regular or spec["padding"][1] != pad or pad > 2 or not prod(out.shape):
        return None
    if not source.size:
        return None
    inputs, weights = spec.ranges("x" if forward else "g", "w")
    shifted = not forward and spec.tensor("exponent") is not None
    found = split(inputs, weights, spec["shift_groups"] if shifted else 1, source.shape[3])
    if found is None:
        return None
    _, height, width, columns = out.shape
    image = Image(
        *source.shape,
        padding=pad if forward else 2 - pad,
        rows=-(-height // 2),
        tiles=-(-width // 2),
    )
    dot = machine().dot
    filters = Filters(source.shape[3], columns, not forward, VECTORS, dot)
    return Plan(image, filters, found, out.shape)


def fits(spec: KernelSpec) -> bool:
    """Whether Winograd computes `spec` exactly, and faster than a direct convolution.

    It does from 32 channels on both sides (with 16, sums are so short that combining them takes
    longer than products saved: 400 of 460 billion operations a second) and from 32 tiles, which
    pay for the transformed weights.
    """
    made = plan(spec)
    if made is None:
        return False
    few = made.tile_rows * made.image.tiles < 32
    return min(made.image.channels, made.filters.columns) >= 32 and not few


@dataclass(frozen=True)
class _Operands:
    """What a group of products reads: transformed inputs of `rows` tile rows from `row` on, the
    block of weights at weights[block] and its corrections, for columns from `column` on."""

    inputs: Array
    row: Expr
    rows: Expr
    weights: Array
    block: Expr
    corrections: Array
    correction: Expr
    column: Expr


Cell = tuple[int, int]
"""A tile and a vector of columns."""
Sums = dict[tuple[int, Cell], Array]


class _Products:
    """Groups of tiles: 16 positions of a block of columns, and the results."""

    def __init__(self, call: "_Call", rows: int) -> None:
        made = call.plan
        self.plan, self.epilogue = made, call.epilogue
        self.steps = nest.bound(call.steps[0])
        self.plane = made.plane(rows)
        self.cells = [(t, v) for t in range(TILES) for v in range(VECTORS)]
        self.lanes = made.dot.lanes
        self.own = nest.ramp(0, self.lanes)
        self.kept = nest.scratch(4 * len(self.cells) * self.lanes, "int32")
        self.results: Array | None = None
        if made.filters.columns % made.filters.width:
            self.results = nest.scratch(2 * len(self.cells) * self.lanes, "int32")

    def group(self, group: Expr, o: _Operands) -> None:
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

    def _kept(self, column: Expr, row: int, cell: Cell) -> Expr:
        index = (column * 2 + row) * len(self.cells) + self.cells.index(cell)
        return nest.ramp(index * self.lanes, self.lanes)

    def _result(self, o: _Operands, half: int, row: int, cell: Cell, total: Expr) -> Expr:
        first, second = (self.kept[self._kept(c, row, cell)] for c in range(2))
        total = total + (first + second if OUTPUT[half][2] > 0 else first - second)
        at = o.correction + (row * 2 + half) * self.plan.filters.width + cell[1] * self.lanes
        total = total + o.corrections[nest.ramp(at, self.lanes)]
        return tirx.shift_right(total, nest.splat(nest.const(2, "int32"), self.lanes))

    def _column(self, group: Expr, o: _Operands, index: Expr, column: Expr, sums: Sums) -> None:
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
        self, group: Expr, o: _Operands, index: Expr, column: Expr, half: int, sums: Sums
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

    def _write(self, group: Expr, o: _Operands, half: int, sums: Sums) -> None:
        if self.results is not None:
            self._write_part(group, o, half, sums, self.results)
            return
        for tile in range(TILES):
            with self._place(group * TILES + tile, o, half) as (n, y, x):
                for row in range(2):
                    with self._row(y + row, row):
                        for v in range(VECTORS):
                            at = [n, y + row, x, o.column + v * self.lanes]
                            self.epilogue.vector(sums[row, (tile, v)][self.own], at, self.lanes)

    def _write_part(self, group: Expr, o: _Operands, half: int, sums: Sums, results: Array) -> None:
        """Where the last block holds fewer columns: by way of memory."""
        width = self.plan.filters.width
        for (row, cell), one in sums.items():
            index = row * len(self.cells) + self.cells.index(cell)
            results.store(nest.ramp(index * self.lanes, self.lanes), one[self.own])
        length = tirx.min(width, self.plan.filters.columns - o.column)
        with (
            nest.loops([TILES, 2], "result") as (tile, row),
            self._place(group * TILES + tile, o, half) as (n, y, x),
            self._row(y + row, 1),
        ):
            at = [n, y + row, x, o.column]
            self.epilogue.row(results, (row * TILES + tile) * width, at, length)

    @contextmanager
    def _row(self, y: Expr, row: int) -> Iterator[None]:
        """Whether row y of the results exists: the second of a tile may not."""
        if row and self.plan.out[1] % 2:
            with nest.when(y < self.plan.out[1]):
                yield
        else:
            yield

    @contextmanager
    def _place(self, tile: Expr, o: _Operands, half: int) -> Iterator[tuple[Expr, Expr, Expr]]:
        """Image, row and column of the result (0, half) of a tile, if it exists."""
        image = self.plan.image
        row, column = o.row + tirx.floordiv(tile, image.tiles), tirx.floormod(tile, image.tiles)
        n, y = tirx.floordiv(row, image.rows), 2 * tirx.floormod(row, image.rows)
        x = 2 * column + half
        with nest.when(tirx.all(tile < o.rows * image.tiles, x < self.plan.out[2])):
            yield n, y, x


def _transform(
    made: Plan, strip: Strip, rows: tuple[Expr, Expr], inputs: Array, plane: int, first: Expr
) -> None:
    """Transform tile rows rows[0] ... rows[0] + rows[1] - 1 into `inputs`, from line first on."""
    image = made.image
    with nest.serial(rows[1], "row") as i:
        n, row = tirx.floordiv(rows[0] + i, image.rows), tirx.floormod(rows[0] + i, image.rows)
        strip.read(n, row, tirx.EQ(i, 0))
        strip.transform(row, inputs, (first + i) * image.line, plane, made.split)


@dataclass(frozen=True)
class _Call:
    """A kernel under construction."""

    plan: Plan
    source: Array
    weights: Array
    shifts: Shifts
    epilogue: Epilogue
    steps: Array

    def packer(self) -> Packer:
        """Of the weights, for one task."""
        return Packer(self.plan.filters, self.weights, self.shifts, self.plan.split)

    def strip(self) -> Strip:
        """Of the inputs, for one task."""
        return Strip(self.plan.image, self.source, self.shifts)


def _by_block(call: _Call) -> None:
    """Inputs first, then blocks of weights in parallel: each is read while it is in cache."""
    made, rows = call.plan, call.plan.tile_rows
    filters, plane = made.filters, call.plan.plane(rows)
    inputs = nest.scratch(plane * len(POSITIONS), "uint8")
    step = -(-rows // (2 * TASKS))
    work = made.image.line * rows * len(POSITIONS)
    with nest.parallel(-(-rows // step), work, "strip") as task:
        first, own = task * step, tirx.min(step, rows - task * step)
        _transform(made, call.strip(), (first, own), inputs, plane, first)
    with nest.parallel(filters.blocks, work * filters.columns, "block") as block:
        weights = nest.scratch(filters.block, "int8")
        corrections = nest.scratch(4 * filters.width, "int32")
        call.packer().pack(block, weights, 0, corrections, 0)
        products = _Products(call, rows)
        column = block * filters.width
        operands = _Operands(inputs, 0, rows, weights, 0, corrections, 0, column)
        with nest.serial(made.groups(rows), "group") as group:
            products.group(group, operands)


def _by_chunk(call: _Call) -> None:
    """Weights first, then chunks of tile rows in parallel: a task transforms its inputs, then
    every block of weights passes over them."""
    made, rows = call.plan, call.plan.chunk
    filters, plane = made.filters, call.plan.plane(rows)
    weights = nest.scratch(filters.blocks * filters.block, "int8")
    corrections = nest.scratch(filters.blocks * 4 * filters.width, "int32")
    with nest.parallel(filters.blocks, filters.blocks * filters.block, "block") as block:
        start = block * (4 * filters.width)
        call.packer().pack(block, weights, block * filters.block, corrections, start)
    work = made.image.line * made.tile_rows * len(POSITIONS) * filters.columns
    with nest.parallel(-(-made.tile_rows // rows), work, "chunk") as chunk:
        inputs = nest.scratch(plane * len(POSITIONS), "uint8")
        first = chunk * rows
        own = tirx.min(rows, made.tile_rows - first)
        _transform(made, call.strip(), (first, own), inputs, plane, 0)
        products = _Products(call, rows)
        groups = tirx.floordiv(own * made.image.tiles + TILES - 1, TILES)
        with nest.serial(filters.blocks, "block") as block, nest.serial(groups, "group") as group:
            start, column = block * filters.block, block * filters.width
            at = block * (4 * filters.width)
            operands = _Operands(inputs, first, own, weights, start, corrections, at, column)
            products.group(group, operands)


def generate(spec: KernelSpec) -> object:
    """The kernel of a spec that fits."""
    made = plan(spec)
    assert made is not None
    with nest.function(spec) as f:
        source = f["x"] if "x" in f.tensors else f["g"]
        groups = spec.get("shift_groups", 1)
        shifts = Shifts(f.get("exponent"), groups, made.image.channels, made.split)
        steps = nest.scratch(OPAQUE, "int32")
        steps.store(0, made.filters.steps)
        call = _Call(made, source, f["w"], shifts, Epilogue(spec, f), steps)
        (_by_block if made.shared else _by_chunk)(call)
    return f.result
