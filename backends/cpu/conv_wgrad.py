"""wgrad: x on the vector side, the gradient as broadcast words of `depth` tokens.

A slice is some vectors of one kernel line: (column tap, channel) pairs that lie beside each other
in an image line. A task packs the slice's part of x for a block of tokens, which stays in the L2
cache, and multiplies it with every output channel's gradient, one kernel line at a time.
"""

from dataclasses import dataclass

from tvm import tirx

from sqcompile.backends.conv_geometry import Geometry, Lines, forward
from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.conv_image import Image
from sqcompile.backends.cpu.conv_operands import Stored, store
from sqcompile.backends.cpu.conv_sums import Sums
from sqcompile.backends.cpu.conv_tokens import Gradient
from sqcompile.backends.cpu.conv_vectors import SLACK, interleave
from sqcompile.backends.cpu.machine import machine
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.kernels import KernelSpec

PACKED_BYTES = 1 << 16
"""Packed x of a slice that a block may have, about."""
TASKS = 8
"""Parallel tasks that a kernel makes where it can."""
LONGEST = 7
"""Column taps of which one slice holds all."""


@dataclass(frozen=True)
class Slices:
    """How the (column tap, channel) pairs of a kernel line are cut into slices of `vectors`.

    whole: a slice is `lanes` channels (or several times as many) and all their column taps.
    Otherwise a run of values that lie beside each other is cut: all pairs of a line where taps
    are neighbours (`merged`), else the channels of one tap. The last vector overlaps.
    """

    g: Geometry
    lanes: int
    vectors: int
    count: int
    whole: bool
    merged: bool

    @classmethod
    def of(cls, g: Geometry, lanes: int) -> "Slices":
        """For the channels of one group."""
        taps = g.columns.kernel
        if g.inputs % lanes == 0 and taps <= LONGEST:
            together = {1: 4, 2: 2}.get(taps, 1)
            while g.inputs % (lanes * together):
                together //= 2
            return cls(g, lanes, taps * together, g.inputs // (lanes * together), True, False)
        merged = g.groups == 1 and (g.columns.dilation == 1 or taps == 1)
        vectors = -(-g.inputs * (taps if merged else 1) // lanes)
        slices = -(-vectors // 4)
        each = -(-vectors // slices)
        return cls(g, lanes, each, slices if merged else slices * taps, False, merged)

    @property
    def channels(self) -> int:
        """Channels of a packed image line: those of the slice when it is `whole`, else all."""
        if self.whole:
            return self.vectors // self.g.columns.kernel * self.lanes
        return self.g.groups * self.g.inputs

    @property
    def run(self) -> int:
        """Values that are cut into vectors where a slice is not `whole`."""
        return self.g.inputs * (self.g.columns.kernel if self.merged else 1)

    def first(self, index: Expr) -> Expr:
        """The first channel, in its group, of a `whole` slice."""
        return index * self.channels

    def _cut(self, index: Expr, vector: Expr) -> tuple[Expr, Expr]:
        per_tap = self.count if self.merged else self.count // self.g.columns.kernel
        tap = 0 if self.merged else tirx.floordiv(index, per_tap)
        place = index if self.merged else tirx.floormod(index, per_tap)
        start = (place * self.vectors + vector) * self.lanes
        if self.run != per_tap * self.vectors * self.lanes:
            start = tirx.max(tirx.min(start, self.run - self.lanes), 0)
        return tap, start

    def start(self, index: Expr, vector: int, group: Expr) -> Expr:
        """Where a vector of a slice starts in an image line, from the result's own column on."""
        dilation = self.g.columns.dilation
        if self.whole:
            tap, part = divmod(vector, self.vectors // self.g.columns.kernel)
            return tap * dilation * self.channels + part * self.lanes
        tap, start = self._cut(index, vector)
        return tap * dilation * self.channels + group * self.g.inputs + start

    def pair(self, index: Expr, vector: Expr, lane: Expr) -> tuple[Expr, Expr]:
        """(column tap, channel) of a lane; the channel may lie beyond the last one."""
        if self.whole:
            together = self.vectors // self.g.columns.kernel
            part = tirx.floormod(vector, together)
            return tirx.floordiv(vector, together), self.first(index) + part * self.lanes + lane
        tap, start = self._cut(index, vector)
        if not self.merged:
            return tap, start + lane
        place = start + lane
        return tirx.floordiv(place, self.g.inputs), tirx.floormod(place, self.g.inputs)


def tile_of(outputs: int, vectors: int) -> int:
    """Output channels of a tile: with `vectors` loads and a broadcast, the accumulators fill the
    registers. A divisor of the channels where one is at least half as large."""
    most = max(1, (machine().registers - 2 - vectors) // vectors)
    for tile in range(min(most, outputs), most // 2, -1):
        if outputs % tile == 0:
            return tile
    return -(-outputs // -(-outputs // most))


@dataclass(frozen=True)
class Blocks:
    """How tokens are cut: blocks of `images` images, or of `rows` rows of one image."""

    g: Geometry
    lines: Lines
    images: int
    rows: int

    @classmethod
    def of(cls, g: Geometry, line_bytes: int, longest: int) -> "Blocks":
        """line_bytes: packed x of an image line; longest: tokens that int32 sums hold."""
        lines = forward(g.rows, skip=True)
        size = lines.lines(g.rows.out) * line_bytes
        tokens = g.rows.out * g.columns.out
        if size > 4 * PACKED_BYTES or tokens > longest:
            parts = max(-(-size // PACKED_BYTES), -(-tokens // longest))
            return cls(g, lines, 1, max(1, g.rows.out // parts))
        images = max(1, min(PACKED_BYTES // size, longest // tokens, g.images))
        return cls(g, lines, images, g.rows.out)

    @property
    def whole(self) -> bool:
        """Whether a block holds whole images."""
        return self.rows == self.g.rows.out

    @property
    def height(self) -> int:
        """Image lines that a block reads of an image."""
        return self.lines.lines(self.rows)

    @property
    def per_image(self) -> int:
        """Blocks of an image, 1 where a block holds several."""
        return -(-self.g.rows.out // self.rows)

    @property
    def count(self) -> int:
        """Blocks."""
        return -(-self.g.images // self.images) * self.per_image


def wgrad(spec: KernelSpec) -> object:
    """Any geometry. Group exponents belong to tokens, and one x meets several of them, so the
    gradient alone carries the shifts."""
    y, x = spec.tensor("g").shape, spec.tensor("x").shape
    g = Geometry.of(spec, x, spec.outputs[0].shape, y)
    groups = spec["shift_groups"] if spec.tensor("exponent") is not None else 1
    given, seen = spec.ranges("g", "x")
    form = store(seen, given, shift=groups - 1, terms=0, spread=False)
    with nest.function(spec) as f:
        _Wgrad(spec, f, g, form, groups).emit()
    return f.result


class _Wgrad:
    """The kernel under construction."""

    def __init__(
        self, spec: KernelSpec, f: nest.Function, g: Geometry, form: Stored, groups: int
    ) -> None:
        self.g, self.form, self.groups = g, form, groups
        self.x, self.gradient, self.exponent = f["x"], f["g"], f.get("exponent")
        self.dot = form.dot
        self.slices = Slices.of(g, self.dot.lanes)
        self.tile = tile_of(g.outputs, self.slices.vectors)
        self.packed = Gradient.of(g, form, self.tile)
        tokens = g.images * g.rows.out * g.columns.out
        self.wide = tokens > form.terms
        self.vector = self.dot.lanes * self.dot.depth
        line = self.packed.steps * self.slices.vectors * self.vector
        self.line = line
        bytes_of = 1 if self.dot.bytes else 2
        self.sums = Sums(spec, f, g, self.slices, self.tile, "int64" if self.wide else "int32")
        self.tokens = tokens
        self.blocks = Blocks.of(g, line * bytes_of, form.terms) if tokens else None

    def emit(self) -> None:
        """Pack the gradient, then tasks for slices, and for parts of the tokens where weights are
        few: each part has sums of its own, which are added at the end."""
        if self.blocks is None or not self.sums.epilogue.out.size:
            self.sums.nothing()
            return
        g, slices = self.g, self.slices
        packed = self.packed.pack(self.gradient, self.exponent, self.groups)
        offset = self.packed.offsets(packed, self.sums.kind) if self.form.bias else None
        tasks = g.groups * slices.count
        parts = min(self.blocks.count, -(-TASKS // tasks)) if tasks < TASKS else 1
        each = -(-self.blocks.count // parts)
        parts = -(-self.blocks.count // each)
        together = self.sums.scratch(parts * tasks) if parts > 1 else None
        work = self.tokens * g.outputs * slices.count * slices.vectors * slices.lanes
        with nest.parallel(parts * tasks, work, "task") as task:
            part, index = tirx.floordiv(task, tasks), tirx.floormod(task, tasks)
            own = self.sums.scratch(1) if together is None else together
            start = 0 if together is None else task * self.sums.size
            count = tirx.min(each, self.blocks.count - part * each)
            self._slice(packed, own, start, index, part * each, count, each)
            if together is None:
                self.sums.write_slice(own, 1, index, offset)
        if together is not None:
            self.sums.write(together, parts, offset)

    def _slice(
        self,
        packed: Array,
        own: Array,
        start: Expr,
        index: Expr,
        first: Expr,
        count: Expr,
        most: int,
    ) -> None:
        assert self.blocks is not None
        blocks, g = self.blocks, self.g
        group, piece = (
            tirx.floordiv(index, self.slices.count),
            tirx.floormod(index, self.slices.count),
        )
        once = most == 1
        if not once:
            self.sums.clear(own, start)
        x = nest.scratch(blocks.images * blocks.height * self.line, self.dot.left)
        with nest.serial(count, "block") as k:
            number = first + k
            image = tirx.floordiv(number, blocks.per_image) * blocks.images
            row = tirx.floormod(number, blocks.per_image) * blocks.rows
            images: Expr = blocks.images
            if g.images % blocks.images:
                images = tirx.min(images, g.images - image)
            rows: Expr = blocks.rows
            if g.rows.out % blocks.rows:
                rows = tirx.min(rows, g.rows.out - row)
            with nest.serial(images, "image") as i:
                self._pack(x, i * blocks.height * self.line, image + i, row, rows, piece, group)
            place = (image * g.rows.out + row, images, rows)
            tiles = -(-g.outputs // self.tile)
            with nest.loops([g.rows.kernel, tiles], "tile") as (tap, tile):
                self._tile(x, packed, own, start, group, tap, tile * self.tile, place, once)

    def _pack(
        self, x: Array, start: Expr, image: Expr, row: Expr, rows: Expr, piece: Expr, group: Expr
    ) -> None:
        """[image line][step][vector][lanes * depth] of the lines that `rows` rows read."""
        assert self.blocks is not None
        g, slices, lines = self.g, self.slices, self.blocks.lines
        columns = forward(g.columns, skip=False)
        whole = g.groups * g.inputs
        width = self.packed.steps * self.dot.depth * columns.stride + columns.reach
        form = Image(lines, columns, slices.channels, 1, width, self.form)
        scratch = nest.scratch(form.line + SLACK, self.dot.left)
        count = (rows - 1) * lines.stride + lines.reach
        with nest.serial(count, "line") as line:
            source = lines.origin + (row * lines.stride + line) * lines.pitch
            inside = tirx.all(source >= 0, source < lines.source)
            position = image * lines.source + source
            with nest.when(inside):
                if slices.channels == whole:
                    form.pack_line(self.x, position, scratch, 0)
                else:
                    first = group * g.inputs + slices.first(piece)
                    form.pack_slice(self.x, position, whole, first, scratch, 0)
            with nest.when(tirx.Not(inside)):
                form.clear(scratch, 0, form.line)
            with nest.serial(self.packed.steps, "step") as step:
                token = step * self.dot.depth * columns.stride * slices.channels
                out = start + line * self.line + step * slices.vectors * self.vector
                for v in range(slices.vectors):
                    begin = token + slices.start(piece, v, group)
                    value = self._words(scratch, begin, columns.stride * slices.channels)
                    x.store(nest.ramp(out + v * self.vector, self.vector), value)

    def _words(self, line: Array, begin: Expr, step: int) -> Expr:
        """`lanes` values of `depth` tokens, which lie `step` apart, token after token in each
        lane."""
        lanes, depth = self.dot.lanes, self.dot.depth
        if step == lanes:
            order = [q * lanes + lane for lane in range(lanes) for q in range(depth)]
            whole = line[nest.ramp(begin, lanes * depth)]
            return tirx.Shuffle([whole], [tirx.const(i, "int32") for i in order])
        tokens = [line[nest.ramp(begin + q * step, lanes)] for q in range(depth)]
        return interleave(tokens, lanes)

    def _tile(
        self,
        x: Array,
        packed: Array,
        own: Array,
        start: Expr,
        group: Expr,
        tap: Expr,
        channel: Expr,
        place: tuple[Expr, Expr, Expr],
        once: bool,
    ) -> None:
        assert self.blocks is not None
        dot, slices, lines = self.dot, self.slices, self.blocks.lines
        lanes = nest.ramp(0, dot.lanes)
        zero = nest.splat(nest.zero("int32"), dot.lanes)
        sums = [
            [nest.scratch(dot.lanes, "int32") for _ in range(slices.vectors)]
            for _ in range(self.tile)
        ]
        for row in sums:
            for one in row:
                one.store(lanes, zero)
        first, images, rows = place
        height, steps = self.blocks.height, self.packed.steps
        flat = lines.stride == 1
        outer = images, (1 if flat else rows), (rows * steps if flat else steps)
        with nest.loops(outer, "t") as (i, r, step):
            line = i * height + r * lines.stride + tap * lines.spacing
            left = line * self.line + step * slices.vectors * self.vector
            token = first + i * self.g.rows.out + r
            for c in range(self.tile):
                word = self.packed.place(group * self.g.outputs + channel + c, token)
                word = word + step * self.packed.strip * dot.depth
                right = dot.repeated(packed, word)
                for v in range(slices.vectors):
                    value = dot.loaded(x, left + v * self.vector)
                    sums[c][v].store(lanes, dot.add(sums[c][v][lanes], value, right))
        for c in range(self.tile):
            for v in range(slices.vectors):
                self.sums.add(own, start, (channel + c, tap, v), sums[c][v][lanes], once)
