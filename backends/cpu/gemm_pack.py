"""Packing: lines of an operand to [quad][line][depth], the layout that dot products read.

A line is what a column of b or a row of a holds along k. Where lines are neighbours in memory, a
packed vector is `depth` loads and one interleaving. Where steps of k are neighbours, a block of
lanes x RUN quads is transposed. A sorted reduction reads steps of k in any order: lines whose
steps are neighbours are sorted into scratch memory first, or transposed byte by byte on a CPU
that cannot permute bytes. Operands of fewer lines than a vector, or of a few steps, are packed
value by value.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.gemm_groups import Factors
from sqcompile.backends.cpu.gemm_lines import Lines, Sorting
from sqcompile.backends.cpu.gemm_order import Sorted
from sqcompile.backends.cpu.gemm_plan import Form
from sqcompile.backends.cpu.gemm_shape import RUN, Shape, ceil_div, rounded
from sqcompile.backends.cpu.interleave import concatenated, interleaved, transposed
from sqcompile.backends.cpu.machine import Dot
from sqcompile.backends.cpu.nest import Array, Expr

BYTES = 16
"""Lines and steps of a block that is transposed byte by byte."""
AHEAD = 64
"""Steps ahead at which lines are fetched whose order no pattern tells the CPU."""
FETCH = 128
"""Steps ahead at which lines are fetched that are transposed byte by byte."""


@dataclass(frozen=True)
class Source:
    """An operand in memory: `lines` x `depth` values from `start` on, either way round."""

    array: Array
    start: Expr
    lines: int
    depth: int
    contiguous: bool

    def at(self, line: Expr, k: Expr) -> Expr:
        """Where the value of a line at step k is."""
        if self.contiguous:
            return self.start + line * self.depth + k
        return self.start + k * self.lines + line


@dataclass(frozen=True)
class Places:
    """Packed lines: vector v of `count` holds the lines from line(v) on, at slot(v) of `width`
    slots a quad. `full` tells whether every line of a vector exists."""

    count: int
    width: int
    full: bool
    line: Callable[[Expr], Expr]
    slot: Callable[[Expr], Expr]


@dataclass(frozen=True)
class Part:
    """One segment (of one batch) of some lines, and where it is packed: `out` from `base` on."""

    source: Source
    places: Places
    out: Array
    base: Expr
    batch: Expr
    segment: Expr


@dataclass(frozen=True)
class Packing:
    """How one operand of a product is packed, as `dtype`: its form, with factors or in sorted
    order; padding of a sorted reduction is zero where `masked`."""

    dot: Dot
    shape: Shape
    form: Form
    dtype: str
    factors: Factors | None = None
    order: Sorted | None = None
    masked: bool = False

    def pack(self, part: Part) -> None:
        """Emit the packing of a part."""
        contiguous, few = part.source.contiguous, self.shape.k < RUN * self.dot.depth
        if not part.places.full or (few and contiguous):
            self._values(part)
        elif self.order is None:
            (self._runs if contiguous else self._rows)(part)
        elif not contiguous:
            self._sorted(part)
        elif self.order.windows is not None:
            self._sorted_runs(part)
        elif self.dot.lanes == BYTES and self.shape.k >= BYTES:
            self._sorted(self._turned(part))
        else:
            self._values(part)

    def length(self, segment: Expr) -> Expr:
        """Steps of k of a segment."""
        if self.shape.segments == 1:
            return self.shape.k
        return tirx.min(self.shape.segment, self.shape.k - segment * self.shape.segment)

    @contextmanager
    def _last(self, part: Part) -> Iterator[None]:
        """What is emitted inside runs for the last segment alone."""
        if self.shape.segments == 1:
            yield
        else:
            with nest.when(part.segment == self.shape.segments - 1):
                yield

    def _finish(self, part: Part, v: Expr, quad: Expr, vector: Expr) -> None:
        """Shift, mask and bias a packed vector, and store it."""
        depth, lanes = self.dot.depth, self.dot.lanes * self.dot.depth
        place = quad * depth
        if self.factors is not None:
            step = part.segment * self.shape.segment + place
            vector = self.factors.scaled(vector, part.batch, step)
        if self.order is not None and self.masked:
            table = self.order.table(part.batch, part.segment)
            vector = self.order.kept(self.dot, vector, table, place)
        if self.form.bias:
            flip = nest.const(-128 if self.dtype == "int8" else 128, self.dtype)
            vector = tirx.bitwise_xor(vector, nest.splat(flip, lanes))
        part.out.store(nest.ramp(self._at(part, v, quad), lanes), vector)

    def _at(self, part: Part, v: Expr, quad: Expr) -> Expr:
        places = part.places
        return part.base + (quad * places.width + places.slot(v)) * self.dot.depth

    def _row(self, part: Part, v: Expr, k: Expr) -> Expr:
        """The values of a vector of lines at step k."""
        source = part.source
        values = source.array[nest.ramp(source.at(part.places.line(v), k), self.dot.lanes)]
        return self._stored(values, self.dot.lanes)

    def _stored(self, values: Expr, lanes: int) -> Expr:
        return nest.cast(values, self.dtype, lanes)

    def _rows(self, part: Part) -> None:
        """Lines are neighbours, steps in order."""
        depth, first = self.dot.depth, part.segment * self.shape.segment
        with (
            nest.serial(tirx.floordiv(self.length(part.segment), depth), "quad") as quad,
            nest.serial(part.places.count, "v") as v,
        ):
            rows = [self._row(part, v, first + quad * depth + i) for i in range(depth)]
            self._finish(part, v, quad, interleaved(rows))
        rest = self.shape.last % depth
        if rest:
            zeros = nest.splat(nest.zero(self.dtype), self.dot.lanes)
            with self._last(part), nest.serial(part.places.count, "v") as v:
                rows = [self._row(part, v, self.shape.k - rest + i) for i in range(rest)]
                rows += [zeros] * (depth - rest)
                self._finish(part, v, self.shape.last // depth, interleaved(rows))

    def _runs(self, part: Part) -> None:
        """Steps are neighbours and in order: each lane loads RUN quads."""
        run, first = RUN * self.dot.depth, part.segment * self.shape.segment
        source, places = part.source, part.places
        with nest.serial(places.count, "v") as v:
            with nest.serial(tirx.floordiv(self.length(part.segment), run), "run") as index:
                k, lines = first + index * run, range(self.dot.lanes)
                rows = [source.at(places.line(v) + lane, k) for lane in lines]
                self._block(part, v, source.array, rows, index * RUN, RUN)
            if self.shape.last % run:
                with self._last(part):
                    self._ends(part, v, run)

    def _ends(self, part: Part, v: Expr, run: int) -> None:
        """The steps after the last whole run, by way of scratch memory, where zeros follow."""
        source, rest = part.source, self.shape.last % run
        ends = nest.scratch(self.dot.lanes * run, source.array.dtype)
        with nest.serial(self.dot.lanes, "line") as line:
            with nest.serial(rest, "k") as k:
                at = source.at(part.places.line(v) + line, self.shape.k - rest + k)
                ends.store(line * run + k, source.array[at])
            with nest.serial(run - rest, "k") as k:
                ends.store(line * run + rest + k, nest.zero(ends.dtype))
        rows = [lane * run for lane in range(self.dot.lanes)]
        quad = (self.shape.last - rest) // self.dot.depth
        self._block(part, v, ends, rows, quad, ceil_div(rest, self.dot.depth))

    def _block(
        self, part: Part, v: Expr, array: Array, rows: list[Expr], quad: Expr, count: int
    ) -> None:
        """Transpose RUN quads of each lane and store the first `count` packed vectors. Element i
        of 16 bytes comes from row i of a joined vector: that joins rows i, i + RUN, ..."""
        run = RUN * self.dot.depth
        quads = [
            tirx.reinterpret(f"int32x{RUN}", self._stored(array[nest.ramp(at, run)], run))
            for at in rows
        ]
        joined = [concatenated(quads[i::RUN], RUN) for i in range(RUN)]
        kind = f"{self.dtype}x{self.dot.lanes * self.dot.depth}"
        turned = transposed(joined, "int32", self.dot.lanes, RUN)
        for i in range(count):
            self._finish(part, v, quad + i, tirx.reinterpret(kind, turned[i]))

    def _sorted(self, part: Part) -> None:
        """Lines are neighbours, steps in the order of groups."""
        assert self.order is not None
        order, depth = self.order, self.dot.depth
        table = order.table(part.batch, part.segment)
        with (
            order.groups(table) as (begin, count),
            nest.serial(count, "quad") as at,
            nest.serial(part.places.count, "v") as v,
        ):
            quad = begin + at
            for i in range(depth):
                place = tirx.min(quad * depth + (AHEAD + i), self.shape.places - 1)
                line = part.source.at(part.places.line(v), order.step(table, place))
                nest.prefetch(part.source.array, line)
            steps = [order.step(table, quad * depth + i) for i in range(depth)]
            rows = [self._row(part, v, step) for step in steps]
            self._finish(part, v, quad, interleaved(rows))

    def _sorted_runs(self, part: Part) -> None:
        """Steps are neighbours, but read in the order of groups: lines are sorted first."""
        assert self.order is not None
        shape, places = self.shape, part.places
        source, lanes = part.source, self.dot.lanes
        held = nest.scratch(places.count * lanes * shape.places, source.array.dtype)
        table, windows = self.order.table(part.batch, part.segment), self.order.windows
        assert windows is not None
        with nest.serial(places.count, "v") as v:
            lines = Lines(source.array, source.at(places.line(v), 0), source.depth)
            out = Lines(held, v * (lanes * shape.places), shape.places)
            Sorting(lines, out, windows, table).all(0, lanes)
        with (
            self.order.groups(table) as (begin, count),
            nest.serial(tirx.floordiv(count + (RUN - 1), RUN), "run") as index,
            nest.serial(places.count, "v") as v,
        ):
            quad = begin + index * RUN
            rows = [
                (v * lanes + lane) * shape.places + quad * self.dot.depth for lane in range(lanes)
            ]
            self._block(part, v, held, rows, quad, RUN)

    def _turned(self, part: Part) -> Part:
        """The part with its source transposed, in scratch memory: BYTES x BYTES values in each
        quarter of a register at once. The first rows of the scratch are a margin for blocks that
        overlap the start of a segment."""
        source, places, shape = part.source, part.places, self.shape
        joined = min(4, places.count)
        groups = ceil_div(places.count, joined)
        width, first = groups * joined * BYTES, part.segment * shape.segment
        turned = nest.scratch((rounded(min(shape.segment, shape.k), BYTES) + BYTES) * width, "int8")
        length = self.length(part.segment)
        kind = f"int8x{BYTES}"
        with (
            nest.serial(groups, "group") as group,
            nest.serial(tirx.floordiv(length + BYTES - 1, BYTES), "block") as block,
        ):
            k = tirx.min(block * BYTES, length - BYTES)
            self._fetch(part, group * joined, joined, block, first + k + FETCH)
            rows = []
            for i in range(BYTES):
                parts = []
                for u in range(joined):
                    v = tirx.min(group * joined + u, places.count - 1)
                    at = source.at(places.line(v) + i, first + k)
                    parts.append(tirx.reinterpret(kind, source.array[nest.ramp(at, BYTES)]))
                rows.append(concatenated(parts, BYTES))
            for i, row in enumerate(transposed(rows, "int8", joined * BYTES, BYTES)):
                at = (BYTES + k + i) * width + group * (joined * BYTES)
                turned.store(nest.ramp(at, joined * BYTES), row)
        whole = Source(turned, (BYTES - first) * width, width, shape.k, False)
        rows_of = replace(places, line=lambda v: v * BYTES)
        return replace(part, source=whole, places=rows_of)

    def _fetch(self, part: Part, vector: Expr, joined: int, block: Expr, k: Expr) -> None:
        """Fetch step k of a quarter of the lines: four blocks share a cache line, in turns."""
        source, places, count = part.source, part.places, joined * BYTES // 4
        with nest.serial(count, "ahead") as ahead:
            line = tirx.floormod(block, 4) * count + ahead
            v = tirx.min(vector + tirx.floordiv(line, BYTES), places.count - 1)
            nest.prefetch(source.array, source.at(places.line(v) + tirx.floormod(line, BYTES), k))

    def _values(self, part: Part) -> None:
        """Value by value into scratch memory, then shifted and biased in vectors. These overlap,
        so it cannot be done in place, and TVM would use one buffer for both if it were read at
        the indices that are written: the scratch has a margin."""
        shape, places, dot = self.shape, part.places, self.dot
        lines = dot.lanes if places.full else min(part.source.lines, dot.lanes)
        margin = dot.depth
        held = nest.scratch(margin + shape.quads * places.width * dot.depth, self.dtype)
        with nest.serial(held.size, "clear") as i:
            held.store(i, nest.zero(self.dtype))
        table = None if self.order is None else self.order.table(part.batch, part.segment)
        with (
            self._each_place(part) as place,
            nest.serial(places.count, "v") as v,
            nest.serial(lines, "line") as line,
        ):
            k = part.segment * shape.segment + place
            if self.order is not None:
                k = self.order.step(table, place)
            value = part.source.array[part.source.at(places.line(v) + line, k)]
            at = self._at(part, v, tirx.floordiv(place, dot.depth)) - part.base + margin
            at = at + line * dot.depth + tirx.floormod(place, dot.depth)
            held.store(at, nest.cast(value, self.dtype))
        with nest.serial(shape.quads, "quad") as quad, nest.serial(places.count, "v") as v:
            at = self._at(part, v, quad) - part.base + margin
            self._finish(part, v, quad, held[nest.ramp(at, dot.lanes * dot.depth)])

    @contextmanager
    def _each_place(self, part: Part) -> Iterator[Expr]:
        """Loop over the places of a segment that are in use."""
        if self.order is None:
            with nest.serial(self.length(part.segment), "place") as place:
                yield place
            return
        with (
            self.order.groups(self.order.table(part.batch, part.segment)) as (begin, count),
            nest.serial(count * self.dot.depth, "place") as place,
        ):
            yield begin * self.dot.depth + place
