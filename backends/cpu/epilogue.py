"""From accumulators to results: the accumulator itself, or one rounding to float32, the scales
from left to right, the bias, ReLU."""

from collections.abc import Sequence

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.sweep import broadcast, contiguous, sweep
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec


class Epilogue:
    """Writes the results of a product; scales and bias are broadcast to the result's shape."""

    def __init__(self, spec: KernelSpec, f: nest.Function) -> None:
        (self.out,) = f.outputs
        self.shape = self.out.shape
        self.scales, self.bias = f.list("scales"), f.get("bias")
        self.relu = bool(spec.get("relu", False))
        self.fenced = self.bias is not None and bool(self.scales)

    def steps(self, operand: Array) -> list[int]:
        """The strides with which a scale or the bias is read as the result."""
        return broadcast(self.shape, operand.shape)

    def value(self, acc: Expr, scales: Sequence[Expr], bias: Expr | None) -> Expr:
        """One result."""
        if self.out.dtype != "float32":
            return acc
        y = nest.cast(acc, "float32")
        for scale in scales:
            y = y * scale
        if bias is not None:
            y = (nest.fence(y) if scales else y) + bias
        if self.relu:
            y = nest.select(y < nest.zero("float32"), nest.zero("float32"), y)
        return y

    def element(self, acc: Expr, at: Sequence[Expr]) -> None:
        """The result at coordinates `at`."""
        scales = [a[nest.linear(at, self.steps(a))] for a in self.scales]
        bias = None if self.bias is None else self.bias[nest.linear(at, self.steps(self.bias))]
        self.out.store(nest.linear(at, contiguous(self.shape)), self.value(acc, scales, bias))

    def vector(self, acc: Expr, at: Sequence[Expr], lanes: int) -> None:
        """`lanes` results along the last axis, the first at coordinates `at`, from a vector of
        accumulators that is still in a register."""

        def read(operand: Array) -> Expr:
            steps = self.steps(operand)
            first = nest.linear(at, steps)
            if steps[-1]:
                return operand[nest.ramp(first, lanes)]
            return nest.splat(operand[first], lanes)

        y = acc
        if self.out.dtype == "float32":
            y = nest.cast(acc, "float32", lanes)
            for scale in self.scales:
                y = y * read(scale)
            if self.bias is not None:
                y = (nest.fence(y, lanes) if self.scales else y) + read(self.bias)
            if self.relu:
                zero = nest.splat(nest.zero("float32"), lanes)
                y = nest.select(y < zero, zero, y)
        self.out.store(nest.ramp(nest.linear(at, contiguous(self.shape)), lanes), y)

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
            self.out.store(own + i, self.value(acc[start + i], read, added))

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
