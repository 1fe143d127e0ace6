"""L1 batch norm over channels last: statistics from exact integer sums, then one elementwise pass.

Three passes over the integers, each parallel over blocks of rows: the sum of every channel, unless
the product that made the integers gives it; the sum and number of the elements above the mean,
which give the deviation without 64-bit arithmetic (`norm.deviation`); and the elements themselves.
The first pass that there is also finds the extremes of every channel where asked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.channels import Periods, Total, zeros
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.norm import (
    Spread,
    affine,
    deviation,
    held,
    rounded_mean,
    threshold,
    to_float,
)
from sqcompile.backends.cpu.saved_xhat import saved
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec


def _compared(dtype: str) -> str:
    """The integers in which elements are added and compared."""
    return "int64" if dtype == "int64" else "int32"


def _load(x: Array, at: Expr) -> Expr:
    return nest.cast(x[nest.ramp(at)], _compared(x.dtype), LANES)


def _integers(size: int, dtype: str = "int64") -> Array:
    return nest.scratch(size, dtype)


class _Extremes:
    """The largest and smallest element of every channel, or nothing where they are not wanted."""

    def __init__(self, periods: Periods, dtype: str, wanted: bool) -> None:
        self.periods, self.dtype = periods, dtype
        both: list[tuple[Callable[[Expr, Expr], Expr], Expr]] = [
            (tirx.max, tirx.min_value(dtype)),
            (tirx.min, tirx.max_value(dtype)),
        ]
        self.ends = both if wanted else []
        self.partial = [_integers(periods.tasks * periods.width, dtype) for _ in self.ends]
        self.result = [_integers(periods.channels, dtype) for _ in self.ends]

    def open(self) -> list[Array]:
        """Accumulators of one vector."""
        slots = [nest.scratch(LANES, self.dtype) for _ in self.ends]
        for slot, (_, start) in zip(slots, self.ends, strict=True):
            slot.store(nest.ramp(0), nest.splat(start))
        return slots

    def add(self, slots: list[Array], value: Expr) -> None:
        for slot, (join, _) in zip(slots, self.ends, strict=True):
            slot.store(nest.ramp(0), join(slot[nest.ramp(0)], value))

    def close(self, slots: list[Array], at: Expr) -> None:
        for slot, partial in zip(slots, self.partial, strict=True):
            partial.store(nest.ramp(at), slot[nest.ramp(0)])

    def fold(self) -> None:
        for result, partial, end in zip(self.result, self.partial, self.ends, strict=True):
            self.periods.fold_into(result, partial, *end)

    def left(self, c: Expr, value: Expr) -> None:
        for result, (join, _) in zip(self.result, self.ends, strict=True):
            result.store(c, join(result[c], value))


@dataclass
class Statistics:
    """Per channel: the integer mean, xhat's factor, and the extremes of x if asked for."""

    mean: Array
    factor: Array
    extremes: list[Array]


