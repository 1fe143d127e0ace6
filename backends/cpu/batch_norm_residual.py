"""Batch norm, residual sum, ReLU, mask and packing in one pass, with the absmax of the result."""

from collections.abc import Callable

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.batch_norm import Elements
from sqcompile.backends.cpu.batch_norm_packed import PackedNorm
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.norm import held
from sqcompile.backends.cpu.rounding import magnitude
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec


class _Summed:
    """The elements of a norm, and their largest magnitude in the lanes of every task; where there
    are groups, that of each place in a period."""

    def __init__(self, spec: KernelSpec, f: nest.Function) -> None:
        self.norm = PackedNorm(spec, f)
        self.y, self.r = f.outputs[:2]
        self.periods = self.norm.normal.periods
        self.grouped = self.norm.groups > 1
        self.width = self.periods.width if self.grouped else LANES
        self.best = nest.scratch(self.periods.tasks * self.width, "int32")
        self.rest = nest.scratch(self.periods.channels, "int32")
        with nest.serial(self.rest.size, "clear") as c:
            self.rest.store(c, nest.zero("int32"))
        self.slot: Array | None = None
        self.first: Expr = 0

    def walk(self, emit: Callable[[Expr, Expr], None]) -> None:
        """Every vector; a task's maxima stay in a register, or in memory of its own."""
        count = self.periods.width // LANES
        if not self.periods.steps:
            return
        zeros = nest.splat(nest.zero("int32"))
        with self.periods.parallel() as (task, begin, steps):
            self.first = task * self.width
            self.slot = self.best if self.grouped else nest.scratch(LANES, "int32")
            with nest.serial(self.width // LANES, "clear") as v:
                self.slot.store(self._place(v * LANES), zeros)
            with nest.loops([steps, count], "v") as (step, v):
                emit((begin + step) * count + v, v * LANES)
            if not self.grouped:
                self.best.store(nest.ramp(self.first), self.slot[nest.ramp(0)])

    def _place(self, first: Expr) -> Expr:
        """Where the maxima of the vector at `first` in a period stand."""
        return nest.ramp(self.first + first if self.grouped else 0)

    def vector(self, elements: Elements, index: Expr, first: Expr) -> None:
        """The index-th 16 elements, at `first` in their period."""

        def put(i: Expr, _: Expr, y: Expr) -> None:
            self.y.store(i, y)

        values = self.norm.vector(elements, index, first, put)
        assert self.slot is not None
        lanes = self._place(first)
        self.slot.store(lanes, tirx.max(self.slot[lanes], magnitude(values[nest.ramp(0)])))

    def put(self, i: Expr, c: Expr, y: Expr) -> None:
        """Element i of the rows that are left, of channel c."""
        self.y.store(i, y)
        self.rest.store(c, tirx.max(self.rest[c], magnitude(self.y[i])))

    def absmax(self) -> None:
        """r, and the groups of the channels, from the maxima of all tasks."""
        best = nest.scratch(1, "int32")
        best.store(0, nest.zero("int32"))
        if self.grouped:
            self._join_channels()
        else:
            with nest.serial(self.best.size, "lane") as i:
                best.store(0, tirx.max(best[0], self.best[i]))
        with nest.serial(self.rest.size, "c") as c:
            best.store(0, tirx.max(best[0], self.rest[c]))
        largest = held(nest.bits_of(best[0], "float32"))
        self.r.store(0, largest)
        if self.grouped:
            self.norm.write_exponents(self.rest, largest)

    def _join_channels(self) -> None:
        """The maxima of the rows that are left, and those of all tasks."""
        found = nest.scratch(self.periods.channels, "int32")
        self.periods.fold_into(found, self.best, tirx.max, nest.zero("int32"))
        with nest.serial(self.rest.size, "c") as c:
            self.rest.store(c, tirx.max(self.rest[c], found[c]))


@KERNELS.kernel("sq::l1_batch_norm_add_relu")
def l1_batch_norm_add_relu(spec: KernelSpec) -> object:
    """The third pass reads accumulators and residual, and writes y once."""
    with nest.function(spec) as f:
        summed = _Summed(spec, f)
        summed.norm.forms.vectors(summed.vector, summed.walk)
        summed.norm.left(summed.put)
        summed.absmax()
    return f.result
