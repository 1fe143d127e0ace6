"""ShiftQuant of a gradient in one kernel: absmax, groups, scales and stochastic rounding.

Where the outer scales lie on rows (dgrad), the gradient is read from memory twice: once for the
absmax of a few rows and, while they are in the cache, the maxima of the columns; once to
quantise. Where they lie on columns (wgrad), a row's group needs all of them: three reads.
"""

from collections.abc import Sequence

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.absmax import (
    ROWS,
    Block,
    Slices,
    Store,
    column_maxima,
    maxima,
    widest,
)
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.philox import Philox
from sqcompile.backends.cpu.rounding import (
    group_of,
    inverse,
    magnitude,
    power,
    step,
    steps_per_unit,
    unless_tiny,
)
from sqcompile.backends.cpu.scaled import Factor, Scaled, hoisted
from sqcompile.backends.cpu.stochastic import Rounding, quantize_runs
from sqcompile.backends.cpu.sweep import in_whole_vectors
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec


@KERNELS.kernel("sq::shift_quantize", run_time=("stream",), views={"x": in_whole_vectors})
def shift_quantize(spec: KernelSpec) -> object:
    """Maxima, then the few scalars and one value a channel, then blocks of 128 elements."""
    with nest.function(spec, ("stream",)) as f:
        one = Quantizer(f["x"], f.get("factor"), f.outputs)
        one.measure(bool(spec["outer_axes"]))
        philox = Philox.of(f["rng"], f.scalars["stream"])
        quantize_runs([one.rounding(spec["bits"], spec["groups"])], philox, spec["bits"])
    return f.result


class Scales:
    """The five outputs of one ShiftQuant, q, exponent, scale, outer_scale and r, and what rounding
    reads of the small ones: 1 / outer in `inverses`, qmax / r in `units`."""

    def __init__(self, outputs: Sequence[Array], outer: Sequence[int] = ()) -> None:
        """outer: the steps with which the tensor's axes walk the outer scales."""
        self.q, self.exponent, self.scale, self.outer_scale, self.r = outputs
        self.found = nest.scratch(self.outer_scale.size, "float32")
        self.inverses = Factor(self.outer_scale.size, outer)
        self.units = nest.scratch(1, "float32")

    def store_outer(self, index: Expr, found: Expr) -> None:
        """Take the absmax of a free index."""
        self.found.store(index, found)
        self.outer_scale.store(index, unless_tiny(found))
        self.inverses.store(index, inverse(found))

    def no_outer(self) -> None:
        """There are no outer scales."""
        one = nest.const(1.0, "float32")
        self.outer_scale.store(0, one)
        self.inverses.store(0, one)

    def largest_after(self) -> Expr:
        """The largest magnitude (bits) after the outer scales, those being known: a product with a
        positive number rounds in order."""
        best = nest.scratch(1, "int32")
        best.store(0, nest.zero("int32"))
        with nest.serial(self.inverses.size, "o") as o:
            after = magnitude(self.found[o] * self.inverses[o])
            best.store(0, tirx.max(best[0], after))
        return best[0]

    def settle(self, largest: Expr, bits: int, groups: int) -> None:
        """Take the largest magnitude (bits) after the outer scales: r, scale and units."""
        self.r.store(0, nest.bits_of(largest, "float32"))
        self.scale.store(0, step(bits, True, groups, self.r[0]))
        self.units.store(0, steps_per_unit(bits, True, self.r[0]))

    def steps(self, channel: Array, groups: int, inner: Sequence[int]) -> Factor:
        """Exponents from the absmax of every reduced index, and (qmax / r) * 2^exponent."""
        exponent, units = self.exponent, self.units
        with nest.serial(exponent.size, "i") as i:
            exponent.store(i, group_of(channel[i], self.r[0], groups))
        return Factor.of(
            exponent.size, inner, lambda i: units[0] * power(nest.cast(exponent[i], "int32"))
        )