class Normalizer:
    """Statistics of every channel of x, and its elements."""

    def __init__(
        self, spec: KernelSpec, f: nest.Function, extremes: bool, statistics: Sequence[Array]
    ) -> None:
        """statistics: the outputs coefficient, mean and variance."""
        self.spec, self.x, self.f, self.statistics = spec, f["x"], f, statistics
        self.periods = Periods.of(self.x.shape)
        self.compared = _compared(self.x.dtype)
        self.count = prod(self.x.shape[:-1])
        channels = self.periods.channels
        self.extremes = _Extremes(self.periods, self.compared, extremes)
        total, later = f.get("sums"), self.extremes
        if total is None:
            total = self._sums(self.extremes)
            later = _Extremes(self.periods, self.compared, wanted=False)
        mean = self._mean(total)
        above, number = self._above(mean, later)
        self.mean, self.factor = mean, nest.scratch(channels, "float32")
        self._finish(total, above, number)

    def _sums(self, extremes: _Extremes) -> Array:
        """The sum of every channel, and its extremes."""
        periods, x = self.periods, self.x
        partial = _integers(periods.tasks * periods.width)

        def start(_: Expr) -> tuple[Total, list[Array]]:
            return Total(x.dtype), extremes.open()

        def add(slots: tuple[Total, list[Array]], at: Expr) -> None:
            value = _load(x, at)
            slots[0].add(value)
            extremes.add(slots[1], value)

        def end(slots: tuple[Total, list[Array]], at: Expr) -> None:
            partial.store(nest.ramp(at), slots[0].result())
            extremes.close(slots[1], at)

        periods.accumulate(4, start, add, end)
        total = _integers(periods.channels)
        periods.fold_into(total, partial, lambda a, b: a + b, nest.zero("int64"))
        extremes.fold()
        with periods.leftover() as (i, c):
            total.store(c, total[c] + nest.cast(x[i], "int64"))
            extremes.left(c, nest.cast(x[i], self.compared))
        return total

    def _mean(self, total: Array) -> Array:
        """The fixed-point mean of every channel."""
        mean = _integers(self.periods.channels)
        with nest.serial(self.periods.channels, "c") as c:
            mean.store(c, rounded_mean(total[c], self.count, self.spec["frac_bits"]))
        return mean

    def _above(self, mean: Array, extremes: _Extremes) -> tuple[Array, Array]:
        """The sum and the number of the elements above the mean of their channel, and the
        extremes."""
        periods, x, dtype = self.periods, self.x, self.compared
        limit = nest.scratch(periods.channels, dtype)
        with nest.serial(periods.channels, "c") as c:
            limit.store(c, nest.cast(threshold(mean[c], self.spec["frac_bits"]), dtype))
        limits = periods.spread(limit)
        partial, counts = (_integers(periods.tasks * periods.width) for _ in range(2))
        one, zero = nest.splat(nest.const(1, "int32")), zeros("int32")

        def start(place: Expr) -> tuple[Total, Total, Array, list[Array]]:
            bound = nest.scratch(LANES, dtype)
            bound.store(nest.ramp(0), limits[nest.ramp(place)])
            return Total(x.dtype), Total("int8"), bound, extremes.open()

        def add(slots: tuple[Total, Total, Array, list[Array]], at: Expr) -> None:
            value, (kept, number, bound, ends) = _load(x, at), slots
            greater = value > bound[nest.ramp(0)]
            kept.add(nest.select(greater, value, zeros(dtype)))
            number.add(nest.select(greater, one, zero))
            extremes.add(ends, value)

        def end(slots: tuple[Total, Total, Array, list[Array]], at: Expr) -> None:
            partial.store(nest.ramp(at), slots[0].result())
            counts.store(nest.ramp(at), slots[1].result())
            extremes.close(slots[3], at)

        periods.accumulate(4 + len(extremes.ends), start, add, end)
        extremes.fold()
        above, number = (_integers(periods.channels) for _ in range(2))
        for result, parts in ((above, partial), (number, counts)):
            periods.fold_into(result, parts, lambda a, b: a + b, nest.zero("int64"))
        with periods.leftover() as (i, c):
            value = nest.cast(x[i], dtype)
            greater = value > limit[c]
            kept = nest.select(greater, value, nest.zero(dtype))
            above.store(c, above[c] + nest.cast(kept, "int64"))
            number.store(c, number[c] + nest.cast(greater, "int64"))
            extremes.left(c, value)
        return above, number

    def _finish(self, total: Array, above: Array, number: Array) -> None:
        """Factor of every channel; writes coefficient, mean and variance."""
        spec, scale, bias = self.spec, self.f["scale"], self.f.get("bias")
        coefficient, mean, var = self.statistics
        with nest.serial(self.periods.channels, "c") as c:
            m = held(self.mean[c], "int64")
            d = deviation(m, total[c], above[c], number[c], self.count, spec["frac_bits"])
            spread = Spread.of(spec, m, d, self.count, held(scale[c]))
            coefficient.store(c, spread.coefficient)
            mean.store(c, spread.mean if bias is None else nest.fence(spread.mean) + bias[c])
            var.store(c, spread.sigma * spread.sigma)
            self.factor.store(c, spread.factor)

    def fits(self) -> Expr:
        """Whether x * 2^f - m of every element of an int32 x fits 32 bits: mostly so, since few
        accumulators are 2^15 away from their mean."""
        f, farthest = nest.const(self.spec["frac_bits"], "int64"), _integers(1)
        farthest.store(0, nest.zero("int64"))
        with nest.serial(self.periods.channels, "c") as c:
            for end in self.extremes.result:
                away = tirx.shift_left(nest.cast(end[c], "int64"), f) - self.mean[c]
                farthest.store(0, tirx.max(farthest[0], tirx.max(away, nest.zero("int64") - away)))
        return held(farthest[0], "int64") < nest.const(2**31, "int64")


