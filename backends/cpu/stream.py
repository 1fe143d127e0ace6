"""One pass over memory for elementwise work: each input read once, each output written once, in
explicit vectors only.

The elements of the result stand in one row-major line, which threads share. How a line is cut
follows from the operands that do not run along it:

- none: chunks of the line;
- a long innermost axis, along which every operand runs or stands still: rows;
- a short innermost axis that no vector divides (3 channels, 10 classes): blocks of as many rows
  as fill whole vectors. An operand that repeats in every row is written out once for a block
  beforehand; one that changes by the row is spread over each block.

A count that is no multiple of the vector ends with a vector that overlaps the one before: the
same values are written twice, which neither a reader nor another thread can tell.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import gcd, prod
from typing import TypeVar

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.sinks import Largest, Stored
from sqcompile.backends.cpu.sweep import ENOUGH_TASKS, contiguous, in_vectors, merge
from sqcompile.backends.elements import Compute, Read
from sqcompile.backends.functions import Keep

SHORT_ROW = 128
"""Rows below this length that no vector divides are taken in blocks: the overlapping vector at
the end of each would cost more than an eighth."""
BLOCK = 240
"""Elements of a block at least; a float32 operand written out for it still stands on the stack."""

__all__ = ["Keep", "Read", "stream"]

T = TypeVar("T")
Source = Callable[[Expr, Expr], Expr]
"""source(start, lane) -> an operand's element start + lane, counted from where a line begins."""


def stream(
    extents: Sequence[int], reads: Sequence[Read], sinks: Sequence[Stored], compute: Compute
) -> None:
    """Hand compute(...) to the sinks, for every element. Packed masks, read or written, want a
    last axis of whole vectors."""
    if prod(extents):
        _Stream(reads, sinks, compute).run(extents)


