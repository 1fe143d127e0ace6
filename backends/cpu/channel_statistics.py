"""Sums and extremes of the channels of a product's result, gathered while it is in registers.

A column is a lane of the vectors of results that a kernel writes: a channel, of which a kernel
whose vectors overlap has two columns, or none where a vector is wider than the result. Every part
of the work (a block of rows) has a row of columns of its own in memory, so that threads share
nothing; sums of integers are the same in any order.
"""

from collections.abc import Callable, Sequence

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.kernels import KernelSpec

INT32_LIMIT = 2**31
LEAST = 256
"""Elements of a workspace at least."""


class Gather:
    """The statistics of a result under construction: [part][column] of each."""

    def __init__(self, spec: KernelSpec, f: nest.Function, parts: int, columns: int, lanes: int):
        """columns: those of a part, in vectors of `lanes`."""
        self.parts, self.columns, self.lanes = parts, columns, lanes
        out, self.statistics = f.outputs
        self.kind, self.channels = out.dtype, out.shape[-1]
        self.together = (INT32_LIMIT - 1) // largest(spec) if self.kind == "int32" else 0
        self.size = max(parts * columns, LEAST)
        self.total = nest.workspace(self.size, "int64")
        self.extremes = nest.workspace(2 * self.size, self.kind)

    def clear(self, start: Expr, vectors: int) -> None:
        """Before the first results of the `vectors` vectors of columns from `start` on, counted
        over [part][column]."""
        with nest.serial(vectors, "clear") as v:
            at = start + v * self.lanes
            self.total.store(self._at(at), nest.splat(nest.zero("int64"), self.lanes))
            for place, _, first in self._extremes(at):
                self.extremes.store(place, nest.splat(first, self.lanes))

    def add(self, start: Expr, columns: Sequence[Sequence[Expr]], skip: Expr | None = None) -> None:
        """columns[v]: vectors of results for the v-th vector of columns from `start` on. Sums
        leave out the first `skip` of each, which are taken elsewhere as well; to the extremes that
        makes no difference."""
        for v, results in enumerate(columns):
            for place, join, _ in self._extremes(start + v * self.lanes):
                best = join(self.extremes[place], _joined(results, join))
                self.extremes.store(place, best)
        if skip is None:
            self._add_all(start, columns)
            return
        with nest.when(skip <= 0):
            self._add_all(start, columns)
        with nest.when(skip > 0):
            for v, results in enumerate(columns):
                for i, one in enumerate(results):
                    counts = nest.cast(skip <= i, self.kind)
                    self._add(start + v * self.lanes, one * nest.splat(counts, self.lanes))

    def _add_all(self, start: Expr, columns: Sequence[Sequence[Expr]]) -> None:
        for v, results in enumerate(columns):
            step = max(1, min(self.together, len(results)))
            for first in range(0, len(results), step):
                part = _joined(results[first : first + step], lambda a, b: a + b)
                self._add(start + v * self.lanes, part)

    def _add(self, start: Expr, value: Expr) -> None:
        at = self._at(start)
        self.total.store(at, self.total[at] + nest.cast(value, "int64", self.lanes))

    def finish(self, vectors: int, place: Callable[[Expr], tuple[Expr, Expr]]) -> None:
        """After all results; place(v): (first channel, number of channels) of the v-th vector of
        columns of a part."""
        with (
            nest.serial(self.parts, "part", 1) as part,
            nest.serial(self.columns // self.lanes, "v") as v,
        ):
            first, other = v * self.lanes, part * self.columns + v * self.lanes
            self._add(first, self.total[self._at(other)])
            for one, two in zip(self._extremes(first), self._extremes(other), strict=True):
                joined = one[1](self.extremes[one[0]], self.extremes[two[0]])
                self.extremes.store(one[0], joined)
        with nest.serial(vectors, "v") as v:
            channel, count = place(v)
            with nest.serial(count, "lane") as lane:
                at, out = v * self.lanes + lane, channel + lane
                self.statistics.store(out, self.total[at])
                for row, offset in ((1, 0), (2, self.size)):
                    value = nest.cast(self.extremes[offset + at], "int64")
                    self.statistics.store(row * self.channels + out, value)

    def _at(self, start: Expr) -> Expr:
        return nest.ramp(start, self.lanes)

    def _extremes(self, start: Expr) -> list[tuple[Expr, Callable[[Expr, Expr], Expr], Expr]]:
        """(place, join, what to begin with) of the largest and the smallest."""
        return [
            (self._at(start), tirx.max, tirx.min_value(self.kind)),
            (self._at(self.size + start), tirx.min, tirx.max_value(self.kind)),
        ]


def gathers(spec: KernelSpec) -> bool:
    """Whether a product gives statistics beside its accumulators."""
    return spec.short_name.endswith("_statistics")


def largest(spec: KernelSpec) -> int:
    """The largest magnitude of a convolution's accumulators, at least 1."""
    x, w = (max(-low, high) for low, high in spec.ranges("x", "w"))
    shape = spec.tensor("w").shape
    return max(1, x * w * (spec.tensor("w").size // max(1, shape[0])))


def _joined(values: Sequence[Expr], join: Callable[[Expr, Expr], Expr]) -> Expr:
    """A balanced tree."""
    if len(values) == 1:
        return values[0]
    half = len(values) // 2
    return join(_joined(values[:half], join), _joined(values[half:], join))