class Elements:
    """xhat and y of an element, from per-channel arrays in which channel c stands at `c`.

    `form` is how x * 2^f - m becomes a float32 in one rounding. "int32": in 32 bits, which may
    wrap on the way where the result fits. "float64": x - m * 2^-f of an int32 is exact, and the
    power of two then too; no CPU need convert 64-bit integers. "int64": the rest.
    """

    def __init__(self, normal: Normalizer, form: str) -> None:
        self.normal, self.form = normal, form
        self.frac_bits, channels = normal.spec["frac_bits"], normal.periods.channels
        self.center = nest.scratch(channels, "uint32" if form == "int32" else form)
        with nest.serial(channels, "c") as c:
            m = nest.cast(normal.mean[c], self.center.dtype)
            if form == "float64":
                m = m * nest.const(2.0**-self.frac_bits, form)
            self.center.store(c, m)
        self.channels = self._arrays(lambda a: a)
        self.lanes = self._arrays(normal.periods.spread)

    def _arrays(self, spread: Callable[[Array], Array]) -> list[Array | None]:
        f, arrays = self.normal.f, [self.center, self.normal.factor]
        return [None if a is None else spread(a) for a in (*arrays, f.get("gamma"), f.get("beta"))]

    def xhat(self, value: Expr, arrays: list[Array | None], c: Expr) -> Expr:
        """xhat of an integer."""
        center, factor = arrays[0], arrays[1]
        assert center is not None and factor is not None
        if self.form == "float64":
            centred = to_float(nest.cast(value, "float64") - center[c])
            return (centred * nest.const(2.0**self.frac_bits, "float32")) * factor[c]
        shift = nest.const(self.frac_bits, center.dtype)
        shifted = tirx.shift_left(nest.cast(value, center.dtype), shift) - center[c]
        return to_float(nest.cast(shifted, self.form)) * factor[c]

    def y(self, xhat: Expr, arrays: list[Array | None], c: Expr) -> Expr:
        """gamma * xhat + beta."""
        gamma, beta = arrays[2:]
        return affine(xhat, None if gamma is None else gamma[c], None if beta is None else beta[c])


Walk = Callable[[Callable[[Expr, Expr], None]], None]
"""Goes through the vectors of a tensor: what `Periods.vectors` does."""


class Forms:
    """Elements of x in the form that fits all of x ("int32", "float64" or "int64"), and in the
    narrow one where that does, which is known at run time only."""

    def __init__(self, normal: Normalizer) -> None:
        dtype = normal.x.dtype
        self.normal = normal
        self.general = Elements(normal, {"int32": "float64", "int64": "int64"}.get(dtype, "int32"))
        self.narrow = Elements(normal, "int32") if dtype == "int32" else None
        self.fits = normal.fits() if dtype == "int32" else None

    def vectors(
        self, emit: Callable[[Elements, Expr, Expr], None], walk: Walk | None = None
    ) -> None:
        """emit(elements, index, place) as `Periods.vectors`, or as `walk` goes through them."""
        walk = walk or self.normal.periods.vectors
        if self.narrow is None:
            walk(lambda *at: emit(self.general, *at))
            return
        for condition, elements in ((self.fits, self.narrow), (tirx.Not(self.fits), self.general)):
            with nest.when(condition):
                walk(lambda *at, e=elements: emit(e, *at))


@KERNELS.kernel("sq::l1_batch_norm")
def l1_batch_norm(spec: KernelSpec) -> object:
    """y and xhat as they are."""
    with nest.function(spec) as f:
        y, xhat, *statistics = f.outputs
        normal = Normalizer(spec, f, f["x"].dtype == "int32", statistics)
        forms = Forms(normal)

        def one(elements: Elements, i: Expr, arrays: list[Array | None], c: Expr) -> None:
            value = elements.xhat(normal.x[i], arrays, c)
            y.store(i, elements.y(value, arrays, c))
            xhat.store(i, nest.cast(saved(value, spec["bits"], spec["step"]), "int8"))

        def vector(elements: Elements, index: Expr, first: Expr) -> None:
            with nest.lanes() as lane:
                one(elements, index * LANES + lane, elements.lanes, first + lane)

        forms.vectors(vector)
        with normal.periods.leftover() as (i, c):
            one(forms.general, i, forms.general.channels, c)
    return f.result