class _Stream:
    def __init__(self, reads: Sequence[Read], sinks: Sequence[Stored], compute: Compute) -> None:
        self.reads, self.sinks, self.compute = reads, sinks, compute
        self.largest = [sink for sink in sinks if isinstance(sink, Largest)]
        self.kept = _kept(reads, compute)
        dtypes = {array.dtype for array in [*(r.array for r in reads), *(s.out for s in sinks)]}
        bits = any(r.packed for r in reads) or any(type(s) is not Stored for s in sinks)
        bytes_only = dtypes <= {"bool", "int8", "uint8"} and not bits
        self.lanes = 4 * nest.LANES if bytes_only else nest.LANES

    def run(self, extents: Sequence[int]) -> None:
        """Merge axes, then choose the cut."""
        strides = [read.strides for read in self.reads]
        merged, (own, *steps) = merge(extents, [contiguous(extents), *strides])
        inner, work = merged[-1], prod(merged)
        if self.largest and len(merged) == 1 and not any(s.by_column for s in self.largest):
            row = gcd(inner, 1024)
            self._slices([inner // row, row], [[s[0] * row, s[0]] for s in steps])
        elif self.largest:
            self._slices(extents, strides)
        elif len(merged) == 1:
            self._chunks(inner, [s[0] for s in steps])
        elif inner >= SHORT_ROW or inner % self.lanes == 0:
            with _tasks(merged[:-1], work) as at:
                self._row(at, inner, own, steps)
        else:
            _Blocks(self, merged, own, steps).run(work)

    def _row(
        self, at: Sequence[Expr], inner: int, own: Sequence[int], steps: Sequence[Sequence[int]]
    ) -> None:
        first = nest.linear(at, own[:-1])
        sources = [
            self._along(read, nest.linear(at, s[:-1]), s[-1], first)
            for read, s in self._with(steps)
        ]
        self._line(inner, sources, first)

    def _slices(self, extents: Sequence[int], strides: Sequence[Sequence[int]]) -> None:
        """Rows of the last axis in one slice for each task, which keeps maxima of its own."""
        walks = [contiguous(extents), *strides]
        inner = extents[-1]
        outer, kept = merge(extents[:-1], [walk[:-1] for walk in walks])
        own, *steps = [[*s, walk[-1]] for s, walk in zip(kept, walks, strict=True)]
        count, work = prod(outer), prod(extents)
        tasks = min(count, ENOUGH_TASKS) if work >= nest.PARALLEL_WORK else 1
        for sink in self.largest:
            sink.share(tasks)
        with nest.parallel(tasks, work, "task") as task:
            for sink in self.largest:
                sink.start()
            begin = tirx.floordiv(task * count, tasks)
            end = tirx.floordiv((task + 1) * count, tasks)
            with nest.serial(end - begin, "row") as row:
                self._row(nest.unravel(begin + row, outer), inner, own, steps)
            for sink in self.largest:
                sink.leave(task)
        for sink in self.largest:
            sink.finish()

    def _chunks(self, size: int, steps: Sequence[int]) -> None:
        if size <= nest.CHUNK:
            self._line(size, [self._along(r, 0, s, 0) for r, s in self._with(steps)], 0)
            return
        with nest.parallel(-(-size // nest.CHUNK), size, "chunk") as chunk:
            first = chunk * nest.CHUNK
            if size % nest.CHUNK:
                first = tirx.min(first, size - nest.CHUNK)
            sources = [
                self._along(read, first if step else 0, step, first)
                for read, step in self._with(steps)
            ]
            self._line(nest.CHUNK, sources, first)

    def _with(self, steps: Sequence[T]) -> Iterator[tuple[Read, T]]:
        return zip(self.reads, steps, strict=True)

    def _along(self, read: Read, start: Expr, step: int, first: Expr) -> Source:
        """Elements of an operand from `start` on; `first` is the place of the line."""
        if not read.packed:
            return lambda i, lane: read.array[nest.linear([i + lane], [step], start)]

        def bit(i: Expr, lane: Expr) -> Expr:
            low, high = (
                nest.cast(read.array[tirx.floordiv(first + i, 8) + n], "int32") for n in (0, 1)
            )
            word = tirx.bitwise_or(low, tirx.shift_left(high, nest.const(8, "int32")))
            one = tirx.shift_left(nest.const(1, "int32"), lane)
            return tirx.NE(tirx.bitwise_and(word, one), nest.zero("int32"))

        return bit

    def _line(self, count: int, sources: Sequence[Source], first: Expr) -> None:
        """`count` elements in a row: vectors, then one that overlaps."""

        def vector(start: Expr, lanes: int) -> None:
            slots = [nest.scratch(lanes, dtype) for dtype in self.kept]
            for sink in self.sinks:
                sink.open(lanes)
            with nest.lanes(count=lanes) as lane:
                values = [source(start, lane) for source in sources]
                results = self.compute(values, self._keep(slots, lane))
                for sink, value in zip(self.sinks, results, strict=True):
                    sink.put(first, start, lane, value)
            for sink in self.sinks:
                sink.close(first + start)

        in_vectors(count, vector, self.lanes)

    def _keep(self, slots: Sequence[Array], lane: Expr) -> Keep:
        left = iter(slots)

        def keep(value: Expr) -> Expr:
            slot = next(left)
            if nest.dtype_of(value) != "bool":
                slot.store(lane, value)
                return slot[lane]
            # TVM's passes trip over vectors of bool in memory of their own.
            slot.store(lane, nest.cast(value, "uint8"))
            return tirx.NE(slot[lane], nest.zero("uint8"))

        return keep


def _kept(reads: Sequence[Read], compute: Compute) -> list[str]:
    """The dtypes of what `compute` keeps: a vector's loop cannot hold the slots itself."""
    found: list[str] = []

    def keep(value: Expr) -> Expr:
        dtype = nest.dtype_of(value)
        found.append("uint8" if dtype == "bool" else dtype)
        return value

    bit = tirx.const(True, "bool")
    compute([bit if read.packed else read.array[0] for read in reads], keep)
    return found


@contextmanager
def _tasks(extents: Sequence[int], work: int) -> Iterator[list[Expr]]:
    """Loops over `extents`, in parallel over the first ones; gives the coordinates."""
    split = 1
    while split < len(extents) and prod(extents[:split]) < ENOUGH_TASKS:
        split += 1
    with nest.parallel(prod(extents[:split]), work, "task") as task:
        outer = nest.unravel(task, extents[:split])
        with nest.loops(extents[split:]) as inner:
            yield [*outer, *inner]


class _Blocks:
    """Short rows, several at a time."""

    def __init__(
        self,
        stream: _Stream,
        merged: Sequence[int],
        own: Sequence[int],
        steps: Sequence[Sequence[int]],
    ) -> None:
        self.stream, self.outer, self.own = stream, merged[:-2], own
        self.count, self.row = merged[-2:]
        whole = stream.lanes // gcd(self.row, stream.lanes)
        self.rows = min(self.count, whole * -(-BLOCK // (whole * self.row)))
        self.size = self.rows * self.row
        self.steps = steps
        self.repeated = [s[-2] == 0 and s[-1] != 0 for s in steps]
        self.shared = not any(any(s[:-2]) for s, r in zip(steps, self.repeated, strict=True) if r)

    def run(self, work: int) -> None:
        blocks = -(-self.count // self.rows)
        if self.shared:
            patterns = self._patterns([0] * len(self.outer))
            with _tasks([*self.outer, blocks], work) as at:
                self._block(at[:-1], at[-1], patterns)
            return
        with _tasks(self.outer, work) as at:
            patterns = self._patterns(at)
            with nest.serial(blocks, "block") as block:
                self._block(at, block, patterns)

    def _patterns(self, at: Sequence[Expr]) -> list[Array | None]:
        """Operands that repeat in every row, written out for a block."""
        found: list[Array | None] = []
        for read, s, repeated in zip(self.stream.reads, self.steps, self.repeated, strict=True):
            if not repeated:
                found.append(None)
                continue
            pattern = nest.scratch(self.size, read.array.dtype)
            first = nest.linear(at, s[:-2])
            with nest.serial(self.rows, "row") as row, nest.serial(self.row, "c") as c:
                value = read.array[nest.linear([c], s[-1:], first)]
                pattern.store(row * self.row + c, value)
            found.append(pattern)
        return found

    def _block(self, at: Sequence[Expr], block: Expr, patterns: Sequence[Array | None]) -> None:
        first = block * self.rows
        if self.count % self.rows:
            first = tirx.min(first, self.count - self.rows)
        place = [*at, first]
        sources = [
            self._source(read, s, place, pattern)
            for read, s, pattern in zip(self.stream.reads, self.steps, patterns, strict=True)
        ]
        self.stream._line(self.size, sources, nest.linear(place, self.own[:-1]))

    def _source(
        self, read: Read, steps: Sequence[int], place: Sequence[Expr], pattern: Array | None
    ) -> Source:
        if pattern is not None:
            return lambda i, lane: pattern[i + lane]
        start = nest.linear(place, steps[:-1])
        if steps[-1] or not steps[-2]:
            return self.stream._along(read, start, steps[-1], 0)
        spread = self._spread(read.array, start, steps[-2])
        return lambda i, lane: spread[i + lane]

    def _spread(self, array: Array, start: Expr, step: int) -> Array:
        """One value a row, over the row: vectors that reach into the next row, which follows."""
        lanes = nest.LANES
        spread = nest.scratch(self.size + lanes, array.dtype)
        with nest.serial(self.rows, "row") as row:
            for part in range(-(-self.row // lanes)):
                with nest.lanes() as lane:
                    value = array[start + row * step]
                    spread.store(row * self.row + part * lanes + lane, value)
        return spread
