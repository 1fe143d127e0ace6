"""L1 norms over any axes: what their forward and their gradient are made of.

A normalised set is what a reduction over `axes` takes together: a channel of a batch norm, a row of
a layer norm, a sample's group. The forward is two reductions of integers (the second one wants the
first one's mean), then elements; the gradient is one reduction, then elements. What a set has is
kept in memory between the launches.
"""

from collections.abc import Callable, Sequence
from math import prod

from tvm import tirx

from sqcompile.backends.cuda import grid
from sqcompile.backends.cuda.grid import Array, Expr
from sqcompile.backends.cuda.pack import nibble
from sqcompile.backends.cuda.passes import Nibbles, Stored, along, mapped, saved_along
from sqcompile.backends.cuda.quantize import at_shape
from sqcompile.backends.cuda.reduce import TOTAL, Reduced, Store, folded
from sqcompile.backends.kernels import TensorSpec
from sqcompile.backends.rounding import clamp
from sqcompile.ops.norm import SIGMA_OVER_DEVIATION
from sqcompile.ops.quantize import TINY

Value = Callable[[Expr], Expr]
"""value(index) of an element."""
Sums = Callable[[Expr, Expr, Expr], None]
"""What takes two float32 values of a set."""


def real(value: float) -> Expr:
    """A float32 constant."""
    return grid.const(value, "float32")


def wide(value: Expr) -> Expr:
    """An integer as int64."""
    return grid.cast(value, "int64")


def product(a: Expr, b: Expr) -> Expr:
    """A float32 product, rounded and kept."""
    return grid.keep(grid.fence(a * b))


