"""From accumulators to results: the accumulator itself, or one rounding to float32, the scales
from left to right, the bias, ReLU, the residual, and zeros where a packed mask has them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.bit_packing import mask_bits
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.placement import Placement
from sqcompile.backends.cpu.sweep import broadcast, contiguous, sweep
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec


class Epilogue:
    """Writes the results of a product; scales and bias are broadcast to the result's shape.
    Coordinates are those of the product, wherever its results are placed.

    The second output of an op that measures takes the largest magnitude of all results: each task
    keeps a vector of maxima, compared on the bits without the sign, where a NaN is the largest.
    """

    def __init__(
        self, spec: KernelSpec, f: nest.Function, placement: Placement | None = None
    ) -> None:
        self.out, *more = f.outputs
        self.placement = placement
        self.shape = self.out.shape if placement is None else placement.shape
        self.scales, self.bias = f.list("scales"), f.get("bias")
        self.relu = bool(spec.get("relu", False))
        self.residual, self.mask = f.get("residual"), f.get("mask")
        added = self.bias is not None or self.residual is not None
        self.fenced = added and bool(self.scales)
        measured = spec.short_name.endswith("_absmax")
        self.absmax: Array | None = more[0] if measured else None
        self._maxima: Array | None = None
        self._peaks: Array | None = None

    def prepare(self, tasks: int) -> None:
        """Before the tasks: memory for their maxima."""
        if self.absmax is not None:
            self._maxima = nest.scratch(tasks, "int32")

    @contextmanager
    def task(self, index: Expr) -> Iterator[None]:
        """Around what a task writes."""
        if self._maxima is None:
            yield
            return
        lanes = nest.ramp(0)
        self._peaks = nest.scratch(nest.LANES, "int32")
        self._peaks.store(lanes, nest.splat(nest.zero("int32")))
        yield
        best = nest.scratch(1, "int32")
        best.store(0, nest.zero("int32"))
        with nest.serial(nest.LANES, "lane") as lane:
            best.store(0, tirx.max(best[0], self._peaks[lane]))
        self._maxima.store(index, best[0])

    def finish(self, tasks: int) -> None:
        """After the tasks: the largest of their maxima."""
        if self.absmax is None:
            return
        best = nest.scratch(1, "int32")
        best.store(0, nest.zero("int32"))
        if self._maxima is not None:
            with nest.serial(tasks, "task") as task:
                best.store(0, tirx.max(best[0], self._maxima[task]))
        self.absmax.store(0, nest.bits_of(best[0], "float32"))

    def _seen(self, y: Expr, lanes: int) -> None:
        """Take results into the maxima of the task."""
        if self._peaks is None:
            return
        magnitude = nest.const(0x7FFFFFFF, "int32")
        if lanes == 1:
            bits = tirx.bitwise_and(nest.bits_of(y, "int32"), magnitude)
            self._peaks.store(0, tirx.max(self._peaks[0], bits))
            return
        index = nest.ramp(0, lanes)
        bits = tirx.reinterpret(f"int32x{lanes}", y)
        bits = tirx.bitwise_and(bits, nest.splat(magnitude, lanes))
        self._peaks.store(index, tirx.max(self._peaks[index], bits))

    def steps(self, operand: Array) -> list[int]:
        """The strides with which a scale or the bias is read as the result."""
        if self.placement is None or not self.placement.turned:
            return broadcast(self.shape, operand.shape)
        *batch, rows, columns = self.shape
        steps = broadcast([*batch, columns, rows], operand.shape)
        return [*steps[:-2], steps[-1], steps[-2]]

    def place(self, at: Sequence[Expr]) -> Expr:
        """Where in memory the result at coordinates `at` stands."""
        if self.placement is None:
            return nest.linear(at, contiguous(self.shape))
        return self.placement.at(at)

    def in_vectors(self, size: int, lanes: int) -> bool:
        """Whether runs of `size` results, one behind the other, can be written in vectors of which
        the last one overlaps: `mask_bits` reads those that begin with a byte, or a half."""
        return self.mask is None or size % min(lanes, 8) == 0

    def value(self, acc: Expr, scales: Sequence[Expr], bias: Expr | None, lanes: int = 1) -> Expr:
        """One result, or a vector of `lanes`."""
        y = nest.cast(acc, self.out.dtype, lanes)
        if self.out.dtype != "float32":
            return y
        for scale in scales:
            y = y * scale
        if bias is not None:
            y = (nest.fence(y, lanes) if scales else y) + bias
        if self.relu:
            zero = nest.zero("float32")
            zero = zero if lanes == 1 else nest.splat(zero, lanes)
            y = nest.select(y < zero, zero, y)
        return y

    def finished(self, y: Expr, index: Expr, lanes: int = 1) -> Expr:
        """Results from element `index` on, with what is added to them and what masks them."""
        place = index if lanes == 1 else nest.ramp(index, lanes)
        if self.residual is not None:
            y = nest.fence(y, lanes) + self.residual[place]
        if self.mask is not None:
            zero = nest.zero("float32")
            kept = mask_bits(self.mask, index, lanes)
            y = nest.select(kept, y, zero if lanes == 1 else nest.splat(zero, lanes))
        return y

    def element(self, acc: Expr, at: Sequence[Expr]) -> None:
        """The result at coordinates `at`."""
        scales = [a[nest.linear(at, self.steps(a))] for a in self.scales]
        bias = None if self.bias is None else self.bias[nest.linear(at, self.steps(self.bias))]
        own, place = nest.linear(at, contiguous(self.shape)), self.place(at)
        self.out.store(place, self.finished(self.value(acc, scales, bias), own))
        self._seen(self.out[place], 1)

    def vector(self, acc: Expr, at: Sequence[Expr], lanes: int) -> None:
        """`lanes` results along the last axis, the first at coordinates `at`, from a vector of
        accumulators that is still in a register."""

        def read(operand: Array) -> Expr:
            steps = self.steps(operand)
            first = nest.linear(at, steps)
            if steps[-1]:
                return operand[tirx.Ramp(first, steps[-1], lanes)]
            return nest.splat(operand[first], lanes)

        bias = None if self.bias is None else read(self.bias)
        y = self.value(acc, [read(scale) for scale in self.scales], bias, lanes)
        first = nest.linear(at, contiguous(self.shape))
        index = nest.ramp(self.place(at), lanes)
        self.out.store(index, self.finished(y, first, lanes))
        self._seen(self.out[index], lanes)

    def row(self, acc: Array, start: Expr, at: Sequence[Expr], length: Expr) -> None:
        """Results `at` (the coordinates of the first one), ... along the last axis, from
        acc[start], ..."""
        own = nest.linear(at, contiguous(self.shape))
        scales = [(a, nest.linear(at, self.steps(a)), self.steps(a)[-1]) for a in self.scales]
        bias = None
        if self.bias is not None:
            steps = self.steps(self.bias)
            bias = (self.bias, nest.linear(at, steps), steps[-1])

        def one(i: Expr) -> None:
            read = [a[nest.linear([i], [step], first)] for a, first, step in scales]
            added = None
            if bias is not None:
                array, first, step = bias
                added = array[nest.linear([i], [step], first)]
            y = self.value(acc[start + i], read, added)
            self.out.store(own + i, self.finished(y, own + i))

        if self.fenced:
            nest.vectors(length, one)
        else:
            with nest.serial(length, "e") as e:
                one(e)


@KERNELS.kernel("sq::dequantize")
def dequantize(spec: KernelSpec) -> object:
    """Elementwise over the accumulators; in vectors when there is a bias."""
    with nest.function(spec) as f:
        acc, epilogue = f["acc"], Epilogue(spec, f)
        operands = [*epilogue.scales, *([epilogue.bias] if epilogue.bias else [])]

        def one(at: list[Expr]) -> None:
            values = [a[i] for a, i in zip(operands, at[1:], strict=True)]
            count = len(epilogue.scales)
            bias = values[count] if epilogue.bias else None
            epilogue.out.store(at[0], epilogue.value(acc[at[0]], values[:count], bias))

        steps = [contiguous(acc.shape), *(epilogue.steps(a) for a in operands)]
        sweep(acc.shape, steps, one, explicit=epilogue.fenced)
    return f.result
