"""A reduction sorted by group, as tables that packing and the inner loop read.

`Sorted` is an order of k in which groups are contiguous: a counting sort, so it costs a few
instructions a step of k. Every group begins at a multiple of Shape.align, at least a quad, and
padding is masked. `Windows` say how lines whose steps of k are neighbours are put into that order
in registers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.gemm_groups import Exponents
from sqcompile.backends.cpu.gemm_shape import BYTES, Shape, ceil_div
from sqcompile.backends.cpu.machine import Dot
from sqcompile.backends.cpu.nest import Array, Expr


@dataclass(frozen=True)
class Windows:
    """How sorted bytes come out of a line: from windows of BYTES steps, in the order of a table.

    Window number i of a table begins at step steps[i] of the line and gives bytes of the BYTES
    sorted places from into[i] on, by a pattern: byte j of it is BYTES + (the place in the window)
    where sorted byte j is there, and j, which keeps what was found before, where not. A group's
    steps are in order, so its sorted bytes share no more than the window at which they meet.
    """

    shape: Shape
    most: int
    patterns: Array
    steps: Array
    into: Array
    counts: Array

    @classmethod
    def of(cls, shape: Shape, tables: int) -> "Windows":
        """Memory for the windows of some tables, each of at most `most`."""
        most = (shape.groups + 1) * ceil_div(min(shape.segment, shape.k), BYTES) + shape.groups
        patterns = nest.scratch(tables * most * BYTES, "int8")
        steps, into = (nest.scratch(tables * most, "int32") for _ in range(2))
        return cls(shape, most, patterns, steps, into, nest.scratch(tables, "int32"))

    def count(self, table: Expr) -> Expr:
        """How many windows a table has."""
        return self.counts[table]

    def pattern(self, table: Expr, number: Expr) -> Expr:
        """The pattern of a window."""
        return self.patterns[nest.ramp((table * self.most + number) * BYTES, BYTES)]

    def places(self, table: Expr, number: Expr) -> tuple[Expr, Expr]:
        """(First step of a window, first sorted place that it serves)."""
        at = table * self.most + number
        return self.steps[at], self.into[at]

    def fill(self, table: Expr, first: Expr, order: Array, base: Expr, places: list[Expr]) -> None:
        """Append the windows of a group of a segment that begins at step `first`: its sorted steps
        are order[base + places[0]] ... order[base + places[1] - 1]."""
        begin, end = places
        with nest.serial(tirx.floordiv(end - begin + (BYTES - 1), BYTES), "vector") as v:
            own = begin + v * BYTES
            taken = tirx.min(BYTES, end - own)
            window = tirx.floordiv(order[base + own] - first, BYTES)
            needed = tirx.floordiv(order[base + own + taken - 1] - first, BYTES) - window + 1
            at = nest.scratch(1, "int32")
            at.store(0, table * self.most + self.counts[table])
            with nest.serial(needed, "w") as w:
                self.steps.store(at[0] + w, self._start(first, window + w))
                self.into.store(at[0] + w, own)
            with nest.serial(needed * BYTES, "byte") as i:
                same = nest.cast(tirx.floormod(i, BYTES), "int8")
                self.patterns.store(at[0] * BYTES + i, same)
            with nest.serial(taken, "byte") as i:
                k = order[base + own + i]
                w = tirx.floordiv(k - first, BYTES)
                place = nest.cast(BYTES + (k - self._start(first, w)), "int8")
                self.patterns.store((at[0] + w - window) * BYTES + i, place)
            self.counts.store(table, self.counts[table] + needed)

    def _start(self, first: Expr, window: Expr) -> Expr:
        """Where a window begins: nothing behind a line's last byte is read."""
        return tirx.min(first + window * BYTES, self.shape.k - BYTES)


