"""ShiftQuant of a gradient in one kernel: absmax, groups, scales and stochastic rounding.

Where the outer scales lie on rows (dgrad), the gradient is read from memory twice: once for the
absmax of a few rows and, while they are in the cache, the maxima of the columns; once to
quantise. Where they lie on columns (wgrad), a row's group needs all of them: three reads. For
both products at once, the columns' maxima come out of the first read too: three in all.
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
from sqcompile.backends.cpu.stochastic import Rounding, quantize_blocks
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.ops.quantize_pair import PER_QUANTIZER


@KERNELS.kernel("sq::shift_quantize", run_time=("stream",))
def shift_quantize(spec: KernelSpec) -> object:
    """Maxima, then the few scalars and one value a channel, then blocks of 128 elements."""
    with nest.function(spec, ("stream",)) as f:
        one = Quantizer(f["x"], f.get("factor"), f.outputs)
        one.measure(bool(spec["outer_axes"]))
        philox = Philox.of(f["rng"], f.scalars["stream"])
        quantize_blocks([one.rounding(spec["bits"], spec["groups"])], philox, spec["bits"])
    return f.result


@KERNELS.kernel("sq::shift_quantize_pair", run_time=("stream",))
def shift_quantize_pair(spec: KernelSpec) -> object:
    """The maxima of both, then blocks of 128 elements that are read and drawn once."""
    with nest.function(spec, ("stream",)) as f:
        pair(f, spec, f["x"])
    return f.result


def pair(f: nest.Function, spec: KernelSpec, x: Array) -> None:
    """The ten outputs of shift_quantize_pair, f's first ones, of x."""
    dgrad = Quantizer(x, f.get("factor"), f.outputs[:PER_QUANTIZER])
    wgrad = Quantizer(x, None, f.outputs[PER_QUANTIZER : 2 * PER_QUANTIZER])
    if spec["outer"] and dgrad.rows_outside and dgrad.scaled.extents[-1] == x.shape[-1]:
        _by_rows(dgrad, wgrad.store_outer)
        wgrad.measure_channels()
    else:
        for one in (dgrad, wgrad):
            one.measure(spec["outer"])
    philox = Philox.of(f["rng"], f.scalars["stream"])
    bits, groups = spec["bits"], spec["groups"]
    quantize_blocks([one.rounding(bits, groups) for one in (dgrad, wgrad)], philox, bits)


class Quantizer:
    """ShiftQuant of x * factor into the five outputs of the op; their shapes say its axes.

    First the absmaxes (`measure`), then `rounding` fills the small outputs and tells how to round.
    """

    def __init__(self, x: Array, factor: Array | None, outputs: Sequence[Array]) -> None:
        self.q, self.exponent, self.scale, self.outer_scale, self.r = outputs
        folded = [] if factor is None else [(factor, _itself)]
        extents, factors, (outer, inner) = hoisted(
            x.shape, folded, self.outer_scale.shape, self.exponent.shape
        )
        self.scaled = self.divided = Scaled(x, extents, factors)
        self.outer, self.inner = outer, inner
        self.inverses = Factor(self.outer_scale.size, outer)
        self.found = nest.scratch(self.outer_scale.size, "float32")
        self.channel = nest.scratch(self.exponent.size, "float32")

    def store_outer(self, index: Expr, found: Expr) -> None:
        """Take the absmax of a free index."""
        self.found.store(index, found)
        self.outer_scale.store(index, unless_tiny(found))
        self.inverses.store(index, inverse(found))

    def measure(self, outer: bool) -> None:
        """All absmaxes."""
        if not outer:
            self.outer_scale.store(0, nest.const(1.0, "float32"))
            maxima(self.scaled, self.inner, self.channel.size, self.channel.store)
        elif self.rows_outside:
            _by_rows(self)
        else:
            maxima(self.scaled, self.outer, self.inverses.size, self.store_outer)
            self.measure_channels()

    def measure_channels(self) -> None:
        """The absmaxes of the reduced indices, those of the free ones being known. Without groups
        only the largest counts; a product with a positive number rounds in order."""
        self.divided = self.scaled.times(self.inverses)
        if any(self.inner):
            maxima(self.divided, self.inner, self.channel.size, self.channel.store)
            return
        best = nest.scratch(1, "int32")
        best.store(0, nest.zero("int32"))
        with nest.serial(self.inverses.size, "o") as o:
            after = magnitude(self.found[o] * self.inverses[o])
            best.store(0, tirx.max(best[0], after))
        self.channel.store(0, nest.bits_of(best[0], "float32"))

    @property
    def rows_outside(self) -> bool:
        """Whether outer scales lie on the first merged axis alone, groups on the last or none."""
        return len(self.outer) > 1 and not any(self.outer[1:]) and not any(self.inner[:-1])

    def rounding(self, bits: int, groups: int) -> Rounding:
        """Write r, scale and exponents."""
        channel, exponent, r = self.channel, self.exponent, self.r
        largest = widest(Scaled(channel, [exponent.size], []), Block([], []))
        r.store(0, nest.bits_of(largest, "float32"))
        self.scale.store(0, step(bits, True, groups, r[0]))
        units = nest.scratch(1, "float32")
        units.store(0, steps_per_unit(bits, True, r[0]))
        with nest.serial(exponent.size, "i") as i:
            exponent.store(i, group_of(channel[i], r[0], groups))
        powers = Factor.of(
            exponent.size, self.inner, lambda i: units[0] * power(nest.cast(exponent[i], "int32"))
        )
        return Rounding(self.divided, [powers], self.q)


def _itself(value: Expr) -> Expr:
    return value


def _by_rows(one: Quantizer, columns: Store | None = None) -> None:
    """All maxima in one read: of a row of the first axis (of several where that is one row of
    memory), then of its columns. Without groups the row's maximum, divided, is enough: the product
    with a positive number rounds in order. With `columns`, also those of the columns of x."""
    scaled, inverses, inner = one.scaled, one.inverses, one.inner
    extents = scaled.extents
    divided = one.divided = scaled.times(inverses)
    plain = Scaled(scaled.x, extents, [])
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
