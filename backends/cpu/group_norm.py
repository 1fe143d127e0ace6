"""L1 group norm over channels last: a sample is a batch norm of its own, with channels that share
their statistics.

Sums run over the pixels of a sample in vectors along the channels, then over the channels of every
group. Samples are shared by threads, or the pixels of one sample after the other when there are
few samples.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.batch_norm_backward import held_sums, saved_of, vector
from sqcompile.backends.cpu.channels import Periods, Total
from sqcompile.backends.cpu.gradient_sums import ColumnSums
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.norm import (
    InputGradient,
    Spread,
    affine,
    deviation,
    held,
    rounded_mean,
    threshold,
    to_float,
)
from sqcompile.backends.cpu.saved_xhat import Saved, saved
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec

ENOUGH_SAMPLES = 8
"""Samples from which on they are the tasks of threads."""


class Groups:
    """One shape (N, P, G, K): the channels of a sample and their groups."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.samples, self.pixels, self.count, self.width = shape
        self.channels = self.count * self.width
        self.size = self.pixels * self.channels
        self.elements = self.pixels * self.width
        self.threads = self.samples < ENOUGH_SAMPLES
        rows = (self.pixels, self.channels)
        self.periods = Periods.of(rows, threads=self.threads)

    @contextmanager
    def each_sample(self, work: int) -> Iterator[Expr]:
        """A loop over samples; `work` is what one element costs."""
        work = 0 if self.threads else self.samples * self.size * work
        with nest.parallel(self.samples, work, "sample") as sample:
            yield sample

    @contextmanager
    def each_channel(self) -> Iterator[tuple[Expr, Expr]]:
        """A loop over the channels: (group, channel)."""
        with nest.serial(self.count, "g") as g, nest.serial(self.width, "k") as k:
            yield g, g * self.width + k

    def gather(self, channels: Array) -> Array:
        """The int64 sums of groups, from those of channels."""
        total = nest.scratch(self.count, "int64")
        with nest.serial(self.count, "g") as g:
            total.store(g, nest.zero("int64"))
        with self.each_channel() as (g, c):
            total.store(g, total[g] + channels[c])
        return total

    def sums(
        self,
        count: int,
        vectors: Callable[[Expr, Expr], Sequence[Expr]],
        scalars: Callable[[Expr, Expr], Sequence[Expr]],
    ) -> list[Array]:
        """int64 sums over every group of `count` int32 terms: vectors(i, place) gives those of the
        16 elements of a sample from i on, which stand at `place` in a period, scalars(i, c) those
        of element i, of channel c."""
        periods = self.periods
        size = periods.tasks * periods.width
        partial = [nest.scratch(size, "int32") for _ in range(count)]

        def start(place: Expr) -> tuple[list[Total], Expr]:
            return [Total("int8") for _ in range(count)], place

        def add(slots: tuple[list[Total], Expr], at: Expr) -> None:
            for total, term in zip(slots[0], vectors(at, slots[1]), strict=True):
                total.add(term)

        def end(slots: tuple[list[Total], Expr], at: Expr) -> None:
            for total, out in zip(slots[0], partial, strict=True):
                out.store(nest.ramp(at), total.parts[0][nest.ramp(0)])

        periods.accumulate(count, start, add, end)
        channels = [nest.scratch(self.channels, "int64") for _ in range(count)]
        for result, parts in zip(channels, partial, strict=True):
            periods.fold_into(
                result, parts, lambda a, b: a + nest.cast(b, "int64"), nest.zero("int64")
            )
        with periods.leftover() as (i, c):
            for result, term in zip(channels, scalars(i, c), strict=True):
                result.store(c, result[c] + nest.cast(term, "int64"))
        return [self.gather(one) for one in channels]


class GroupStatistics:
    """Mean and deviation of every group of the sample of int8 x from `start` on."""

    def __init__(self, spec: KernelSpec, groups: Groups, x: Array, start: Expr) -> None:
        self.groups, self.frac_bits = groups, spec["frac_bits"]
        count, frac_bits = groups.elements, self.frac_bits

        def element(i: Expr) -> Expr:
            return nest.cast(x[start + i], "int32")

        def elements(i: Expr) -> Expr:
            return nest.cast(x[nest.ramp(start + i)], "int32", LANES)

        (self.total,) = groups.sums(1, lambda i, _: [elements(i)], lambda i, _: [element(i)])
        self.mean = nest.scratch(groups.count, "int64")
        limit = nest.scratch(groups.channels, "int32")
        with nest.serial(groups.count, "g") as g:
            self.mean.store(g, rounded_mean(self.total[g], count, frac_bits))
        with groups.each_channel() as (g, c):
            limit.store(c, nest.cast(threshold(self.mean[g], frac_bits), "int32"))
        limits = groups.periods.spread(limit)
        zero, one = nest.zero("int32"), nest.const(1, "int32")

        def above_vectors(i: Expr, place: Expr) -> list[Expr]:
            value = elements(i)
            greater = value > limits[nest.ramp(place)]
            return [nest.select(greater, v, nest.splat(zero)) for v in (value, nest.splat(one))]

        def above_scalars(i: Expr, c: Expr) -> list[Expr]:
            value = element(i)
            return [nest.select(value > limit[c], v, zero) for v in (value, one)]

        self.above, self.number = groups.sums(2, above_vectors, above_scalars)

    def spread(self, spec: KernelSpec, g: Expr, scale: Expr) -> Spread:
        """The spread of group g, whose integers are worth `scale` each."""
        mean, count = held(self.mean[g], "int64"), self.groups.elements
        parts = (mean, self.total[g], self.above[g], self.number[g])
        return Spread.of(spec, mean, deviation(*parts, count, self.frac_bits), count, held(scale))