class Sets:
    """The normalised sets of a shape: one value of each in memory, read for an element."""

    def __init__(self, shape: Sequence[int], axes: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
        self.walk = Reduced.of(shape, axes)
        self.results = prod(self.kept)
        self.count = prod(shape[axis] for axis in axes)

    def memory(self, dtype: str) -> Array:
        """A value for each set."""
        return Array(grid.workspace(self.results, dtype).buffer, TensorSpec(self.kept, dtype))

    def of(self, values: Array, index: Expr) -> Expr:
        """The value of the set that an element is in."""
        return at_shape(values, self.shape, index)

    def sums(self, count: int, element: Callable[[Expr], Sequence[Expr]], store: Store) -> None:
        """store(set, [int64 sums]) of what element(index) gives, `count` values."""
        folded(
            self.results,
            self.count,
            self.walk.columns,
            [TOTAL] * count,
            lambda result, k: element(self.walk.places(result, k)[0]),
            store,
        )


def rounded_mean(total: Expr, count: int, frac_bits: int) -> Expr:
    """round_half_even(total * 2^frac_bits / count), of int64."""
    scaled = grid.keep(tirx.shift_left(total, grid.const(frac_bits, "int64")))
    size = grid.const(count, "int64")
    quotient = grid.keep(tirx.floordiv(scaled, size))
    twice = grid.keep((scaled - quotient * size) * grid.const(2, "int64"))
    odd = tirx.NE(tirx.bitwise_and(quotient, grid.const(1, "int64")), grid.zero("int64"))
    up = tirx.Or(twice > size, tirx.And(tirx.EQ(twice, size), odd))
    return grid.keep(quotient + grid.cast(up, "int64"))


class Normalized:
    """xhat of integers worth scale[set] each, over `axes` of their shape; `total`: their int64
    sums, where these are known."""

    def __init__(
        self,
        x: Array,
        scale: Array,
        axes: Sequence[int],
        eps: float,
        frac_bits: int,
        centred: bool = True,
        total: Array | None = None,
    ) -> None:
        self.x, self.scale, self.total = x, scale, total
        self.sets = Sets(x.shape, axes)
        self.eps, self.frac_bits, self.centred = eps, frac_bits, centred
        self.mean = self.sets.memory("int64")
        self.factor = self.sets.memory("float32")

    def measure(self, coefficients: Array, statistics: Sums | None = None) -> None:
        """Means and deviations; statistics(set, mean, sigma) takes what a batch norm gives on."""
        self._means()
        step = 2.0**-self.frac_bits
        worth = real(SIGMA_OVER_DEVIATION * step / max(self.sets.count, 1))

        def deviation(index: Expr) -> Sequence[Expr]:
            moved = grid.keep(self._moved(index, self.x[index]))
            return [grid.select(moved < grid.zero("int64"), grid.zero("int64") - moved, moved)]

        def settle(result: Expr, values: Sequence[Expr]) -> None:
            scale = grid.keep(self.scale[result])
            sigma = product(product(grid.cast(values[0], "float32"), worth), scale)
            spread = grid.keep(sigma + grid.literal(self.eps))
            coefficient = grid.keep(grid.select(spread < real(TINY), real(0.0), real(1.0) / spread))
            coefficients.store(result, coefficient)
            self.factor.store(result, product(product(scale, real(step)), coefficient))
            if statistics is not None:
                mean = product(grid.cast(self.mean[result], "float32"), real(step))
                statistics(result, product(mean, scale), sigma)

        self.sets.sums(1, deviation, settle)

    def _means(self) -> None:
        """The means, as integers of `frac_bits` fraction bits."""
        sets = self.sets

        def store(result: Expr, values: Sequence[Expr]) -> None:
            self.mean.store(result, rounded_mean(values[0], sets.count, self.frac_bits))

        if not self.centred:
            zero = grid.zero("int64")
            grid.each(sets.results, lambda i: self.mean.store(i, zero))
        elif self.total is None:
            sets.sums(1, lambda index: [wide(self.x[index])], store)
        else:
            known = self.total
            grid.each(sets.results, lambda i: store(i, [grid.keep(known[i])]))

    def _moved(self, index: Expr, x: Expr) -> Expr:
        raised = tirx.shift_left(wide(x), grid.const(self.frac_bits, "int64"))
        return raised - self.sets.of(self.mean, index)

    def xhat(self, index: Expr, x: Expr) -> Expr:
        """The normalised element, of one of x; kept."""
        moved = grid.cast(self._moved(index, x), "float32")
        return product(moved, self.sets.of(self.factor, index))


def affine(
    xhat: Expr, gamma: Array | None, beta: Array | None, shape: Sequence[int], index: Expr
) -> Expr:
    """(gamma * xhat) + beta, absent parts left out; kept."""
    y = xhat
    if gamma is not None:
        y = product(at_shape(gamma, shape, index), y)
    return y if beta is None else grid.keep(y + at_shape(beta, shape, index))


def saved(xhat: Expr, bits: int, step: float) -> Expr:
    """The integer k of the saved value (k + 1/2) * step, as int32."""
    floor = grid.keep(tirx.floor(grid.keep(xhat / real(step))))
    return grid.cast(clamp(floor, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1), "int32")


def saved_sink(out: Array) -> Stored:
    """Where saved integers go: int8, or two to a byte where the output is packed."""
    return Nibbles(out) if out.dtype == "uint8" else Stored(out)


def unpacked(xhat: Array) -> Value:
    """The saved integers as int32, of int8 or of two to a byte."""
    if xhat.dtype == "uint8":
        return lambda index: nibble(xhat, index, True)
    return lambda index: grid.cast(xhat[index], "int32")


class Gradient:
    """The input gradient of an L1 norm from integers g and saved ones (int8, or two to a byte):
    `factor(set)` is what a set's gradient is multiplied by."""

    def __init__(
        self,
        g: Array,
        xhat: Array,
        axes: Sequence[int],
        step: float,
        factor: Value,
        centred: bool = True,
    ) -> None:
        self.g, self.xhat = g, xhat
        self.step, self.factor, self.centred = step, factor, centred
        self.sets = Sets(g.shape, axes)
        self.above, self.below, self.factors = (self.sets.memory("float32") for _ in range(3))

    def measure(self, sums: Sums | None = None) -> None:
        """The sums of every set; sums(set, sum of g, sum of g * (2 k + 1)) takes two of them."""
        count = max(self.sets.count, 1)
        k = unpacked(self.xhat)

        def settle(result: Expr, values: Sequence[Expr]) -> None:
            total, total_xhat, total_sign = (grid.keep(grid.cast(one, "float32")) for one in values)
            slope = product(total_xhat, real(SIGMA_OVER_DEVIATION * self.step / (2 * count)))
            above, below = slope, product(slope, real(-1.0))
            if self.centred:
                mean = grid.keep(total / real(count))
                sign = grid.keep(total_sign / real(count))
                above = grid.keep(mean + product(slope, grid.keep(real(1.0) - sign)))
                below = grid.keep(mean + product(slope, grid.keep(real(-1.0) - sign)))
            self.above.store(result, above)
            self.below.store(result, below)
            self.factors.store(result, self.factor(result))
            if sums is not None:
                sums(result, total, total_xhat)

        self.sets.sums(3, lambda index: norm_sums(self.g, k, index), settle)

    def store(self, dx: Array) -> None:
        """The gradient of every element."""
        sets = self.sets

        def element(index: Expr, given: Sequence[Expr]) -> Sequence[Expr]:
            g, k = given
            positive = k >= grid.zero("int32")
            part = grid.select(positive, sets.of(self.above, index), sets.of(self.below, index))
            moved = grid.keep(grid.cast(g, "float32") - grid.keep(part))
            return [product(moved, sets.of(self.factors, index))]

        mapped(dx.size, [along(self.g), saved_along(self.xhat)], [Stored(dx)], element)


def norm_sums(g: Array, k: Value, index: Expr) -> list[Expr]:
    """g, g * (2 k + 1) and the sign of k + 1/2 of an element, as int64."""
    value, saved_k = grid.keep(wide(g[index])), grid.keep(k(index))
    odd = wide(saved_k * 2 + 1)
    one = grid.const(1, "int64")
    sign = grid.select(saved_k >= grid.zero("int32"), one, grid.const(-1, "int64"))
    return [value, value * odd, sign]
