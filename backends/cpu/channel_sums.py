"""Sums of the channels of a product's result, gathered while it is in registers.

Results are vectors; a lane is a channel, of which a kernel whose vectors overlap has two lanes, or
none where a vector is wider than the result. Every part of the work (a block of rows) has a row of
sums of its own in memory, so that threads share nothing; sums of integers are the same in any
order.
"""

from collections.abc import Callable, Sequence
from math import prod

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.kernels import KernelSpec

INT32_LIMIT = 2**31
LEAST = 128
"""Elements of a workspace at least: a kilobyte."""


class ChannelSums:
    """Sums under construction: int64 [part][vector][lane].

    together: results that int32 adds up without overflow, 0 where results are int64.
    """

    def __init__(self, out: Array, parts: int, vectors: int, lanes: int, together: int) -> None:
        self.out, self.parts, self.vectors, self.lanes = out, parts, vectors, lanes
        self.together = together
        self.memory = nest.workspace(max(parts * vectors * lanes, LEAST), "int64")

    def clear(self, place: Expr, vectors: int) -> None:
        """Before the first results of vectors from `place` on, counted over [part][vector]."""
        with nest.serial(vectors, "clear") as v:
            self.memory.store(self._at(place + v), nest.splat(nest.zero("int64"), self.lanes))

    def add(self, place: Expr, columns: Sequence[Sequence[Expr]], skip: Expr | None = None) -> None:
        """columns[v]: results for the v-th vector from `place` on, but the first `skip` of each,
        which are added elsewhere."""
        if skip is None:
            self._add_all(place, columns)
            return
        with nest.when(skip <= 0):
            self._add_all(place, columns)
        with nest.when(skip > 0):
            for v, results in enumerate(columns):
                for i, one in enumerate(results):
                    counts = nest.cast(skip <= i, "int32" if self.together else "int64")
                    self._add(place + v, one * nest.splat(counts, self.lanes))

    def _add_all(self, place: Expr, columns: Sequence[Sequence[Expr]]) -> None:
        for v, results in enumerate(columns):
            step = max(1, min(self.together, len(results)))
            for first in range(0, len(results), step):
                self._add(place + v, _sum(results[first : first + step]))

    def _add(self, place: Expr, value: Expr) -> None:
        at = self._at(place)
        self.memory.store(at, self.memory[at] + nest.cast(value, "int64", self.lanes))

    def _at(self, place: Expr) -> Expr:
        return nest.ramp(place * self.lanes, self.lanes)

    def finish(self, vectors: int, channels: Callable[[Expr], tuple[Expr, Expr]]) -> None:
        """After all results; channels(v): (first, number) of those of a part's v-th vector."""
        with (
            nest.serial(self.parts, "part", 1) as part,
            nest.serial(self.vectors, "v") as v,
        ):
            self._add(v, self.memory[self._at(part * self.vectors + v)])
        with nest.serial(vectors, "v") as v:
            first, count = channels(v)
            with nest.serial(count, "lane") as lane:
                self.out.store(first + lane, self.memory[v * self.lanes + lane])


def sums_of(
    spec: KernelSpec, f: nest.Function, parts: int, vectors: int, lanes: int
) -> ChannelSums | None:
    """For a convolution with `parts` parts of `vectors` vectors; None for an op without sums."""
    if not spec.short_name.endswith("_sums"):
        return None
    acc, out = f.outputs
    together = (INT32_LIMIT - 1) // _largest(spec) if acc.dtype == "int32" else 0
    return ChannelSums(out, parts, vectors, lanes, together)


def _largest(spec: KernelSpec) -> int:
    """The largest magnitude of a convolution's accumulators, shifts included, at least 1."""
    x, w = (max(-low, high) for low, high in spec.ranges("x", "w"))
    shift = 0 if spec.tensor("exponent") is None else spec["shift_groups"] - 1
    return max(1, (x << shift) * w * prod(spec.tensor("w").shape[1:]))


def _sum(values: Sequence[Expr]) -> Expr:
    """A balanced tree."""
    if len(values) == 1:
        return values[0]
    half = len(values) // 2
    return _sum(values[:half]) + _sum(values[half:])
