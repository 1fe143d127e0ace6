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
from dataclasses import dataclass
from math import gcd, prod

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.sweep import ENOUGH_TASKS, contiguous, in_vectors, merge

SHORT_ROW = 128
"""Rows below this length that no vector divides are taken in blocks: the overlapping vector at
the end of each would cost more than an eighth."""
BLOCK = 240
"""Elements of a block at least; a float32 operand written out for it still stands on the stack."""

Source = Callable[[Expr], Expr]
Keep = Callable[[Expr], Expr]
Compute = Callable[[Sequence[Expr], Keep], Sequence[Expr]]
"""compute(value of each read, keep) -> value of each output, for one element. keep(value) holds a
value in a register under a name of its own: TVM's simplifier, which is not exact for floats, does
not look through it."""


@dataclass(frozen=True)
class Read:
    """An operand and the strides with which the axes of the result walk it."""

    array: Array
    strides: tuple[int, ...]


def stream(
    extents: Sequence[int], reads: Sequence[Read], outputs: Sequence[Array], compute: Compute
) -> None:
    """Store compute(...) for every element of the row-major outputs."""
    if not prod(extents):
        return
    _Stream(reads, outputs, compute).run(extents)


class _Stream:
    def __init__(self, reads: Sequence[Read], outputs: Sequence[Array], compute: Compute) -> None:
        self.reads, self.outputs, self.compute = reads, outputs, compute
        self.kept = _kept(reads, compute)
        dtypes = {array.dtype for array in [*(r.array for r in reads), *outputs]}
        self.lanes = 4 * nest.LANES if dtypes <= {"bool", "int8", "uint8"} else nest.LANES

    def run(self, extents: Sequence[int]) -> None:
        """Merge axes, then choose the cut."""
        strides = [read.strides for read in self.reads]
        merged, (own, *steps) = merge(extents, [contiguous(extents), *strides])
        inner, work = merged[-1], prod(merged)
        if len(merged) == 1:
            self._chunks(inner, [s[0] for s in steps])
        elif inner >= SHORT_ROW or inner % self.lanes == 0:
            with _tasks(merged[:-1], work) as at:
                sources = [
                    self._along(read.array, nest.linear(at, s[:-1]), s[-1])
                    for read, s in zip(self.reads, steps, strict=True)
                ]
                self._line(inner, sources, nest.linear(at, own[:-1]))
        else:
            _Blocks(self, merged, own, steps).run(work)

    def _chunks(self, size: int, steps: Sequence[int]) -> None:
        if size <= nest.CHUNK:
            self._line(size, [self._along(r.array, 0, s) for r, s in self._with(steps)], 0)
            return
        with nest.parallel(-(-size // nest.CHUNK), size, "chunk") as chunk:
            first = chunk * nest.CHUNK
            if size % nest.CHUNK:
                first = tirx.min(first, size - nest.CHUNK)
            sources = [
                self._along(read.array, first if step else 0, step)
                for read, step in self._with(steps)
            ]
            self._line(nest.CHUNK, sources, first)

    def _with(self, steps: Sequence[int]) -> Iterator[tuple[Read, int]]:
        return zip(self.reads, steps, strict=True)

    def _along(self, array: Array, first: Expr, step: int) -> Source:
        return lambda i: array[nest.linear([i], [step], first)]

    def _line(self, count: int, sources: Sequence[Source], first: Expr) -> None:
        """`count` elements in a row: vectors, then one that overlaps."""

        def vector(start: Expr, lanes: int) -> None:
            slots = [nest.scratch(lanes, dtype) for dtype in self.kept]
            with nest.lanes(count=lanes) as lane:
                self._element(start + lane, lane, slots, sources, first)

        in_vectors(count, vector, self.lanes)

    def _element(
        self,
        index: Expr,
        lane: Expr,
        slots: Sequence[Array],
        sources: Sequence[Source],
        first: Expr,
    ) -> None:
        left = iter(slots)

        def keep(value: Expr) -> Expr:
            slot = next(left)
            if nest.dtype_of(value) != "bool":
                slot.store(lane, value)
                return slot[lane]
            # TVM's passes trip over vectors of bool in memory of their own.
            slot.store(lane, nest.cast(value, "uint8"))
            return tirx.NE(slot[lane], nest.zero("uint8"))

        results = self.compute([source(index) for source in sources], keep)
        for out, value in zip(self.outputs, results, strict=True):
            out.store(first + index, value)


def _kept(reads: Sequence[Read], compute: Compute) -> list[str]:
    """The dtypes of what `compute` keeps: a vector's loop cannot hold the slots itself."""
    found: list[str] = []

    def keep(value: Expr) -> Expr:
        dtype = nest.dtype_of(value)
        found.append("uint8" if dtype == "bool" else dtype)
        return value

    compute([read.array[0] for read in reads], keep)
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
            found.append(nest.scratch(self.size, read.array.dtype) if repeated else None)
            if repeated:
                first = nest.linear(at, s[:-2])
                with nest.serial(self.rows, "row") as row, nest.serial(self.row, "c") as c:
                    value = read.array[nest.linear([c], s[-1:], first)]
                    found[-1].store(row * self.row + c, value)
        return found

    def _block(self, at: Sequence[Expr], block: Expr, patterns: Sequence[Array | None]) -> None:
        first = block * self.rows
        if self.count % self.rows:
            first = tirx.min(first, self.count - self.rows)
        place = [*at, first]
        sources = [
            self._source(read.array, s, place, pattern)
            for read, s, pattern in zip(self.stream.reads, self.steps, patterns, strict=True)
        ]
        self.stream._line(self.size, sources, nest.linear(place, self.own[:-1]))

    def _source(
        self, array: Array, steps: Sequence[int], place: Sequence[Expr], pattern: Array | None
    ) -> Source:
        if pattern is not None:
            return lambda i: pattern[i]
        start = nest.linear(place, steps[:-1])
        if steps[-1] or not steps[-2]:
            return self.stream._along(array, start, steps[-1])
        spread = self._spread(array, start, steps[-2])
        return lambda i: spread[i]

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
