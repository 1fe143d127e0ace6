"""Rows of channels, channels last, in vectors: exact sums over the rows of every channel.

A period is `fold` rows taken as one, so long that vectors fill it whatever the number of channels
is: 16 channels and 64-byte vectors give periods of 4 rows. A lane of a period belongs to one
channel; per-channel constants are spread over a period once (`spread`), and what vectors
accumulate per lane is folded into channels at the end (`fold_into`). Rows that fill no period are
left to scalar loops along the channels, which LLVM vectorises.

Tasks take blocks of periods and keep partial sums of their own. Sums of integers are the same in
any order, so neither tasks nor periods change a result.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.machine import machine
from sqcompile.backends.cpu.nest import LANES, Array, Expr

SHORTEST = 64
"""Elements of the shortest period: a few vectors a turn of a loop."""
MOST_TASKS = 16
"""Tasks of a large tensor: a balance between threads, and few partial sums to add up."""
TASK_WORK = 1 << 14
"""Elements that a task has at least."""
LONGEST = 1 << 14
"""Rows of one lane that a task sums: 2^14 products of int8 stay below 2^30."""


@dataclass(frozen=True)
class Periods:
    """(rows, channels) as `steps` steps of `depth` periods of `fold` rows, and some rows left."""

    rows: int
    channels: int
    fold: int
    depth: int = 1
    threads: bool = True

    @classmethod
    def of(
        cls, shape: Sequence[int], lanes: int = LANES, depth: int = 1, threads: bool = True
    ) -> "Periods":
        """Periods of a multiple of `lanes` elements for a tensor of `shape` (*, channels); without
        `threads` tasks run one after the other, for kernels that are parallel around them."""
        channels = shape[-1]
        fold = lanes // gcd(channels, lanes)
        while fold * channels < SHORTEST:
            fold *= 2
        return cls(prod(shape[:-1]), channels, fold, depth, threads)

    @property
    def width(self) -> int:
        """Elements of a period."""
        return self.fold * self.channels

    @property
    def steps(self) -> int:
        """How often `depth` periods fit."""
        return self.rows // (self.fold * self.depth)

    @property
    def left(self) -> range:
        """The rows that no step covers."""
        return range(self.steps * self.fold * self.depth, self.rows)

    @property
    def tasks(self) -> int:
        """Blocks of steps that run in parallel."""
        if not self.steps:
            return 0
        enough = min(MOST_TASKS, self.rows * self.channels // TASK_WORK, self.steps)
        enough = enough if self.threads else 1
        return max(1, enough, -(-self.steps * self.depth // LONGEST))

    @contextmanager
    def parallel(self) -> Iterator[tuple[Expr, Expr, Expr]]:
        """A parallel loop over tasks: (task, its first step, its number of steps)."""
        work = self.rows * self.channels if self.threads else 0
        with nest.parallel(self.tasks, work, "task") as task:
            begin = tirx.floordiv(task * self.steps, self.tasks)
            yield task, begin, tirx.floordiv((task + 1) * self.steps, self.tasks) - begin

    def accumulate(
        self,
        arrays: int,
        start: Callable[[Expr], Any],
        add: Callable[[Any, Expr], None],
        end: Callable[[Any, Expr], None],
    ) -> None:
        """Vectors of a period stay in registers while a task goes through its steps.

        start(i) makes the (at most `arrays`) accumulators of the vector at element i of a period,
        add(slots, at) adds elements at..at+15, and end(slots, at) puts the result at `at` of an
        array [tasks][width].
        """
        if not self.steps:
            return
        size = group_size(self.width, arrays)
        groups = self.width // (LANES * size)
        with self.parallel() as (task, begin, steps), nest.serial(groups, "group") as group:
            places = [group * (LANES * size) + v * LANES for v in range(size)]
            slots = [start(place) for place in places]
            with nest.serial(steps, "step") as step:
                for one, place in zip(slots, places, strict=True):
                    add(one, (begin + step) * self.width + place)
            for one, place in zip(slots, places, strict=True):
                end(one, task * self.width + place)

    def vectors(self, emit: Callable[[Expr, Expr], None]) -> None:
        """emit(index, place) for the index-th vector of 16 elements, which stands at `place` in
        its period; in memory order."""
        count = self.width // LANES
        if not self.steps:
            return
        with self.parallel() as (_, begin, steps), nest.loops([steps, count], "v") as (step, v):
            emit((begin + step) * count + v, v * LANES)

    def spread(self, source: Array) -> Array:
        """A per-channel array repeated over a period."""
        wide = nest.scratch(self.width, source.dtype)
        with nest.serial(self.fold, "j") as j, nest.serial(self.channels, "c") as c:
            wide.store(j * self.channels + c, source[c])
        return wide

    def fold_into(
        self, result: Array, partial: Array, join: Callable[[Expr, Expr], Expr], start: Expr
    ) -> None:
        """result[c] = join of `start` and all lanes of channel c of partial [tasks][width]."""
        with nest.serial(self.channels, "c") as c:
            result.store(c, start)
        parts = self.tasks * self.fold
        with nest.serial(parts, "part") as part, nest.serial(self.channels, "c") as c:
            result.store(c, join(result[c], partial[part * self.channels + c]))

    @contextmanager
    def leftover(self) -> Iterator[tuple[Expr, Expr]]:
        """A loop over the elements of the rows left: (offset, channel)."""
        count = len(self.left)
        with nest.serial(count, "row") as row, nest.serial(self.channels, "c") as c:
            yield (row + self.left.start) * self.channels + c, c


def group_size(width: int, arrays: int) -> int:
    """Vectors that a loop takes at once: as many as divide a period and leave registers for
    `arrays` accumulators of each."""
    cpu = machine()
    registers = cpu.registers * cpu.lanes // LANES
    most = max(1, (registers - 8) // arrays)
    return max(n for n in (1, 2, 3, 4) if n <= most and width // LANES % n == 0)


def zeros(dtype: str, lanes: int = LANES) -> Expr:
    """A vector of zeros."""
    return nest.splat(nest.zero(dtype), lanes)


class Total:
    """An exact sum of vectors of integers, in lanes of 32 bits where that is possible.

    int32 values of any size: their sum modulo 2^32 and the sum of their upper halves give the
    whole sum of up to 2^16 of them, for one operation more than a sum that may overflow.
    """

    def __init__(self, kind: str) -> None:
        """kind is the dtype of the tensor; 8-bit values are added as int32."""
        self.kind = kind
        dtypes = {"int32": ("uint32", "int32"), "int64": ("int64",)}.get(kind, ("int32",))
        self.parts = [nest.scratch(LANES, dtype) for dtype in dtypes]
        for part in self.parts:
            part.store(nest.ramp(0), zeros(part.dtype))

    def add(self, value: Expr) -> None:
        """Add a vector."""
        lanes, first = nest.ramp(0), self.parts[0]
        term = nest.cast(value, "uint32", LANES) if self.kind == "int32" else value
        first.store(lanes, first[lanes] + term)
        if self.kind == "int32":
            upper = tirx.shift_right(value, nest.splat(nest.const(16, "int32")))
            self.parts[1].store(lanes, self.parts[1][lanes] + upper)

    def result(self) -> Expr:
        """The sum, int64."""
        lanes, first = nest.ramp(0), self.parts[0]
        if self.kind != "int32":
            return nest.cast(first[lanes], "int64", LANES)
        sixteen = nest.splat(nest.const(16, "uint32"))
        upper = self.parts[1][lanes]
        shifted = tirx.shift_left(nest.cast(upper, "uint32", LANES), sixteen)
        lower = nest.cast(first[lanes] - shifted, "int64", LANES)
        whole = nest.cast(upper, "int64", LANES) * nest.splat(nest.const(1 << 16, "int64"))
        return whole + lower