class Quantizer(Scales):
    """ShiftQuant of x * factor; the shapes of the outputs say its axes.

    First the absmaxes (`measure`), then `rounding` fills the small outputs and tells how to round.
    """

    def __init__(self, x: Array, factor: Array | None, outputs: Sequence[Array]) -> None:
        folded = [] if factor is None else [(factor, _itself)]
        outer_scale, exponent = outputs[3], outputs[1]
        plain, factors, (outer, inner) = hoisted(x, folded, outer_scale.shape, exponent.shape)
        super().__init__(outputs, outer)
        self.scaled = self.divided = plain.times(*factors)
        self.outer, self.inner = outer, inner
        self.channel = nest.scratch(exponent.size, "float32")

    def measure(self, outer: bool) -> None:
        """All absmaxes."""
        if not outer:
            self.no_outer()
            maxima(self.scaled, self.inner, self.channel.size, self.channel.store)
        elif self.rows_outside:
            by_rows(self)
        else:
            maxima(self.scaled, self.outer, self.inverses.size, self.store_outer)
            self.measure_channels()

    def measure_channels(self) -> None:
        """The absmaxes of the reduced indices, those of the free ones being known. Without groups
        only the largest counts."""
        self.divided = self.scaled.times(self.inverses)
        if any(self.inner):
            maxima(self.divided, self.inner, self.channel.size, self.channel.store)
        else:
            self.channel.store(0, nest.bits_of(self.largest_after(), "float32"))

    @property
    def rows_outside(self) -> bool:
        """Whether outer scales lie on the first merged axis alone, groups on the last or none."""
        return len(self.outer) > 1 and not any(self.outer[1:]) and not any(self.inner[:-1])

    def rounding(self, bits: int, groups: int) -> Rounding:
        """Write r, scale and exponents."""
        channel = Scaled(self.channel, [self.exponent.size], [])
        self.settle(widest(channel, Block([], [])), bits, groups)
        steps = self.steps(self.channel, groups, self.inner)
        return Rounding(self.divided, [steps], self.q, bounded=True)


def _itself(value: Expr) -> Expr:
    return value


def by_rows(one: Quantizer, columns: Store | None = None) -> None:
    """All maxima in one read: of a row of the first axis (of several where that is one row of
    memory), then of its columns. Without groups the row's maximum, divided, is enough: the product
    with a positive number rounds in order. With `columns`, also those of the columns of x."""
    scaled, inverses, inner = one.scaled, one.inverses, one.inner
    extents = scaled.extents
    divided = one.divided = scaled.times(inverses)
    plain = scaled.plain()
    size = one.channel.size
    slices = Slices(extents[0], size + (extents[-1] if columns else 0), scaled.x.size)

    def take(first: Expr, rows: int, partial: Array, base: Expr) -> None:
        with nest.serial(rows, "row") as i:
            found = nest.scratch(1, "float32")
            bits = widest(scaled, Block([first + i], extents[1:-1]))
            found.store(0, nest.bits_of(bits, "float32"))
            one.store_outer(first + i, found[0])
            if not any(inner):
                after = magnitude(found[0] * inverses[first + i])
                partial.store(base, tirx.max(partial[base], after))
        block = Block([], [rows, *extents[1:-1]], first)
        if any(inner):
            column_maxima(divided, block, partial, base)
        if columns:
            column_maxima(plain, block, partial, base + size)

    def slice_of(begin: Expr, length: Expr, partial: Array, base: Expr) -> None:
        together = ROWS if len(extents) == 2 else 1
        whole = tirx.floordiv(length, together)
        with nest.serial(whole, "rows") as i:
            take(begin + i * together, together, partial, base)
        if together > 1:
            with nest.serial(length, "row", whole * together) as i:
                take(begin + i, 1, partial, base)

    slices.run(slice_of)
    slices.combine((size, one.channel.store), *([(extents[-1], columns)] if columns else []))
