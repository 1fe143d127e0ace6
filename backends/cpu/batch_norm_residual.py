"""Batch norm, residual sum, ReLU, mask and packing in one pass, with the absmax of the result."""

from collections.abc import Callable

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.batch_norm import Elements
from sqcompile.backends.cpu.batch_norm_packed import PackedNorm
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.rounding import magnitude
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec


class _Summed:
    """The elements of a norm, and their largest magnitude in the lanes of every task."""

    def __init__(self, spec: KernelSpec, f: nest.Function) -> None:
        self.norm = PackedNorm(spec, f)
        self.y, self.r = f.outputs[:2]
        self.periods = self.norm.normal.periods
        lanes = max(self.periods.tasks, 1) * LANES
        self.best = nest.scratch(lanes, "int32")
        with nest.serial(lanes, "clear") as i:
            self.best.store(i, nest.zero("int32"))
        self.slot: Array | None = None

    def walk(self, emit: Callable[[Expr, Expr], None]) -> None:
        """Every vector; a task's maxima stay in a register."""
        count = self.periods.width // LANES
        if not self.periods.steps:
            return
        with self.periods.parallel() as (task, begin, steps):
            self.slot = nest.scratch(LANES, "int32")
            self.slot.store(nest.ramp(0), nest.splat(nest.zero("int32")))
            with nest.loops([steps, count], "v") as (step, v):
                emit((begin + step) * count + v, v * LANES)
            self.best.store(nest.ramp(task * LANES), self.slot[nest.ramp(0)])

    def vector(self, elements: Elements, index: Expr, first: Expr) -> None:
        """The index-th 16 elements, at `first` in their period."""
        values = self.norm.vector(elements, index, first, self.y.store)
        assert self.slot is not None
        lanes = nest.ramp(0)
        self.slot.store(lanes, tirx.max(self.slot[lanes], magnitude(values[lanes])))

    def put(self, i: Expr, y: Expr) -> None:
        """Element i of the rows that are left."""
        self.y.store(i, y)
        self.best.store(0, tirx.max(self.best[0], magnitude(self.y[i])))

    def absmax(self) -> None:
        """r from the maxima of all lanes."""
        with nest.serial(self.best.size, "lane") as i:
            self.best.store(0, tirx.max(self.best[0], self.best[i]))
        self.r.store(0, nest.bits_of(self.best[0], "float32"))


@KERNELS.kernel("sq::l1_batch_norm_add_relu")
def l1_batch_norm_add_relu(spec: KernelSpec) -> object:
    """The third pass reads accumulators and residual, and writes y once."""
    with nest.function(spec) as f:
        summed = _Summed(spec, f)
        summed.norm.forms.vectors(summed.vector, summed.walk)
        summed.norm.left(summed.put)
        summed.absmax()
    return f.result
