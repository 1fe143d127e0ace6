"""ShiftQuant of a gradient: absmax, groups, scales and stochastic rounding, as launches of one
kernel."""

from collections.abc import Sequence

from tvm import tirx

from sqcompile.backends.cuda import grid
from sqcompile.backends.cuda.absmax import maxima
from sqcompile.backends.cuda.grid import Array, Expr
from sqcompile.backends.cuda.philox import Philox
from sqcompile.backends.cuda.quantize import at_shape, largest_of
from sqcompile.backends.cuda.stochastic import Scaled, carry, into
from sqcompile.backends.cuda.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.backends.rounding import group_of, inverse, power, step, steps_per_unit, unless_tiny


@KERNELS.kernel("sq::shift_quantize", run_time=("stream",), views={"x": grid.anywhere})
def shift_quantize(spec: KernelSpec) -> object:
    """Absmaxes, scales and exponents, then the integers."""
    with grid.function(spec, ("stream",)) as f:
        x, bits = f["x"], spec["bits"]
        one = Quantizer(x, f.get("factor"), f.outputs, bool(spec["outer_axes"]))
        one.measure(bits, spec["groups"])
        philox = Philox(f["rng"], f.scalars["stream"])
        carry(x.shape, philox, bits, [(one.scaled(bits), into(one.q))])
    return f.result


@KERNELS.kernel("sq::shift_quantize_pair", run_time=("stream",), views={"x": grid.anywhere})
def shift_quantize_pair(spec: KernelSpec) -> object:
    """The absmaxes of both, then both integers in one walk with the same draws."""
    with grid.function(spec, ("stream",)) as f:
        philox = Philox(f["rng"], f.scalars["stream"])
        quantize_pair(spec, f["x"], f.get("factor"), f.outputs, philox)
    return f.result


def quantize_pair(
    spec: KernelSpec, x: Array, factor: Array | None, outputs: Sequence[Array], philox: Philox
) -> None:
    """The ten outputs of the pair, of x in any memory."""
    bits, groups, outer = spec["bits"], spec["groups"], bool(spec["outer"])
    dgrad = Quantizer(x, factor, outputs[:5], outer)
    wgrad = Quantizer(x, None, outputs[5:10], outer)
    pairs = []
    for one in (dgrad, wgrad):
        one.measure(bits, groups)
        pairs.append((one.scaled(bits), into(one.q)))
    carry(x.shape, philox, bits, pairs)


class Quantizer:
    """ShiftQuant of x * factor; the shapes of the outputs say its axes."""

    def __init__(
        self, x: Array, factor: Array | None, outputs: Sequence[Array], outer: bool
    ) -> None:
        self.x, self.factor, self.outer = x, factor, outer
        self.q, self.exponent, self.scale, self.outer_scale, self.r = outputs
        found = grid.workspace(self.outer_scale.size, "float32")
        self.found = Array(found.buffer, self.outer_scale.spec)
        self.channel = grid.workspace(self.exponent.size, "float32")

    def measure(self, bits: int, groups: int) -> None:
        """All absmaxes, then the scales and the exponents in one launch."""
        factors = [] if self.factor is None else [self.factor]
        if self.outer:
            maxima(self.x, _gone(self.x, self.outer_scale), factors, False, self._outer)
        largest = self._largest(factors)
        one = grid.const(1.0, "float32")

        def settle(i: Expr) -> None:
            found = grid.keep(largest[0])
            self.exponent.store(i, group_of(self.channel[i], found, groups))
            with grid.when(tirx.EQ(i, grid.zero("int32"))):
                self.r.store(0, found)
                self.scale.store(0, step(bits, True, groups, found))
                if not self.outer:
                    self.outer_scale.store(0, one)

        grid.each(self.exponent.size, settle)

    def _outer(self, index: Expr, value: Expr) -> None:
        self.found.store(index, value)
        self.outer_scale.store(index, unless_tiny(value))

    def _largest(self, factors: Sequence[Array]) -> Array:
        """The absmaxes of the reduced indices, and their largest. Without groups that is the
        largest of the outer ones, each divided: a product with a positive number rounds in
        order."""
        if self.exponent.size > 1:
            divided = [*factors, self.found] if self.outer else factors
            gone = _gone(self.x, self.exponent)
            maxima(self.x, gone, divided, self.outer, self.channel.store)
            return largest_of(self.channel)
        if self.outer:
            every = list(range(len(self.found.shape)))
            maxima(self.found, every, [self.found], True, self.channel.store)
        else:
            maxima(self.x, list(range(len(self.x.shape))), factors, False, self.channel.store)
        return self.channel

    def scaled(self, bits: int) -> Scaled:
        """t of an element."""
        shape = self.x.shape

        def scaled(i: Expr) -> Expr:
            value = grid.at(self.x, i)
            if self.factor is not None:
                value = grid.keep(value * at_shape(self.factor, shape, i))
            if self.outer:
                value = grid.keep(value * inverse(grid.keep(at_shape(self.found, shape, i))))
            units = grid.keep(steps_per_unit(bits, True, grid.keep(self.r[0])))
            raised = power(grid.cast(at_shape(self.exponent, shape, i), "int32"))
            return value * grid.keep(units * raised)

        return scaled


def _gone(x: Array, kept: Array) -> list[int]:
    """The axes of x that a reduction leaves at size 1."""
    return [axis for axis, size in enumerate(kept.shape) if size == 1 or size != x.shape[axis]]
