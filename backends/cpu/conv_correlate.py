"""The kernel of fprop and dgrad: a tile of result pixels times vectors of result channels.

A task packs a block of padded image lines, small enough for the L2 cache, then multiplies it with
every panel of weights. Pixels of a block are numbered through, so that a tile crosses the ends of
lines; the last tile, block and vector of channels overlap their neighbours instead of leaving a
rest. There is no unfolded matrix anywhere.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from math import prod

from tvm import tirx

from sqcompile.backends.conv_geometry import Lines
from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.channel_sums import ChannelSums, sums_of
from sqcompile.backends.cpu.conv_image import Image, aligned_width
from sqcompile.backends.cpu.conv_operands import Stored
from sqcompile.backends.cpu.conv_vectors import at_most, pick, remaining
from sqcompile.backends.cpu.conv_weights import Panels, Reading
from sqcompile.backends.cpu.epilogue import Epilogue
from sqcompile.backends.cpu.machine import machine
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.kernels import KernelSpec

IMAGE_BYTES = 160 << 10
"""Padded lines that a task packs at a time, about: beside a panel they fit the L2 cache."""
LONG_IMAGE = 1 << 18
"""Bytes from which an image is packed in pieces."""
TASKS = 8
"""Parallel tasks that a kernel makes where it can."""
PIXELS = 128
"""Pixels of a block at least, where there are as many: panels are read once for each block."""
SHORTEST = 4
"""Rows of a block at least: neighbouring blocks both pack the lines between them."""
BODY = 72
"""Dot products of an inner loop body, about: more does not run faster but compiles longer."""


def tile_of(outputs: int) -> tuple[int, int, int]:
    """(blocks, vectors, pixels): vectors of channels in a block, pixels of a tile.

    Accumulators, the vectors of a step and one broadcast fill the registers: 16 x 1, 12 x 2, 8 x 3
    or 6 x 4 of 32, half as many of 16 with a register for products. 7 x 4 spills.
    """
    cpu = machine()
    vectors = -(-outputs // cpu.lanes)
    most = 4 if cpu.registers >= 32 else 2
    blocks = -(-vectors // most)
    vectors = -(-vectors // blocks)
    pixels = {1: 16, 2: 12, 3: 8, 4: 6}[vectors]
    return blocks, vectors, pixels if cpu.registers >= 32 else pixels // 2 - 1


def even(count: int, most: int) -> int:
    """A size of at most `most` that cuts `count` into pieces with little or no overlap."""
    divisor = next(n for n in range(most, 0, -1) if count % n == 0)
    pieces = -(-count // most)
    return divisor if 2 * divisor >= most else -(-count // pieces)


@dataclass(frozen=True)
class Correlation:
    """y[n, q, o] = sum over taps and c of image[n, q * stride + tap, c] * w[o, c, tap].

    `outputs` and `channels` are per group.
    """

    images: int
    groups: int
    outputs: int
    channels: int
    rows: Lines
    columns: Lines
    stored: Stored

    def panels(self) -> Panels:
        """How the weights of all phases are packed."""
        blocks, vectors, _ = tile_of(self.outputs)
        return Panels(
            self.rows,
            self.columns,
            self.groups,
            blocks,
            vectors,
            self.outputs,
            self.channels,
            self.columns.spacing == 1 and self.groups == 1,
            self.stored,
        )

    def image(self, rows: int, factors: Array | None) -> Image:
        """The padded lines that `rows` results of every phase read."""
        channels = self.groups * self.channels
        width = aligned_width(self.columns.lines(self.columns.count), channels)
        height = self.rows.lines(rows)
        return Image(self.rows, self.columns, channels, height, width, self.stored, factors)

    def block(self) -> tuple[int, int]:
        """(images, rows of each phase) of a task."""
        most = self.rows.count
        size = self.image(most, None).size * (1 if self.stored.dot.bytes else 2)
        pixels = most * self.columns.count
        images = max(self.images // TASKS, -(-PIXELS // pixels))
        images = even(self.images, max(1, min(IMAGE_BYTES // size, images, self.images)))
        pieces = -(-size // IMAGE_BYTES) if size > LONG_IMAGE else 1
        pieces = max(pieces, -(-TASKS // self.images))
        if images > 1 or pieces == 1:
            return images, most
        return 1, max(-(-most // pieces), min(SHORTEST, most))

    def cut(self) -> list[int]:
        """Blocks along the images and along the rows."""
        images, rows = self.block()
        return [-(-self.images // images), -(-self.rows.count // rows)]


def correlate(
    c: Correlation,
    f: nest.Function,
    spec: KernelSpec,
    operands: tuple[Array, Array, Reading],
    shift: Callable[[Expr], Expr] | None = None,
) -> None:
    """The whole kernel. operands: source (N, H, W, C), weights and how they are read; shift(c):
    the shift of a reduced channel, of all groups."""
    source, weights, reading = operands
    epilogue = Epilogue(spec, f)
    if not epilogue.out.size:
        return
    panels = c.panels()
    packed = panels.pack(weights, reading, at_most(shift, c.stored.right_shift))
    vectors = panels.groups * panels.blocks * panels.vectors
    sums = sums_of(spec, f, prod(c.cut()), vectors, panels.stored.dot.lanes)
    with blocks(c, epilogue, source, shift, panels.groups * panels.blocks) as (block, part):
        block.sums = sums
        block.multiply(panels, *packed, *part)
    if sums is not None:
        sums.finish(vectors, panels.place)


@contextmanager
def blocks(
    c: Correlation,
    epilogue: Epilogue,
    source: Array,
    shift: Callable[[Expr], Expr] | None,
    panels: int,
) -> Iterator[tuple["Block", tuple[Expr, int]]]:
    """A parallel loop over packed blocks; each shall multiply `count` of the panels, the
    `part`-th time: (block, (part, count))."""
    images, rows = c.block()
    factors = None
    if shift is not None and c.stored.left_shift:
        factors = nest.scratch(c.image(rows, None).line, "int16")
        room = c.stored.right_shift
        c.image(rows, factors).fill_factors(lambda channel: remaining(shift(channel), room))
    cut = c.cut()
    parts = next(
        n
        for n in range(1, panels + 1)
        if n == panels or (panels % n == 0 and n * prod(cut) >= TASKS)
    )
    work = epilogue.out.size * c.channels
    with nest.parallel(prod(cut) * parts, work, "task") as task:
        image_block, row_block, part = nest.unravel(task, [*cut, parts])
        first, begin, again = image_block * images, row_block * rows, None
        if c.images % images:
            first = tirx.min(first, c.images - images)
            again = (image_block * images - first) * (rows * c.columns.count)
        if c.rows.count % rows:
            begin = tirx.min(begin, c.rows.count - rows)
            again = (row_block * rows - begin) * c.columns.count
        block = Block(c, c.image(rows, factors), epilogue, images, rows, first, begin)
        block.index, block.again = image_block * cut[1] + row_block, again
        block.pack(source)
        yield block, (part, panels // parts)


class Block:
    """The results of one task: some images whole, or some rows of one image.

    index: of the block, counted without panels; again: how many of its first results another
    block computes as well (None: none in any block); sums: where those of channels go.
    """

    index: Expr = 0
    again: Expr | None = None
    sums: ChannelSums | None = None

    def __init__(
        self,
        c: Correlation,
        image: Image,
        epilogue: Epilogue,
        images: int,
        rows: int,
        first: Expr,
        begin: Expr,
    ) -> None:
        self.c, self.image, self.epilogue = c, image, epilogue
        self.images, self.rows = images, rows
        self.first, self.begin = first, begin
        self.scratch = image.scratch(images)

    @property
    def extents(self) -> list[int]:
        """Results of each phase: images, rows, columns."""
        return [self.images, self.rows, self.c.columns.count]

    def pack(self, source: Array) -> None:
        """Copy the lines that the block reads into scratch."""
        line, image = self.begin * self.c.rows.stride, self.image
        with nest.serial(self.images, "image") as i:
            start = image.lead + i * image.size
            image.pack(source, self.first + i, line, self.scratch, start)

    def pixel(self, index: Expr, row: Expr, column: Expr) -> tuple[Expr, list[Expr]]:
        """Of result `index`, counted over `extents`, of a row and a column phase: where it starts
        to read in scratch, and its coordinates (n, h, w).

        A phase with a row or column less than others computes its last one twice.
        """
        c, image = self.c, self.image
        n, q, w = nest.unravel(index, self.extents)
        line, height = _along(c.rows, row, self.begin, q)
        pixel, width = _along(c.columns, column, 0, w)
        start = image.lead + n * image.size + line * image.line + pixel * image.channels
        return start, [self.first + n, height, width]

    @contextmanager
    def tiles(self, pixels: int) -> Iterator[tuple[Expr, Expr | None]]:
        """A loop over tiles: the first result of each, and how many of its results other tiles
        compute as well (None: none in any tile); the last tile may overlap."""
        total = prod(self.extents)
        with nest.serial(-(-total // pixels), "tile") as index:
            start = fresh = index * pixels
            if total % pixels:
                start = tirx.min(fresh, total - pixels)
            if self.again is not None:
                fresh = tirx.max(fresh, self.again)
            yield start, None if fresh is start else fresh - start

    def multiply(
        self, panels: Panels, packed: Array, offset: Array, part: Expr, count: int
    ) -> None:
        """The results of `count` panels of every phase."""
        pixels = min(tile_of(self.c.outputs)[2], prod(self.extents))
        sizes = [len(panels.rows.phases), len(panels.columns.phases), count]
        with nest.loops(sizes, "p") as (row, column, k):
            channels = part * count + k
            index = (row * sizes[1] + column) * panels.groups * panels.blocks + channels
            tile = _Tile(self, panels, packed, offset, row, column, channels, index)
            tile.clear()
            with self.tiles(pixels) as (start, again):
                tile.compute(start, pixels, again)


def _along(lines: Lines, phase: Expr, begin: Expr, index: Expr) -> tuple[Expr, Expr]:
    """(image line from the block's first one on, coordinate) of result begin + index."""
    last = [p.count - 1 for p in lines.phases]
    if min(last) < max(last):
        index = tirx.min(index, pick(phase, last) - begin)
    line = index * lines.stride + pick(phase, [lines.start(p) for p in lines.phases])
    return line, (begin + index) * lines.step + pick(phase, [p.first for p in lines.phases])


def _held(value: Expr) -> Expr:
    """The value in a register: indices built on it stay short."""
    slot = nest.scratch(1, "int32")
    slot.store(0, nest.cast(value, "int32"))
    return slot[0]


class _Tile:
    """pixels x vectors accumulators over one panel."""

    def __init__(
        self,
        block: Block,
        panels: Panels,
        packed: Array,
        offset: Array,
        row: Expr,
        column: Expr,
        channels: Expr,
        index: Expr,
    ) -> None:
        self.block, self.panels, self.packed, self.offset = block, panels, packed, offset
        self.row, self.column, self.index = row, column, index
        self.group = tirx.floordiv(channels, panels.blocks)
        self.channels = tirx.floormod(channels, panels.blocks)
        self.dot = panels.stored.dot
        self.lanes = nest.ramp(0, self.dot.lanes)
        self.wide = panels.terms * self.dot.depth > panels.stored.terms
        self.sizes = panels.row_taps(row), panels.runs(column), panels.steps(column)

    def clear(self) -> None:
        """Before the first tile of a panel: sums of its channels begin."""
        sums, vectors = self.block.sums, self.panels.vectors
        if sums is not None:
            self.place = _held(self.block.index * sums.vectors + self.index * vectors)
            sums.clear(self.place, vectors)

    def compute(self, start: Expr, pixels: int, again: Expr | None) -> None:
        """Results start, ... of the block, of which the first `again` count elsewhere."""
        panels = self.panels
        placed = [self.block.pixel(start + i, self.row, self.column) for i in range(pixels)]
        base = [_held(first + self.group * self.block.c.channels) for first, _ in placed]
        places = [[_held(one) for one in place] for _, place in placed]
        sums = [[self._started(j) for j in range(panels.vectors)] for _ in range(pixels)]
        if self.wide:
            self._chunked(sums, base)
        else:
            self._whole(sums, base)
        for i, vectors in enumerate(sums):
            for j, one in enumerate(vectors):
                self._write(one, places[i], j)
        if self.block.sums is not None:
            columns = [[self._result(row[j]) for row in sums] for j in range(panels.vectors)]
            self.block.sums.add(self.place, columns, again)

    def _started(self, vector: int) -> Array:
        made = nest.scratch(self.dot.lanes, "int32")
        start = (self.index * self.panels.vectors + vector) * self.dot.lanes
        made.store(self.lanes, self.offset[nest.ramp(start, self.dot.lanes)])
        return made

    def _whole(self, sums: list[list[Array]], base: list[Expr]) -> None:
        panels = self.panels
        most = max(1, BODY // (len(base) * panels.vectors))
        unroll = panels.unrolled(most)
        taps, runs, steps = self.sizes
        steps = tirx.floordiv(steps, unroll)
        with nest.loops([taps, runs, steps], "k") as (tap, run, k):
            for u in range(unroll):
                self._step(sums, base, tap, run, k * unroll + u)

    def _chunked(self, sums: list[list[Array]], base: list[Expr]) -> None:
        """int32 sums of as many steps as fit, int64 sums of those and of what `sums` start with, in
        place of `sums`."""
        panels, dot = self.panels, self.dot
        limit = panels.stored.terms // dot.depth
        wide = [[nest.scratch(dot.lanes, "int64") for _ in row] for row in sums]
        zero = nest.splat(nest.zero("int32"), dot.lanes)
        for one, total in zip(chain(*sums), chain(*wide), strict=True):
            total.store(self.lanes, nest.cast(one[self.lanes], "int64", dot.lanes))
        taps, runs, steps = self.sizes
        chunks = tirx.floordiv(steps + limit - 1, limit)
        with nest.loops([taps, runs, chunks], "k") as (tap, run, chunk):
            for one in chain(*sums):
                one.store(self.lanes, zero)
            length = tirx.min(limit, steps - chunk * limit)
            with nest.serial(length, "step") as step:
                self._step(sums, base, tap, run, chunk * limit + step)
            for one, total in zip(chain(*sums), chain(*wide), strict=True):
                part = nest.cast(one[self.lanes], "int64", dot.lanes)
                total.store(self.lanes, total[self.lanes] + part)
        for row, totals in zip(sums, wide, strict=True):
            row[:] = totals

    def _step(
        self, sums: list[list[Array]], base: list[Expr], tap: Expr, run: Expr, step: Expr
    ) -> None:
        panels, dot, image, c = self.panels, self.dot, self.block.image, self.block.c
        _, runs, steps = self.sizes
        place = ((tap * runs + run) * steps + step) * panels.vectors
        start = self.index * panels.panel + place * panels.vector
        right = [dot.loaded(self.packed, start + j * panels.vector) for j in range(panels.vectors)]
        away = tap * c.rows.spacing * image.line + step * dot.depth
        if not panels.merged:
            away = away + run * c.columns.spacing * image.channels
        for i, vectors in enumerate(sums):
            left = dot.repeated(self.block.scratch, base[i] + away)
            for one, weights in zip(vectors, right, strict=True):
                one.store(self.lanes, dot.add(one[self.lanes], left, weights))

    def _write(self, total: Array, place: list[Expr], vector: int) -> None:
        panels, epilogue = self.panels, self.block.epilogue
        lanes, kind = self.dot.lanes, epilogue.out.dtype
        value = self._result(total)
        first = self.group * panels.outputs + panels.first(self.channels, vector)
        if panels.outputs >= lanes and epilogue.in_vectors(panels.outputs, lanes):
            epilogue.vector(value, [*place, first], lanes)
        else:
            row = nest.scratch(lanes, kind if kind != "float32" else total.dtype)
            row.store(self.lanes, value)
            epilogue.row(row, 0, [*place, first], min(panels.outputs, lanes))

    def _result(self, total: Array) -> Expr:
        """A vector of accumulators in the dtype of the result, if that is one of integers."""
        kind, value = self.block.epilogue.out.dtype, total[self.lanes]
        if kind in ("float32", total.dtype):
            return value
        return nest.cast(value, kind, self.dot.lanes)
