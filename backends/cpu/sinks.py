"""Where the values of one pass go: to a tensor, to the bits of a packed mask, into maxima.

A sink sees a pass vector by vector: `open(lanes)` before its elements, `put` for each of them
inside the vector's loop, `close` after. Maxima live in a task of their own, from `start` to
`leave`; `finish` joins those of all tasks.
"""

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.sweep import in_vectors
from sqcompile.backends.kernels import TensorSpec


class Stored:
    """Every value, row-major."""

    def __init__(self, out: Array) -> None:
        self.out = out

    def open(self, lanes: int) -> None:
        """Nothing to prepare."""

    def put(self, first: Expr, start: Expr, lane: Expr, value: Expr) -> None:
        """The value of element first + start + lane, in the row that begins at `first`."""
        self.out.store(first + start + lane, value)

    def close(self, at: Expr) -> None:
        """Nothing is left over."""


class Bits(Stored):
    """Truth values as bytes 0 and 1, eight to a byte; vectors of 16 that begin at whole bytes."""

    def open(self, lanes: int) -> None:
        """The bytes of a vector."""
        assert lanes == nest.LANES
        self.held = nest.scratch(lanes, "uint8")

    def put(self, first: Expr, start: Expr, lane: Expr, value: Expr) -> None:
        """One byte."""
        self.held.store(lane, value)

    def close(self, at: Expr) -> None:
        """Eight bytes are a word, whose bits shifts bring together (x86 is little-endian)."""
        word = tirx.reinterpret("uint64x2", self.held[nest.ramp(0)])
        for shift in (7, 14, 28):
            moved = tirx.shift_right(word, nest.splat(nest.const(shift, "uint64"), 2))
            word = tirx.bitwise_or(word, moved)
        self.out.store(nest.ramp(tirx.floordiv(at, 8), 2), nest.cast(word, "uint8", 2))


class Largest(Stored):
    """The largest of non-negative int32, one of all or one for each place in a row, as the
    float32 of its bits."""

    def __init__(self, out: Array, by_column: bool, row: int) -> None:
        super().__init__(out)
        self.by_column = by_column
        self.width = row if by_column else nest.LANES

    def share(self, tasks: int) -> None:
        """Memory for the maxima of every task."""
        self.tasks = tasks
        self.parts = nest.scratch(tasks * self.width, "int32")

    def start(self) -> None:
        """The maxima of one task."""
        self.best = nest.scratch(self.width, "int32")
        in_vectors(self.width, lambda at, lanes: _fill(self.best, at, lanes))

    def put(self, first: Expr, start: Expr, lane: Expr, value: Expr) -> None:
        """One more value."""
        at = start + lane if self.by_column else lane
        self.best.store(at, tirx.max(self.best[at], value))

    def leave(self, task: Expr) -> None:
        """Hand a task's maxima over."""

        def vector(at: Expr, lanes: int) -> None:
            with nest.lanes(count=lanes) as lane:
                self.parts.store(task * self.width + at + lane, self.best[at + lane])

        in_vectors(self.width, vector)

    def finish(self) -> None:
        """The maxima of all tasks."""
        out = nest.viewed(self.out, TensorSpec(self.out.shape, "int32"))

        def vector(at: Expr, lanes: int) -> None:
            best = nest.scratch(lanes, "int32")
            _fill(best, 0, lanes)
            with nest.serial(self.tasks, "task") as task, nest.lanes(count=lanes) as lane:
                part = self.parts[task * self.width + at + lane]
                best.store(lane, tirx.max(best[lane], part))
            if self.by_column:
                with nest.lanes(count=lanes) as lane:
                    out.store(at + lane, best[lane])
                return
            widest = tirx.call_llvm_pure_intrin(
                "int32", "llvm.vector.reduce.smax", best[nest.ramp(0, lanes)]
            )
            out.store(0, widest)

        in_vectors(self.width, vector)


def _fill(array: Array, at: Expr, lanes: int) -> None:
    with nest.lanes(count=lanes) as lane:
        array.store(at + lane, nest.zero("int32"))
