"""The arithmetic of the L1 norms that batch and layer norm share (sqcompile.ops.norm).

Everything here is scalar; inside `nest.lanes` or `nest.vectors` it becomes a vector.
"""

from dataclasses import dataclass

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Expr
from sqcompile.backends.kernels import KernelSpec
from sqcompile.ops.norm import SIGMA_OVER_DEVIATION
from sqcompile.ops.quantize import TINY


def f32(value: float) -> Expr:
    """A float32 constant that is no zero of a user's graph."""
    return nest.const(value, "float32")


def to_float(value: Expr) -> Expr:
    """One rounding to float32."""
    return nest.cast(value, "float32")


def held(value: Expr, dtype: str = "float32") -> Expr:
    """A statistic computed once, in a variable of its own."""
    slot = nest.scratch(1, dtype)
    slot.store(0, value)
    return slot[0]


def rounded_mean(total: Expr, count: int, frac_bits: int) -> Expr:
    """round_half_even(total * 2^frac_bits / count), int64."""

    def long(value: int) -> Expr:
        return nest.const(value, "int64")

    scaled = held(tirx.shift_left(total, long(frac_bits)), "int64")
    floor = held(tirx.floordiv(scaled, long(count)), "int64")
    twice = held((scaled - floor * long(count)) * long(2), "int64")
    odd = tirx.EQ(tirx.bitwise_and(floor, long(1)), long(1))
    tie = tirx.And(tirx.EQ(twice, long(count)), odd)
    return floor + nest.cast(tirx.Or(twice > long(count), tie), "int64")


def threshold(mean: Expr, frac_bits: int) -> Expr:
    """floor(mean / 2^frac_bits): x is above the mean exactly when x is above this integer."""
    return tirx.shift_right(mean, nest.const(frac_bits, "int64"))


def deviation(
    mean: Expr, total: Expr, above: Expr, count_above: Expr, count: int, frac_bits: int
) -> Expr:
    """sum |x * 2^f - m| from the sum of all x and the sum and number of those above the mean."""
    two, f = nest.const(2, "int64"), nest.const(frac_bits, "int64")
    sides = tirx.shift_left(above * two - total, f)
    return sides - mean * (count_above * two - nest.const(count, "int64"))


@dataclass
class Spread:
    """Statistics of one normalised set, held in variables: sigma, coefficient = 1 / (sigma + eps),
    the mean, and factor, by which x * 2^f - m becomes xhat."""

    sigma: Expr
    coefficient: Expr
    mean: Expr
    factor: Expr

    @classmethod
    def of(cls, spec: KernelSpec, mean: Expr, total: Expr, count: int, scale: Expr) -> "Spread":
        """From the integer mean and deviation (`total`) of `count` integers worth `scale` each."""
        step = 2.0 ** -spec["frac_bits"]
        ratio = SIGMA_OVER_DEVIATION * step / count
        sigma = held((to_float(total) * f32(ratio)) * scale)
        spread = held(nest.fence(sigma) + nest.literal(spec["eps"]))
        coefficient = held(nest.select(spread < f32(TINY), f32(0.0), f32(1.0) / spread))
        factor = held((scale * f32(step)) * coefficient)
        return cls(sigma, coefficient, held((to_float(mean) * f32(step)) * scale), factor)


def affine(xhat: Expr, gamma: Expr | None, beta: Expr | None) -> Expr:
    """gamma * xhat + beta, two roundings."""
    scaled = xhat if gamma is None else gamma * xhat
    return scaled if beta is None else nest.fence(scaled) + beta


@dataclass
class InputGradient:
    """What turns the integers of a gradient into dx: factor * (g - above or below), the latter by
    the sign of xhat."""

    above: Expr
    below: Expr
    factor: Expr

    @classmethod
    def of(
        cls, spec: KernelSpec, sums: tuple[Expr, Expr, Expr], count: int, factor: Expr
    ) -> "InputGradient":
        """From the sums of g, g * (2 k + 1) and the signs of xhat."""
        total, total_xhat, total_sign = (to_float(one) for one in sums)
        if not spec.get("centred", True):
            slope = held(total_xhat * f32(SIGMA_OVER_DEVIATION * spec["step"] / (2 * count)))
            return cls(slope, held(slope * f32(-1.0)), factor)
        mean = held(nest.fence(total / f32(float(count))))
        slope = SIGMA_OVER_DEVIATION * spec["step"] / (2 * count)
        slope = held(total_xhat * f32(slope))
        sign = held(nest.fence(total_sign / f32(float(count))))
        above = held(mean + nest.fence(slope * (f32(1.0) - sign)))
        below = held(mean + nest.fence(slope * (f32(-1.0) - sign)))
        return cls(above, below, factor)