@dataclass(frozen=True)
class Sorted:
    """Steps of k by group, the one with the largest shift first.

    For every batch and segment: `order` holds Shape.places steps, `keep` all ones for those that
    are there and zero for padding, `bounds` the first quad of every group and what follows the
    last one, `ends` the quad after each.
    """

    exponents: Exponents
    shape: Shape
    order: Array
    keep: Array
    bounds: Array
    ends: Array
    windows: Windows | None

    @classmethod
    def of(cls, exponents: Exponents, shape: Shape, dtype: str, permuted: bool) -> "Sorted":
        """Emit the sort; `dtype` is that of the packed operand which `keep` masks; `permuted`
        tells whether an operand is permuted in windows."""
        tables = exponents.batches * shape.segments
        order = nest.scratch(tables * shape.places, "int32")
        keep = nest.scratch(tables * shape.places, dtype)
        bounds = nest.scratch(tables * (shape.groups + 1), "int32")
        ends = nest.scratch(tables * shape.groups, "int32")
        windows = Windows.of(shape, tables) if permuted else None
        made = cls(exponents, shape, order, keep, bounds, ends, windows)
        with nest.parallel(tables, exponents.batches * shape.k * 4, "table") as table:
            made._sort(table)
        return made

    def table(self, batch: Expr, segment: Expr) -> Expr:
        """Number of the table of a batch and segment."""
        return self.exponents.batch(batch) * self.shape.segments + segment

    def step(self, table: Expr, place: Expr) -> Expr:
        """The step of k at a place."""
        return self.order[table * self.shape.places + place]

    def kept(self, dot: Dot, vector: Expr, table: Expr, place: Expr) -> Expr:
        """A packed vector without what stands at padding."""
        at = table * self.shape.places + place
        return tirx.bitwise_and(vector, dot.repeated(self.keep, at))

    @contextmanager
    def groups(self, table: Expr) -> Iterator[tuple[Expr, Expr]]:
        """Loop over the groups: (first quad, count of quads)."""
        with nest.serial(self.shape.groups, "group") as group:
            first = self.bounds[table * (self.shape.groups + 1) + group]
            yield first, self.ends[table * self.shape.groups + group] - first

    def _sort(self, table: Expr) -> None:
        shape, groups = self.shape, self.shape.groups
        batch = tirx.floordiv(table, shape.segments)
        first = tirx.floormod(table, shape.segments) * shape.segment
        length = tirx.min(shape.segment, shape.k - first)
        begin, own = table * shape.places, table * (groups + 1)
        with nest.serial(shape.places, "clear") as p:
            self.order.store(begin + p, nest.cast(first, "int32"))
            self.keep.store(begin + p, nest.zero(self.keep.dtype))
        following, used = nest.scratch(groups, "int32"), nest.scratch(1, "int32")
        with nest.serial(groups, "group") as g:
            following.store(g, nest.zero("int32"))
        with nest.serial(length, "k") as k:
            e = self.exponents.at(batch, first + k)
            following.store(e, following[e] + 1)
        used.store(0, nest.zero("int32"))
        with nest.serial(groups, "group") as g:
            self.bounds.store(own + g, used[0])
            quads = tirx.floordiv(following[g] + (shape.depth - 1), shape.depth)
            self.ends.store(table * groups + g, used[0] + quads)
            aligned = tirx.floordiv(following[g] + (shape.align - 1), shape.align)
            used.store(0, used[0] + aligned * (shape.align // shape.depth))
            following.store(g, self.bounds[own + g] * shape.depth)
        self.bounds.store(own + groups, used[0])
        with nest.serial(length, "k") as k:
            e = self.exponents.at(batch, first + k)
            place = begin + following[e]
            self.order.store(place, nest.cast(first + k, "int32"))
            self.keep.store(
                place, nest.const(-1 if self.keep.dtype[0] == "i" else 255, self.keep.dtype)
            )
            following.store(e, following[e] + 1)
        if self.windows is not None:
            self.windows.counts.store(table, nest.zero("int32"))
            with nest.serial(groups, "group") as g:
                places = [self.bounds[own + g] * shape.depth, following[g]]
                self.windows.fill(table, first, self.order, begin, places)