class GroupElements:
    """Elements of the normalised sample: per channel the mean, the factor, gamma and beta, as they
    are and spread over a period."""

    def __init__(self, spec: KernelSpec, f: nest.Function, groups: Groups) -> None:
        self.spec, self.groups = spec, groups
        vectors = [f.get(name) for name in ("gamma", "beta")]
        self.affine = [None if v is None else (v, groups.periods.spread(v)) for v in vectors]

    def sample(self, mean: Array, factor: Array) -> None:
        """Take the int32 means and the factors of the groups of a sample."""
        periods = self.groups.periods
        channels = [nest.scratch(self.groups.channels, dtype) for dtype in ("int32", "float32")]
        with self.groups.each_channel() as (g, c):
            for array, value in zip(channels, (mean[g], factor[g]), strict=True):
                array.store(c, value)
        self.moving = [(array, periods.spread(array)) for array in channels]

    def element(self, x: Expr, c: Expr, spread: bool) -> tuple[Expr, Expr]:
        """(y, k) of an int8: c is its channel, or its place in a period when `spread`."""
        mean, factor = (pair[spread][c] for pair in self.moving)
        gamma, beta = (None if pair is None else pair[spread][c] for pair in self.affine)
        shift = nest.const(self.spec["frac_bits"], "int32")
        xhat = to_float((nest.cast(x, "int32") << shift) - mean) * factor
        return affine(xhat, gamma, beta), saved(xhat, self.spec["bits"], self.spec["step"])


@KERNELS.kernel("sq::l1_group_norm")
def l1_group_norm(spec: KernelSpec) -> object:
    """Two passes for the statistics of a sample, and one that writes."""
    with nest.function(spec) as f:
        x, scale, (y, xhat, coefficient) = f["x"], f["scale"], f.outputs
        groups = Groups(x.shape)
        elements = GroupElements(spec, f, groups)
        with groups.each_sample(4) as sample:
            start = sample * groups.size
            statistics = GroupStatistics(spec, groups, x, start)
            mean, factor = (nest.scratch(groups.count, dtype) for dtype in ("int32", "float32"))
            with nest.serial(groups.count, "g") as g:
                at = sample * groups.count + g
                spread = statistics.spread(spec, g, scale[at])
                coefficient.store(at, spread.coefficient)
                mean.store(g, nest.cast(statistics.mean[g], "int32"))
                factor.store(g, spread.factor)
            elements.sample(mean, factor)

            def one(i: Expr, c: Expr, spread: bool) -> None:
                value, k = elements.element(x[start + i], c, spread)
                y.store(start + i, value)
                xhat.store(start + i, nest.cast(k, "int8"))

            def sixteen(index: Expr, place: Expr) -> None:
                with nest.lanes() as lane:
                    one(index * LANES + lane, place + lane, True)

            groups.periods.vectors(sixteen)
            with groups.periods.leftover() as (i, c):
                one(i, c, False)
    return f.result


class GroupGradients:
    """dx of samples, from int8 gradients h."""

    def __init__(self, spec: KernelSpec, groups: Groups, saved: Saved) -> None:
        self.spec, self.groups, self.saved = spec, groups, saved

    def write(self, dx: Array, h: Array, start: Expr, first: Expr, factor: Array) -> None:
        """dx of the sample from element `start` on; h begins at element `first`, and `factor` has
        a number for every group."""
        groups, periods = self.groups, self.groups.periods
        rows = (groups.pixels, groups.channels)
        sums = ColumnSums(h, self.saved, rows, (start, first), groups.threads)
        gathered = [groups.gather(one) for one in sums.sums]
        channels = [nest.scratch(groups.channels, "float32") for _ in range(3)]
        with nest.serial(groups.count, "g") as g:
            results = sums.terms.results([one[g] for one in gathered], groups.elements)
            parts = InputGradient.of(self.spec, held_sums(results), groups.elements, factor[g])
            with nest.serial(groups.width, "k") as k:
                values = (parts.above, parts.below, parts.factor)
                for array, value in zip(channels, values, strict=True):
                    array.store(g * groups.width + k, value)
        spread = [periods.spread(array) for array in channels]

        def sixteen(index: Expr, place: Expr) -> None:
            constants = [array[nest.ramp(place)] for array in spread]
            vector(h, self.saved, dx, start + index * LANES, constants, first)

        periods.vectors(sixteen)
        with periods.leftover() as (i, c):
            above, below, worth = (array[c] for array in channels)
            at = start + i
            part = nest.select(self.saved.scalar(at) >= nest.zero("int32"), above, below)
            dx.store(at, (to_float(nest.cast(h[at - first], "int32")) - part) * worth)


def whole_bytes(spec: KernelSpec) -> str:
    """Samples of packed values start at a byte."""
    odd = prod(spec.outputs[0].shape[1:]) % 2
    return "samples of packed values need an even size" if odd else ""


@KERNELS.kernel("sq::l1_group_norm_backward")
@KERNELS.kernel("sq::l1_group_norm_packed_backward", limit=whole_bytes)
def l1_group_norm_backward(spec: KernelSpec) -> object:
    """One pass over a sample for its sums, one that writes."""
    with nest.function(spec) as f:
        h, (dx,) = f["h"], f.outputs
        groups = Groups(h.shape)
        gradients = GroupGradients(spec, groups, saved_of(f))
        with groups.each_sample(4) as sample:
            factor = nest.scratch(groups.count, "float32")
            with nest.serial(groups.count, "g") as g:
                at = sample * groups.count + g
                factor.store(g, f["h_scale"][at] * f["coefficient"][at])
            gradients.write(dx, h, sample * groups.size, 0, factor)
    return f.result
