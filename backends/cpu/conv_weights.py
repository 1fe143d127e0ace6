"""Weights of fprop and dgrad, packed into panels of vectors."""

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from sqcompile.backends.conv_geometry import Lines, Phase
from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.conv_operands import BIAS, Stored
from sqcompile.backends.cpu.conv_vectors import (
    SLACK,
    at,
    interleave,
    pick,
    pieces,
    power_of_two,
    scaled,
)
from sqcompile.backends.cpu.nest import Array, Expr

FEW_TAPS = 16
"""Kernel pixels up to which weights are packed all taps at a time."""
CHUNK = 16
"""Words of a result channel that are packed before the next channel's."""


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

    def place(self, vector: Expr) -> tuple[Expr, int]:
        """(first channel, number of channels) of a vector counted over all groups."""
        each = self.blocks * self.vectors
        group, place = tirx.floordiv(vector, each), tirx.floormod(vector, each)
        return (
            group * self.outputs + self.first(0, place),
            min(self.outputs, self.stored.dot.lanes),
        )

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
                factors = self._factors(shift, channel, chunk)
                with nest.serial(dot.lanes, "lane") as lane:
                    first = source + lane * reading.result
                    self._words_along(w, first, size, taps, raw, made, lane, factors)
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

    def _factors(
        self, shift: Callable[[Expr], Expr] | None, channel: Expr, words: int
    ) -> Array | None:
        """The power of two of each channel of `words` words from `channel` on."""
        if shift is None:
            return None
        factors = nest.scratch(words * self.stored.dot.depth, "int32")
        with nest.serial(factors.size, "c") as c:
            one = nest.const(1, "int32")
            factors.store(c, tirx.shift_left(one, shift(channel + c)))
        return factors

    def _words_along(
        self,
        w: Array,
        source: Expr,
        size: int,
        taps: int,
        raw: Array,
        made: Array,
        lane: Expr,
        factors: Array | None,
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
            value = tirx.Shuffle([value], places)
            if factors is not None:
                own = [factors[word * dot.depth + d] for d in range(dot.depth)]
                value = scaled(value, own, FEW_TAPS, dot)
            made.store(nest.ramp(lane * size + start, wide), value)

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
