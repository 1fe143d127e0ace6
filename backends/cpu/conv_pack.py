"""Packing for convolutions: image lines into padded scratch, weights into panels of vectors."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.conv_geometry import Lines, Phase
from sqcompile.backends.cpu.conv_operands import BIAS, Stored
from sqcompile.backends.cpu.machine import Dot
from sqcompile.backends.cpu.nest import Array, Expr

FEW_TAPS = 16
"""Kernel pixels up to which weights are packed all taps at a time."""
CHUNK = 16
"""Words of a result channel that are packed before the next channel's."""
COPIED = 64
"""Elements that a copy moves at a time."""
ALIGNED = 64
"""Elements of a cache line (half as many of 16-bit ones): stores across two lines cost twice."""
WIDENED = 8
"""Lines are widened to whole cache lines where they are at least so many times as long."""
SLACK = 64
"""Elements behind an image that a last, partial dot product may read; its weights are zero."""


def at(start: Expr, lanes: int) -> Expr:
    """The index of `lanes` elements from start on."""
    return start if lanes == 1 else nest.ramp(start, lanes)


def filled(value: Expr, lanes: int) -> Expr:
    """A scalar in every lane, of any number."""
    return value if lanes == 1 else nest.splat(value, lanes)


def aligned_width(width: int, channels: int) -> int:
    """The next width whose lines are whole cache lines, if that is not much more."""
    wide = next(w for w in count(width) if w * channels % ALIGNED == 0)
    return wide if (wide - width) * WIDENED <= width else width


@contextmanager
def pieces(length: int, widest: int = COPIED) -> Iterator[tuple[Expr, int]]:
    """A loop over vectors that cover `length` elements: (start, lanes).

    The last one overlaps the one before it instead of leaving a rest: no loop is scalar.
    """
    lanes = min(widest, 1 << (length.bit_length() - 1))
    with starts(length, lanes, "piece") as start:
        yield start, lanes


