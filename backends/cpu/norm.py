"""L1 normalisation from exact integer sums, forward and backward.

Sums are int64 over int32 partial sums of at most PARTIAL int8 elements, so the inner loops
vectorise; statistics are float32, in the order of `sqcompile.ops.norm`. Batch norm is parallel
over channels and layer norm over rows: with fewer channels than threads some threads idle.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.quantize import clamp, floor_to
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.ops.norm import SIGMA_OVER_DEVIATION
from sqcompile.ops.quantize import TINY

PARTIAL = 1 << 14
"""int8 products up to 128 * 256 add up below 2^30 over so many elements."""
COLUMNS = 64
"""Features whose sums one task of the affine gradients keeps."""


def _f(value: float) -> Expr:
    return nest.const(value, "float32")


def _long(value: Expr) -> Expr:
    return nest.cast(value, "int64")


def _float(value: Expr) -> Expr:
    return nest.cast(value, "float32")


@dataclass(frozen=True)
class Segments:
    """The elements that are normalised together: `rows` runs of `length` neighbours, `stride`
    apart, the first at `start`."""

    rows: int
    length: int
    stride: int
    start: Expr

    @property
    def count(self) -> int:
        """How many elements there are."""
        return self.rows * self.length

    def each(self, emit: Callable[[Expr], None], explicit: bool = False) -> None:
        """emit(offset) for every element; in vectors when a product feeds a sum."""
        with nest.serial(self.rows, "n") as n:
            begin = self.start + n * self.stride
            if explicit:
                nest.vectors(self.length, lambda i: emit(begin + i))
            else:
                with nest.serial(self.length, "i") as i:
                    emit(begin + i)

    def sums(self, terms: Callable[[Expr], list[Expr]], count: int, narrow: bool) -> list[Expr]:
        """int64 sums of `count` terms of each element; `narrow` terms are int32 and partial sums
        of PARTIAL of them fit int32."""
        totals = [nest.scratch(1, "int64") for _ in range(count)]
        for total in totals:
            total.store(0, nest.zero("int64"))
        dtype, longest = ("int32", PARTIAL) if narrow else ("int64", max(self.length, 1))
        partial = [nest.scratch(1, dtype) for _ in range(count)]

        def run(begin: Expr, length: int) -> None:
            for one in partial:
                one.store(0, nest.zero(dtype))
            with nest.serial(length, "i") as i:
                for one, term in zip(partial, terms(begin + i), strict=True):
                    one.store(0, one[0] + term)
            for total, one in zip(totals, partial, strict=True):
                total.store(0, total[0] + _long(one[0]))

        with nest.serial(self.rows, "n") as n:
            begin = self.start + n * self.stride
            whole, rest = divmod(self.length, longest)
            if whole:
                with nest.serial(whole, "part") as part:
                    run(begin + part * longest, longest)
            if rest:
                run(begin + whole * longest, rest)
        return [total[0] for total in totals]


def held(value: Expr, dtype: str = "float32") -> Expr:
    """A statistic computed once, in a variable of its own."""
    slot = nest.scratch(1, dtype)
    slot.store(0, value)
    return slot[0]


def _channel(x: Array, c: Expr) -> Segments:
    length = prod(x.shape[2:])
    return Segments(x.shape[0], length, x.shape[1] * length, c * length)


def _row(x: Array, m: Expr) -> Segments:
    return Segments(1, x.shape[1], x.shape[1], m * x.shape[1])


def _rounded_mean(total: Expr, count: int, frac_bits: int) -> Expr:
    """round_half_even(total * 2^frac_bits / count), int64."""

    def long(value: int) -> Expr:
        return nest.const(value, "int64")

    scaled = held(tirx.shift_left(total, long(frac_bits)), "int64")
    floor = held(tirx.floordiv(scaled, long(count)), "int64")
    twice = held((scaled - floor * long(count)) * long(2), "int64")
    odd = tirx.EQ(tirx.bitwise_and(floor, long(1)), long(1))
    tie = tirx.And(tirx.EQ(twice, long(count)), odd)
    return floor + nest.cast(tirx.Or(twice > long(count), tie), "int64")


class _Normalizer:
    """Statistics of one set and its normalised elements (sqcompile.ops.norm._normalized)."""

    def __init__(self, spec: KernelSpec, x: Array, segments: Segments, scale: Expr) -> None:
        self.spec, self.x, self.segments = spec, x, segments
        frac_bits = spec["frac_bits"]
        step, count = 2.0**-frac_bits, segments.count
        self.wide = "int32" if x.dtype in ("int8", "uint8") else "int64"
        self.shift = nest.const(frac_bits, self.wide)
        narrow = self.wide == "int32"
        (total,) = segments.sums(lambda i: [nest.cast(x[i], self.wide)], 1, narrow)
        mean = held(_rounded_mean(total, count, frac_bits), "int64")
        self.mean_int = held(nest.cast(mean, self.wide), self.wide)
        (deviation,) = segments.sums(lambda i: [_long(_abs(self._centred(i), self.wide))], 1, False)
        factor = SIGMA_OVER_DEVIATION * step / count
        self.sigma = held((_float(deviation) * _f(factor)) * scale)
        spread = held(nest.fence(self.sigma) + nest.literal(spec["eps"]))
        coefficient = nest.select(spread < _f(TINY), _f(0.0), _f(1.0) / spread)
        self.coefficient = held(coefficient)
        self.factor = held((scale * _f(step)) * self.coefficient)
        self.mean = held((_float(mean) * _f(step)) * scale)

    def _centred(self, i: Expr) -> Expr:
        return tirx.shift_left(nest.cast(self.x[i], self.wide), self.shift) - self.mean_int

    def write(self, y: Array, xhat: Array, gamma: object, beta: object) -> None:
        """y = gamma * xhat + beta and the saved xhat; gamma and beta are functions of the offset
        or None."""
        bits, step = self.spec["bits"], self.spec["step"]
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

        def one(i: Expr) -> None:
            value = _float(self._centred(i)) * self.factor
            xhat.store(i, floor_to(clamp(value / _f(step), low, high), "int8"))
            scaled = value if gamma is None else gamma(i) * value  # type: ignore[operator]
            moved = scaled if beta is None else nest.fence(scaled) + beta(i)  # type: ignore[operator]
            y.store(i, moved)

        self.segments.each(one, explicit=beta is not None)


def _abs(value: Expr, dtype: str) -> Expr:
    return nest.select(value < nest.zero(dtype), nest.zero(dtype) - value, value)


def _at(array: Array | None, index: Expr) -> Callable[[Expr], Expr] | None:
    """A constant over the set, as a function of the offset."""
    if array is None:
        return None
    value = held(array[index])
    return lambda i: value


@KERNELS.kernel("sq::l1_batch_norm")
def l1_batch_norm(spec: KernelSpec) -> object:
    """Channels in parallel; three passes over each (sum, deviation, result)."""
    with nest.function(spec) as f:
        x, scale, bias = f["x"], f["scale"], f.get("bias")
        y, xhat, coefficient, mean, var = f.outputs
        with nest.parallel(x.shape[1], x.size * 4, "c") as c:
            normal = _Normalizer(spec, x, _channel(x, c), held(scale[c]))
            coefficient.store(c, normal.coefficient)
            mean.store(c, normal.mean if bias is None else nest.fence(normal.mean) + bias[c])
            var.store(c, normal.sigma * normal.sigma)
            normal.write(y, xhat, _at(f.get("gamma"), c), _at(f.get("beta"), c))
    return f.result


@KERNELS.kernel("sq::l1_layer_norm")
def l1_layer_norm(spec: KernelSpec) -> object:
    """Rows in parallel; three passes over each."""
    with nest.function(spec) as f:
        x, scale, gamma, beta = f["x"], f["scale"], f.get("gamma"), f.get("beta")
        y, xhat, coefficient = f.outputs
        with nest.parallel(x.shape[0], x.size * 4, "m") as m:
            segments = _row(x, m)
            normal = _Normalizer(spec, x, segments, held(scale[m]))
            coefficient.store(m, normal.coefficient)

            def feature(array: Array | None) -> Callable[[Expr], Expr] | None:
                return None if array is None else lambda i: array[i - segments.start]

            normal.write(y, xhat, feature(gamma), feature(beta))
    return f.result


def _terms(g: Array, xhat: Array) -> Callable[[Expr], list[Expr]]:
    """g, g * (2 k + 1) and the sign of k + 1/2, as int32."""

    def terms(i: Expr) -> list[Expr]:
        wide, k = nest.cast(g[i], "int32"), nest.cast(xhat[i], "int32")
        one, two = nest.const(1, "int32"), nest.const(2, "int32")
        sign = nest.select(k >= nest.zero("int32"), one, nest.const(-1, "int32"))
        return [wide, wide * (k * two + one), sign]

    return terms


def _input_gradient(
    spec: KernelSpec,
    arrays: tuple[Array, Array, Array],
    segments: Segments,
    sums: list[Expr],
    factor: Expr,
) -> None:
    """dx of one set: factor * (g - a constant for each sign of xhat)."""
    g, xhat, dx = arrays
    total, total_xhat, total_sign = sums
    count = float(segments.count)
    mean = held(nest.fence(_float(total) / _f(count)))
    slope = SIGMA_OVER_DEVIATION * spec["step"] / (2 * segments.count)
    slope = held(_float(total_xhat) * _f(slope))
    sign = held(nest.fence(_float(total_sign) / _f(count)))
    above = held(mean + nest.fence(slope * (_f(1.0) - sign)))
    below = held(mean + nest.fence(slope * (_f(-1.0) - sign)))

    def one(i: Expr) -> None:
        part = nest.select(xhat[i] >= nest.zero("int8"), above, below)
        dx.store(i, (_float(g[i]) - part) * factor)

    segments.each(one)


@KERNELS.kernel("sq::l1_batch_norm_backward")
def l1_batch_norm_backward(spec: KernelSpec) -> object:
    """Channels in parallel; two passes over each (sums, result)."""
    with nest.function(spec) as f:
        g, xhat, gamma = f["g"], f["xhat"], f.get("gamma")
        dx, dgamma, dbeta = f.outputs
        with nest.parallel(g.shape[1], g.size * 4, "c") as c:
            segments = _channel(g, c)
            sums = segments.sums(_terms(g, xhat), 3, True)
            scale = held(f["g_scale"][c])
            factor = scale if gamma is None else gamma[c] * scale
            factor = held(factor * f["coefficient"][c])
            _input_gradient(spec, (g, xhat, dx), segments, sums, factor)
            dgamma.store(c, _float(sums[1]) * (scale * _f(spec["step"] / 2)))
            dbeta.store(c, _float(sums[0]) * scale)
    return f.result


@KERNELS.kernel("sq::l1_layer_norm_backward")
def l1_layer_norm_backward(spec: KernelSpec) -> object:
    """Rows in parallel; two passes over each."""
    with nest.function(spec) as f:
        h, xhat, (dx,) = f["h"], f["xhat"], f.outputs
        with nest.parallel(h.shape[0], h.size * 4, "m") as m:
            segments = _row(h, m)
            sums = segments.sums(_terms(h, xhat), 3, True)
            factor = held(f["h_scale"][m] * f["coefficient"][m])
            _input_gradient(spec, (h, xhat, dx), segments, sums, factor)
    return f.result


@KERNELS.kernel("sq::l1_layer_norm_affine_backward")
def l1_layer_norm_affine_backward(spec: KernelSpec) -> object:
    """Blocks of COLUMNS features in parallel, rows read whole; int64 sums."""
    with nest.function(spec) as f:
        g, scale, (dgamma, dbeta) = f["g"], f["g_scale"], f.outputs
        rows, features = g.shape
        terms = _terms(g, f["xhat"])
        with nest.parallel(-(-features // COLUMNS), g.size * 4, "block") as block:
            first = block * COLUMNS
            width = tirx.min(COLUMNS, features - first)
            sums = [nest.scratch(COLUMNS, "int64") for _ in range(2)]
            with nest.serial(COLUMNS, "d") as d:
                for total in sums:
                    total.store(d, nest.zero("int64"))
            with nest.serial(rows, "m") as m, nest.serial(width, "d") as d:
                for total, term in zip(sums, terms(m * features + first + d), strict=False):
                    total.store(d, total[d] + _long(term))
            with nest.serial(width, "d") as d:
                at = first + d
                dgamma.store(at, _float(sums[1][d]) * (scale[at] * _f(spec["step"] / 2)))
                dbeta.store(at, _float(sums[0][d]) * scale[at])
    return f.result
