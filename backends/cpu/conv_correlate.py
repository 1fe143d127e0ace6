"""The kernel of fprop and dgrad: a tile of result pixels times vectors of result channels.

A task packs a block of padded image lines, small enough for the L2 cache, then multiplies it with
every panel of weights. Pixels of a block are numbered through, so that a tile crosses the ends of
lines; the last tile, block and vector of channels overlap their neighbours instead of leaving a
rest. There is no unfolded matrix anywhere.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, product
from math import prod

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.conv_geometry import Lines, Phase
from sqcompile.backends.cpu.conv_operands import Stored
from sqcompile.backends.cpu.conv_pack import Image, Panels, Reading, aligned_width, pick
from sqcompile.backends.cpu.epilogue import Epilogue
from sqcompile.backends.cpu.machine import machine
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.kernels import KernelSpec

IMAGE_BYTES = 1 << 15
"""Padded lines that a task packs at a time, about: beside a panel they fit the L2 cache."""
LONG_IMAGE = 1 << 18
"""Bytes from which an image is packed in pieces."""
TASKS = 8
"""Parallel tasks that a kernel makes where it can."""
PIXELS = 64
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

    def panels(self) -> list[Panels]:
        """One for each pair of classes of row and column phases."""
        blocks, vectors, _ = tile_of(self.outputs)
        merged = self.columns.spacing == 1 and self.groups == 1
        steps = self.rows.kernel_step, self.columns.kernel_step
        return [
            Panels(
                rows,
                columns,
                steps,
                self.groups,
                blocks,
                vectors,
                self.outputs,
                self.channels,
                merged,
                self.stored,
            )
            for rows, columns in product(self.rows.classes(), self.columns.classes())
        ]

    def image(self, rows: int, factors: Array | None) -> Image:
        """The padded lines that `rows` results of every phase read."""
        fewest, most = self.rows.counts
        apart = most - fewest if rows < most else 0
        height = self.rows.lines(rows + apart)
        channels = self.groups * self.channels
        width = self.columns.lines(self.columns.counts[1])
        width = aligned_width(width, channels)
        return Image(self.rows, self.columns, channels, height, width, self.stored, factors)

    def block(self) -> tuple[int, int]:
        """(images, rows of each phase) of a task."""
        fewest, most = self.rows.counts
        size = self.image(most, None).size * (1 if self.stored.dot.bytes else 2)
        pixels = most * self.columns.counts[1]
        images = max(self.images // TASKS, -(-PIXELS // pixels))
        images = max(1, min(IMAGE_BYTES // size, images, self.images))
        pieces = -(-size // IMAGE_BYTES) if size > LONG_IMAGE else 1
        pieces = max(pieces, -(-TASKS // self.images))
        if images > 1 or pieces == 1:
            return images, most
        rows = max(-(-most // pieces), min(SHORTEST, most))
        return 1, min(rows, fewest)


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
    room = c.stored.right_shift
    panels = [(p, *p.pack(weights, reading, _at_most(shift, room))) for p in c.panels()]
    channels = panels[0][0].groups * panels[0][0].blocks
    with blocks(c, epilogue, source, shift, channels) as (block, part):
        for made, packed, offset in panels:
            block.multiply(made, packed, offset, *part)


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
        c.image(rows, factors).fill_factors(lambda channel: _factor(shift(channel), room))
    cut = [-(-c.images // images), -(-c.rows.counts[1] // rows)]
    parts = next(
        n
        for n in range(1, panels + 1)
        if n == panels or (panels % n == 0 and n * prod(cut) >= TASKS)
    )
    work = epilogue.out.size * c.channels
    with nest.parallel(prod(cut) * parts, work, "task") as task:
        image_block, row_block, part = nest.unravel(task, [*cut, parts])
        first = image_block * images
        if c.images % images:
            first = tirx.min(first, c.images - images)
        image = c.image(rows, factors)
        block = Block(c, image, epilogue, images, rows, first, row_block * rows)
        block.pack(source)
        yield block, (part, panels // parts)


def _at_most(shift: Callable[[Expr], Expr] | None, room: int) -> Callable[[Expr], Expr] | None:
    """The part of a shift that weights take."""
    if shift is None or not room:
        return None
    return lambda channel: tirx.min(shift(channel), room)


def _factor(shift: Expr, room: int) -> Expr:
    """What is left of a shift for the image, as a power of two."""
    rest = tirx.max(shift - room, 0)
    return nest.cast(tirx.shift_left(nest.const(1, "int32"), rest), "int16")


class Block:
    """The results of one task: some images whole, or some rows of one image."""

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

    def row(self, count: int) -> Expr:
        """The first row of the block for a phase of `count` rows."""
        return 0 if self.rows >= count else tirx.min(self.begin, count - self.rows)

    def pack(self, source: Array) -> None:
        """Copy the lines that the block reads into scratch."""
        line, image = self.row(self.c.rows.counts[0]) * self.c.rows.stride, self.image
        with nest.serial(self.images, "image") as i:
            start = image.lead + i * image.size
            image.pack(source, self.first + i, line, self.scratch, start)

    def pixel(
        self,
        index: Expr,
        extents: list[int],
        rows: tuple[Sequence[Phase], Expr],
        columns: tuple[Sequence[Phase], Expr],
    ) -> tuple[Expr, list[Expr]]:
        """Of the block's pixel `index`, counted over `extents` (images, rows, columns) of one
        row and one column phase: where it starts to read in scratch, and the result's (n, h, w)."""
        c, image = self.c, self.image
        (lines, i), (across, j) = rows, columns
        n, q, w = nest.unravel(index, extents)
        begin = self.row(lines[0].count)
        line = (begin - self.row(c.rows.counts[0]) + q) * c.rows.stride
        line = line + pick(i, [c.rows.start(p) for p in lines])
        pixel = w * c.columns.stride + pick(j, [c.columns.start(p) for p in across])
        height = (begin + q) * c.rows.step + pick(i, [p.first for p in lines])
        width = w * c.columns.step + pick(j, [p.first for p in across])
        start = image.lead + n * image.size + line * image.line + pixel * image.channels
        return start, [self.first + n, height, width]

    def multiply(
        self, panels: Panels, packed: Array, offset: Array, part: Expr, count: int
    ) -> None:
        """The results of one class of phases for `count` panels of a phase."""
        rows, columns = panels.rows[0].count, panels.columns[0].count
        extents = [self.images, min(self.rows, rows), columns]
        pixels = min(tile_of(self.c.outputs)[2], prod(extents))
        sizes = [len(panels.rows), len(panels.columns), count]
        with nest.loops(sizes, "p") as (row, column, k):
            channels = part * count + k
            index = (row * len(panels.columns) + column) * panels.groups * panels.blocks + channels
            tile = _Tile(self, panels, packed, offset, row, column, channels, index)
            with nest.serial(-(-prod(extents) // pixels), "tile") as t:
                start = t * pixels
                if prod(extents) % pixels:
                    start = tirx.min(start, prod(extents) - pixels)
                tile.compute(start, pixels, extents)


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
        terms = panels.row_taps * panels.runs * panels.run
        self.wide = terms > panels.stored.terms

    def compute(self, start: Expr, pixels: int, extents: list[int]) -> None:
        """Results start, ... of the block's pixels."""
        panels = self.panels
        phases = (panels.rows, self.row), (panels.columns, self.column)
        placed = [self.block.pixel(start + i, extents, *phases) for i in range(pixels)]
        base = [_held(first + self.group * self.block.c.channels) for first, _ in placed]
        places = [[_held(one) for one in place] for _, place in placed]
        sums = [[self._started(j) for j in range(panels.vectors)] for _ in range(pixels)]
        if self.wide:
            self._chunked(sums, base)
        elif panels.panel:
            self._whole(sums, base)
        for i, vectors in enumerate(sums):
            for j, one in enumerate(vectors):
                self._write(one, places[i], j)

    def _started(self, vector: int) -> Array:
        made = nest.scratch(self.dot.lanes, "int32")
        start = (self.index * self.panels.vectors + vector) * self.dot.lanes
        made.store(self.lanes, self.offset[nest.ramp(start, self.dot.lanes)])
        return made

    def _whole(self, sums: list[list[Array]], base: list[Expr]) -> None:
        panels = self.panels
        most = max(1, BODY // (len(base) * panels.vectors))
        unroll = next(n for n in range(most, 0, -1) if panels.steps % n == 0)
        sizes = [panels.row_taps, panels.runs, panels.steps // unroll]
        with nest.loops(sizes, "k") as (tap, run, k):
            for u in range(unroll):
                self._step(sums, base, tap, run, k * unroll + u)

    def _chunked(self, sums: list[list[Array]], base: list[Expr]) -> None:
        """int32 sums of as many steps as fit, int64 sums of those in place of `sums`."""
        panels, dot = self.panels, self.dot
        limit = panels.stored.terms // dot.depth
        wide = [[nest.scratch(dot.lanes, "int64") for _ in row] for row in sums]
        zero = {kind: nest.splat(nest.zero(kind), dot.lanes) for kind in ("int32", "int64")}
        for one in chain(*wide):
            one.store(self.lanes, zero["int64"])
        sizes = [panels.row_taps, panels.runs, -(-panels.steps // limit)]
        with nest.loops(sizes, "k") as (tap, run, chunk):
            for one in chain(*sums):
                one.store(self.lanes, zero["int32"])
            length = tirx.min(limit, panels.steps - chunk * limit)
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
        place = ((tap * panels.runs + run) * panels.steps + step) * panels.vectors
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
        value = total[self.lanes]
        if kind != "float32" and kind != total.dtype:
            value = nest.cast(value, kind, lanes)
        first = self.group * panels.outputs
        if panels.outputs >= lanes:
            first = first + panels.first(self.channels, vector)
            epilogue.vector(value, [*place, first], lanes)
        else:
            row = nest.scratch(lanes, kind if kind != "float32" else total.dtype)
            row.store(self.lanes, value)
            epilogue.row(row, 0, [*place, first], panels.outputs)