@contextmanager
def starts(length: int, size: int, name: str = "tile") -> Iterator[Expr]:
    """A loop over pieces of `size` that cover `length`: where each starts; the last may overlap."""
    with nest.serial(-(-length // size), name) as index:
        start = index * size
        yield tirx.min(start, length - size) if length % size else start


def pick(index: Expr, values: Sequence[int]) -> Expr:
    """values[index]: an affine expression where it can be, else a chain of selections."""
    step = values[1] - values[0] if len(values) > 1 else 0
    if all(value == values[0] + i * step for i, value in enumerate(values)):
        return values[0] + index * step if step else values[0]
    chosen: Expr = nest.const(values[-1], "int32")
    for i, value in reversed(list(enumerate(values[:-1]))):
        chosen = nest.select(index == i, nest.const(value, "int32"), chosen)
    return chosen


@dataclass(frozen=True)
class Image:
    """Padded lines [height][width][channels] of one image in scratch, as `stored` has them.

    Channels are not padded: a dot product that reads past the last one multiplies by zero.
    `factors` holds the power of two that each channel is multiplied by, repeated over a line.
    """

    rows: Lines
    columns: Lines
    channels: int
    height: int
    width: int
    stored: Stored
    factors: Array | None = None

    @property
    def lead(self) -> int:
        """Elements before the image, such that the first copied element of a line is aligned."""
        left = (self._inside()[0] - self.columns.origin) * self.channels
        return -left % ALIGNED

    @property
    def line(self) -> int:
        """Elements of a line."""
        return self.width * self.channels

    @property
    def size(self) -> int:
        """Elements of the image."""
        return self.height * self.line

    def scratch(self, images: int) -> Array:
        """Memory for some images."""
        return nest.scratch(self.lead + images * self.size + SLACK, self.stored.dot.left)

    def pack(self, x: Array, image: Expr, first: Expr, out: Array, start: Expr) -> None:
        """Write `height` lines of image `image` of x (N, H, W, C), the first one line `first`."""
        with nest.serial(self.height, "line") as line:
            row = self.rows.origin + (first + line) * self.rows.pitch
            begin = start + line * self.line
            inside = tirx.all(row >= 0, row < self.rows.source)
            with nest.when(inside):
                self.pack_line(x, image * self.rows.source + row, out, begin)
            with nest.when(tirx.Not(inside)):
                self.clear(out, begin, self.line)

    def pack_line(self, x: Array, row: Expr, out: Array, begin: Expr) -> None:
        """Write the line of row `row` (n * H + h) of x."""
        low, high = self._inside()
        left, copied = (low - self.columns.origin) * self.channels, (high - low) * self.channels
        if copied <= 0:
            self.clear(out, begin, self.line)
            return
        source = (row * self.columns.source + low) * self.channels
        self.clear(out, begin, left)
        with pieces(copied) as (piece, lanes):
            value = x[at(source + piece, lanes)]
            factor = None if self.factors is None else self.factors[at(piece, lanes)]
            out.store(at(begin + left + piece, lanes), stored(self.stored, value, factor, lanes))
        self.clear(out, begin + left + copied, self.line - left - copied)

    def pack_slices(self, x: Array, image: Expr, stride: int, first: Expr, out: Array) -> None:
        """As `pack`, of channels first, ... of x, which has `stride` of them."""
        with nest.serial(self.height, "line") as line:
            row = self.rows.origin + line * self.rows.pitch
            inside = tirx.all(row >= 0, row < self.rows.source)
            with nest.when(inside):
                source = image * self.rows.source + row
                self.pack_slice(x, source, stride, first, out, line * self.line)
            with nest.when(tirx.Not(inside)):
                self.clear(out, line * self.line, self.line)

    def pack_slice(
        self, x: Array, row: Expr, stride: int, first: Expr, out: Array, start: Expr
    ) -> None:
        """Write `channels` channels of a row's pixels, which have `stride` of them."""
        low, high = self._inside()
        left = (low - self.columns.origin) * self.channels
        if high <= low:
            self.clear(out, start, self.line)
            return
        self.clear(out, start, left)
        source = (row * self.columns.source + low) * stride + first
        with nest.serial(high - low, "pixel") as pixel, pieces(self.channels) as (piece, lanes):
            value = x[at(source + pixel * stride + piece, lanes)]
            place = at(start + left + pixel * self.channels + piece, lanes)
            out.store(place, stored(self.stored, value, None, lanes))
        end = left + (high - low) * self.channels
        self.clear(out, start + end, self.line - end)

    def _inside(self) -> tuple[int, int]:
        origin = self.columns.origin
        return max(origin, 0), min(origin + self.width, self.columns.source)

    def clear(self, out: Array, start: Expr, length: int) -> None:
        """What padding holds."""
        if length > 0:
            with pieces(length) as (piece, lanes):
                zero = nest.const(self.stored.bias, out.dtype)
                out.store(at(start + piece, lanes), filled(zero, lanes))

    def fill_factors(self, factor: Callable[[Expr], Expr]) -> None:
        """factors = factor(channel), int16, for a whole line."""
        assert self.factors is not None
        with (
            nest.serial(self.factors.size // self.channels, "pixel") as pixel,
            nest.serial(self.channels, "channel") as channel,
        ):
            self.factors.store(pixel * self.channels + channel, factor(channel))


def stored(form: Stored, value: Expr, factor: Expr | None, lanes: int) -> Expr:
    """int8 or uint8 values as the left operand, times a power of two."""
    dtype = nest.dtype_of(value).split("x")[0]
    if form.dot.bytes and factor is None:
        if dtype == "uint8":
            return value
        raw = tirx.reinterpret("uint8" if lanes == 1 else f"uint8x{lanes}", value)
        return raw ^ filled(nest.const(form.bias, "uint8"), lanes) if form.bias else raw
    wide = nest.cast(value, "int16", lanes)
    if factor is not None:
        wide = wide * factor
    if not form.dot.bytes:
        return wide
    return nest.cast(wide + filled(nest.const(form.bias, "int16"), lanes), "uint8", lanes)


def interleave(vectors: Sequence[Expr], lanes: int) -> Expr:
    """[first of each, second of each, ...] of vectors of `lanes` elements."""
    order = [q * lanes + lane for lane in range(lanes) for q in range(len(vectors))]
    return tirx.Shuffle(list(vectors), [tirx.const(i, "int32") for i in order])


def power_of_two(shift: Expr) -> Expr:
    """1 << shift as int32, in a register."""
    held = nest.scratch(1, "int32")
    held.store(0, tirx.shift_left(nest.const(1, "int32"), shift))
    return held[0]


def scaled(value: Expr, factors: Sequence[Expr], words: int, dot: Dot) -> Expr:
    """Words of `depth` values times powers of two, one for each place in a word.

    There is no product of bytes: even and odd ones are multiplied as 16-bit values.
    """
    half, kind = words * 2, f"int16x{words * 2}"

    def both(first: Expr, second: Expr) -> Expr:
        pair = tirx.bitwise_or(first, tirx.shift_left(second, nest.const(16, "int32")))
        return tirx.reinterpret(kind, filled(pair, words))

    pairs = tirx.reinterpret(kind, value)
    if not dot.bytes:
        return pairs * both(factors[0], factors[1])
    low, high = (nest.splat(nest.const(mask, "int16"), half) for mask in (0xFF, -0x100))
    even = (pairs * both(factors[0], factors[2])) & low
    odd = (pairs & high) * both(factors[1], factors[3])
    return tirx.reinterpret(f"int8x{words * 4}", even | odd)


def shift_of(exponent: Array, groups: int, index: Expr) -> Expr:
    """groups - 1 - exponent[index] as int32; an exponent of one element serves every index."""
    value = exponent[index if exponent.size > 1 else 0]
    return nest.const(groups - 1, "int32") - nest.cast(value, "int32")


@dataclass(frozen=True)
class Reading:
    """How weights (O, C / groups, KH, KW) are read: strides of the result's and of the reduced
    channel in a group, and from one group to the next."""

    result: int
    reduced: int
    group: int
    width: int
    taps: int


@dataclass(frozen=True)
class _Panel:
    """One panel while it is packed: its group, block, phases, and where it starts."""

    group: Expr
    block: Expr
    row: Expr
    column: Expr
    start: Expr


@dataclass(frozen=True)
class Panels:
    """The weights, [row phase][column phase][group][block], each
    [row tap][run][step][vector][lanes * depth]; `offset` is what accumulators start with, one for
    each result channel of a panel.

    A run is what a dot product reads without a jump: the column taps and channels of a line
    where taps are neighbours, else the channels of one tap.
    """

    rows: Lines
    columns: Lines
    groups: int
    blocks: int
    vectors: int
    outputs: int
    channels: int
    merged: bool
    stored: Stored

    def row_taps(self, row: Expr) -> Expr:
        """Kernel lines of a row phase."""
        return pick(row, [p.taps for p in self.rows.phases])

    def runs(self, column: Expr) -> Expr:
        """Runs of a kernel line of a column phase."""
        return pick(
            column, [min(p.taps, 1) if self.merged else p.taps for p in self.columns.phases]
        )

    def steps(self, column: Expr) -> Expr:
        """Dot products of a run."""
        return pick(column, self._steps())

    def _run(self, phase: Phase) -> int:
        return self.channels * (phase.taps if self.merged else 1)

    def _steps(self) -> list[int]:
        return [-(-self._run(p) // self.stored.dot.depth) for p in self.columns.phases]

    def unrolled(self, most: int) -> int:
        """Steps, at most `most`, that divide every run."""
        return next(n for n in range(most, 0, -1) if not any(s % n for s in self._steps()))

    @property
    def terms(self) -> int:
        """Dot products of the longest sum."""
        rows = max(p.taps for p in self.rows.phases)
        runs = [1 if self.merged else p.taps for p in self.columns.phases]
        return rows * max(r * s for r, s in zip(runs, self._steps(), strict=True))

    @property
    def vector(self) -> int:
        """Elements of a vector."""
        return self.stored.dot.lanes * self.stored.dot.depth

    @property
    def panel(self) -> int:
        """Elements of one block's weights, of the phases that have most."""
        return self.terms * self.vectors * self.vector

    @property
    def width(self) -> int:
        """Result channels of a panel."""
        return self.vectors * self.stored.dot.lanes

    @property
    def count(self) -> int:
        """Panels."""
        return len(self.rows.phases) * len(self.columns.phases) * self.groups * self.blocks

    def first(self, block: Expr, vector: Expr) -> Expr:
        """The first channel, in its group, of a vector; the last one overlaps its neighbour."""
        lanes = self.stored.dot.lanes
        start = (block * self.vectors + vector) * lanes
        exact = self.blocks * self.width == self.outputs
        return start if exact else tirx.max(tirx.min(start, self.outputs - lanes), 0)

    def pack(
        self, w: Array, reading: Reading, shift: Callable[[Expr], Expr] | None
    ) -> tuple[Array, Array]:
        """The panels, values shifted by shift(reduced channel), and their offsets."""
        dot = self.stored.dot
        out = nest.scratch(self.count * self.panel, dot.right)
        offset = nest.scratch(self.count * self.width, "int32")
        with nest.parallel(self.count, self.count * self.panel, "panel") as index:
            sizes = [len(self.rows.phases), len(self.columns.phases), self.groups, self.blocks]
            row, column, group, block = nest.unravel(index, sizes)
            where = _Panel(group, block, row, column, index * self.panel)
            if self._fast(reading):
                self._pack_words(w, reading, shift, out, where)
            else:
                self._pack_values(w, reading, shift, out, where)
            self._offsets(out, offset, where, index)
        return out, offset

    def _pack_values(
        self,
        w: Array,
        reading: Reading,
        shift: Callable[[Expr], Expr] | None,
        out: Array,
        where: "_Panel",
    ) -> None:
        """Value by value: any geometry."""
        dot, runs, steps = self.stored.dot, self.runs(where.column), self.steps(where.column)
        first_row, first_column = self._kernel(where)
        length = pick(where.column, [self._run(p) for p in self.columns.phases])
        sizes = [self.row_taps(where.row), runs, steps, self.vectors]
        with (
            nest.loops(sizes, "w") as (i, run, step, vector),
            nest.serial(dot.lanes, "lane") as lane,
        ):
            kh = first_row + i * self.rows.kernel_step
            place = ((i * runs + run) * steps + step) * self.vectors + vector
            place = where.start + place * self.vector + lane * dot.depth
            channel = tirx.min(self.first(where.block, vector) + lane, self.outputs - 1)
            for d in range(dot.depth):
                e = step * dot.depth + d
                tap = tirx.floordiv(e, self.channels) if self.merged else run
                reduced = tirx.floormod(e, self.channels) if self.merged else e
                kw = first_column + tap * self.columns.kernel_step
                beyond = bool(self.channels % dot.depth)
                if beyond:
                    inside = e < length
                    kw = nest.select(inside, kw, first_column)
                    reduced = nest.select(inside, reduced, 0)
                source = where.group * reading.group + channel * reading.result
                value = w[source + reduced * reading.reduced + kh * reading.width + kw]
                if shift is not None:
                    left = shift(where.group * self.channels + reduced)
                    value = tirx.shift_left(nest.cast(value, "int32"), left)
                value = nest.cast(value, dot.right)
                if beyond:
                    value = nest.select(inside, value, nest.zero(dot.right))
                out.store(place + d, value)

    def _kernel(self, where: "_Panel") -> tuple[Expr, Expr]:
        """The first kernel line and column of the panel's phases."""
        row = pick(where.row, [p.kernel for p in self.rows.phases])
        return row, pick(where.column, [p.kernel for p in self.columns.phases])

    def _fast(self, reading: Reading) -> bool:
        """Whether words never cross a tap and vectors are full."""
        full = self.channels % self.stored.dot.depth == 0 and self.outputs >= self.stored.dot.lanes
        return full and 1 < reading.taps <= FEW_TAPS

    def _pack_words(
        self,
        w: Array,
        reading: Reading,
        shift: Callable[[Expr], Expr] | None,
        out: Array,
        where: "_Panel",
    ) -> None:
        """A word holds one tap of `depth` reduced channels. The words of all taps, for one vector
        of results and some reduced channels, are made in the order of w, then copied one by one."""
        dot, taps = self.stored.dot, reading.taps
        words = self.channels // dot.depth
        first_row, first_column = self._kernel(where)
        across = reading.result == taps
        chunk = 1 if across else next(n for n in range(CHUNK, 0, -1) if words % n == 0)
        size = chunk * taps * dot.depth
        made = nest.scratch(dot.lanes * size + SLACK, dot.right)
        raw = nest.scratch(size + SLACK, w.dtype)
        with nest.loops([self.vectors, words // chunk], "w") as (vector, part):
            reduced = part * chunk * dot.depth
            source = where.group * reading.group + reduced * reading.reduced
            source = source + self.first(where.block, vector) * reading.result
            channel = where.group * self.channels + reduced
            if across:
                self._words_across(w, source, reading, shift, channel, made)
            else:
                assert shift is None
                with nest.serial(dot.lanes, "lane") as lane:
                    self._words_along(
                        w, source + lane * reading.result, size, taps, raw, made, lane
                    )
            with nest.serial(chunk, "word") as word:
                across_taps = pick(where.column, [p.taps for p in self.columns.phases])
                sizes = [self.row_taps(where.row), across_taps, dot.lanes]
                with nest.loops(sizes, "tap") as (i, j, lane):
                    kh = first_row + i * self.rows.kernel_step
                    tap = kh * reading.width + first_column + j * self.columns.kernel_step
                    place = (i * across_taps + j) * words + part * chunk + word
                    place = where.start + (place * self.vectors + vector) * self.vector
                    first = lane * size + (word * taps + tap) * dot.depth
                    one = made[nest.ramp(first, dot.depth)]
                    out.store(nest.ramp(place + lane * dot.depth, dot.depth), one)

    def _words_across(
        self,
        w: Array,
        source: Expr,
        reading: Reading,
        shift: Callable[[Expr], Expr] | None,
        channel: Expr,
        made: Array,
    ) -> None:
        """[lane][tap] of one word: the results' taps lie together in w."""
        dot = self.stored.dot
        factors = None
        if shift is not None:
            factors = [power_of_two(shift(channel + d)) for d in range(dot.depth)]
        with pieces(dot.lanes * reading.taps, dot.lanes) as (piece, lanes):
            rows = [
                w[nest.ramp(source + piece + d * reading.reduced, lanes)] for d in range(dot.depth)
            ]
            value = interleave([nest.cast(row, dot.right, lanes) for row in rows], lanes)
            if factors is not None:
                value = scaled(value, factors, lanes, dot)
            made.store(nest.ramp(piece * dot.depth, lanes * dot.depth), value)

    def _words_along(
        self,
        w: Array,
        source: Expr,
        size: int,
        taps: int,
        raw: Array,
        made: Array,
        lane: Expr,
    ) -> None:
        """[word][tap] of one result: its reduced channels lie together in w."""
        dot = self.stored.dot
        with pieces(size) as (piece, lanes):
            raw.store(at(piece, lanes), w[at(source + piece, lanes)])
        wide = FEW_TAPS * dot.depth
        order = [d * taps + t for t in range(taps) for d in range(dot.depth)]
        order += [0] * (wide - len(order))
        places = [tirx.const(i, "int32") for i in order]
        with nest.serial(size // (taps * dot.depth), "word") as word:
            start = word * taps * dot.depth
            value = nest.cast(raw[nest.ramp(start, wide)], dot.right, wide)
            made.store(nest.ramp(lane * size + start, wide), tirx.Shuffle([value], places))

    def _offsets(self, out: Array, offset: Array, where: "_Panel", index: Expr) -> None:
        dot, lanes = self.stored.dot, nest.ramp(0, self.stored.dot.lanes)
        zero = nest.splat(nest.zero("int32"), dot.lanes)
        terms = self.row_taps(where.row) * self.runs(where.column) * self.steps(where.column)
        with nest.serial(self.vectors, "vector") as vector:
            total = nest.scratch(dot.lanes, "int32")
            total.store(lanes, zero)
            if self.stored.bias:
                bias = nest.splat(nest.const(BIAS, dot.left), self.vector)
                with nest.serial(terms, "term") as term:
                    start = where.start + (term * self.vectors + vector) * self.vector
                    total.store(lanes, dot.add(total[lanes], bias, dot.loaded(out, start)))
            place = (index * self.vectors + vector) * dot.lanes
            offset.store(nest.ramp(place, dot.lanes), zero - total[lanes])
