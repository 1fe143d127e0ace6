"""The integer sums behind every gradient of an L1 norm, by the dot product of the machine.

Of a gradient g and the saved k, both int8: sum g, sum g * (2 k + 1), and the sum of the sign of
k + 1/2. Along a row the bytes go into the dot product as they lie; along a column `depth` rows
are interleaved first, by the unpack instructions that work within 128 bits, so sums come out in
their order and are put right at the end of a task.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.channels import Periods
from sqcompile.backends.cpu.machine import Dot, machine
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.saved_xhat import Saved


def _long(value: Expr) -> Expr:
    return nest.cast(value, "int64")


@dataclass(frozen=True)
class Terms:
    """The three sums of vectors of g and k with `depth` values a lane.

    k comes with an offset that makes it unsigned where the dot product asks for it; offset * sum g
    goes off at the end. Instead of signs, the k that are not negative are counted.
    """

    dot: Dot
    saved: Saved

    @property
    def count(self) -> int:
        """Elements of a vector."""
        return self.dot.lanes * self.dot.depth

    def load(self, g: Array, at: Expr, first: Expr = 0) -> tuple[Expr, Expr]:
        """Vectors of g and of k + offset from element `at` on; g begins at element `first`."""
        value = g[nest.ramp(at - first, self.count)]
        if not self.dot.bytes:
            value = nest.cast(value, self.dot.right, self.count)
        return value, self.saved.vector(at, self.dot)[0]

    def slots(self) -> list[Array]:
        """Accumulators of the three sums, cleared."""
        made = [nest.scratch(self.dot.lanes, "int32") for _ in range(3)]
        for slot in made:
            slot.store(nest.ramp(0, self.dot.lanes), self._splat(0, "int32", self.dot.lanes))
        return made

    def _splat(self, value: int, dtype: str, lanes: int) -> Expr:
        return nest.splat(nest.const(value, dtype), lanes)

    def add(self, slots: Sequence[Array], g: Expr, k: Expr) -> None:
        """Add one vector of each, as `load` gives them."""
        dot = self.dot
        one, none = (self._splat(value, dot.right, self.count) for value in (1, 0))
        positive = k >= self._splat(self.saved.offset(dot), dot.left, self.count)
        ones, lanes = self._splat(1, dot.left, self.count), nest.ramp(0, dot.lanes)
        pairs = (ones, g), (k, g), (ones, nest.select(positive, one, none))
        for slot, (left, right) in zip(slots, pairs, strict=True):
            slot.store(lanes, dot.add(slot[lanes], left, right))

    def scalar(self, g: Array, i: Expr, first: Expr = 0) -> list[Expr]:
        """The three terms of one element, int32; g begins at element `first`."""
        value, k = nest.cast(g[i - first], "int32"), self.saved.scalar(i)
        offset = nest.const(self.saved.offset(self.dot), "int32")
        return [value, value * (k + offset), nest.cast(k >= nest.zero("int32"), "int32")]

    def results(self, sums: Sequence[Expr], count: int) -> tuple[Expr, Expr, Expr]:
        """(sum g, sum g * (2 k + 1), sum of signs) from the int64 sums of `count` elements."""
        total, product, positive = sums
        two = nest.const(2, "int64")
        offset = nest.const(1 - 2 * self.saved.offset(self.dot), "int64")
        return total, two * product + total * offset, two * positive - nest.const(count, "int64")

    def interleave(self, rows: Sequence[Expr]) -> list[Expr]:
        """`depth` vectors of as many rows -> vectors with the values of one column in a lane.

        Lane l of vector o has column 4 * o + l % 4 of the l // 4-th 128 bits.
        """
        if len(rows) == 2:
            return self._unpack(rows[0], rows[1], 1)
        first, second, third, fourth = rows
        halves = zip(self._unpack(first, second, 1), self._unpack(third, fourth, 1), strict=True)
        return [vector for a, b in halves for vector in self._unpack(a, b, 2)]

    @property
    def columns(self) -> int:
        """Elements in 128 bits."""
        return 16 if self.dot.bytes else 8

    def _unpack(self, a: Expr, b: Expr, unit: int) -> list[Expr]:
        half = self.columns // 2
        vectors = []
        for start in (0, half):
            places = [
                source * self.count + block + start + j + u
                for block in range(0, self.count, self.columns)
                for j in range(0, half, unit)
                for source in (0, 1)
                for u in range(unit)
            ]
            vectors.append(tirx.Shuffle([a, b], [nest.const(p, "int32") for p in places]))
        return vectors


def terms(saved: Saved) -> Terms:
    """The sums for the machine in scope."""
    return Terms(machine().dot, saved)


class ColumnSums:
    """The three sums of every column of g and k (*, channels), int64, as `results` takes them."""

    def __init__(
        self,
        g: Array,
        saved: Saved,
        shape: Sequence[int] | None = None,
        place: tuple[Expr, Expr] = (0, 0),
        threads: bool = True,
    ) -> None:
        """Of all of g, or of a part of `shape`: `place` is where it begins in k, and where g begins
        there."""
        self.terms, (self.start, self.first) = terms(saved), place
        of = (shape or g.shape, self.terms.count, self.terms.dot.depth)
        self.periods = periods = Periods.of(*of, threads)
        partial = [nest.scratch(periods.tasks * periods.width, "int32") for _ in range(3)]
        blocks = periods.width // self.terms.count
        if periods.steps:
            with periods.parallel() as (task, *steps), nest.serial(blocks, "block") as block:
                self._block(g, partial, task, block * self.terms.count, steps)
        self.sums = [nest.scratch(periods.channels, "int64") for _ in range(3)]
        for result, parts in zip(self.sums, partial, strict=True):
            periods.fold_into(result, parts, lambda a, b: a + _long(b), nest.zero("int64"))
        self._left(g)

    def _block(
        self,
        g: Array,
        partial: Sequence[Array],
        task: Expr,
        first: Expr,
        steps: Sequence[Expr],
    ) -> None:
        """One vector of lanes of a period, over all steps of a task."""
        width, depth = self.periods.width, self.terms.dot.depth
        groups = [self.terms.slots() for _ in range(depth)]
        with nest.serial(steps[1], "step") as step:
            start = self.start + (steps[0] + step) * (depth * width) + first
            rows = [self.terms.load(g, start + row * width, self.first) for row in range(depth)]
            both = [self.terms.interleave(one) for one in zip(*rows, strict=True)]
            for slots, one_g, one_k in zip(groups, *both, strict=True):
                self.terms.add(slots, one_g, one_k)
        for index, slots in enumerate(groups):
            for slot, out in zip(slots, partial, strict=True):
                self._put(out, slot, task * width + first + 4 * index)

    def _put(self, out: Array, slot: Array, start: Expr) -> None:
        lanes = self.terms.dot.lanes
        copy = nest.scratch(lanes, "int32")
        copy.store(nest.ramp(0, lanes), slot[nest.ramp(0, lanes)])
        with nest.serial(lanes // 4, "run") as run, nest.serial(4, "lane") as lane:
            out.store(start + run * self.terms.columns + lane, copy[run * 4 + lane])

    def _left(self, g: Array) -> None:
        with self.periods.leftover() as (i, c):
            terms = self.terms.scalar(g, self.start + i, self.first)
            for result, value in zip(self.sums, terms, strict=True):
                result.store(c, result[c] + _long(value))

    def of(self, c: Expr) -> tuple[Expr, Expr, Expr]:
        """(sum g, sum g * (2 k + 1), sum of signs) of channel c."""
        rows = self.periods.rows
        return self.terms.results([one[c] for one in self.sums], rows)
