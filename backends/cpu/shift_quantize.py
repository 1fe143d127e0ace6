"""ShiftQuant of a gradient in one kernel: absmax, groups, scales and stochastic rounding.

Where the outer scales lie on rows (dgrad), the gradient is read from memory twice: once for the
absmax of a few rows and, while they are in the cache, the maxima of the columns; once to
quantise. Where they lie on columns (wgrad), a row's group needs all of them: three reads.
"""

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
from sqcompile.backends.cpu.stochastic import quantize_blocks
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec


@KERNELS.kernel("sq::shift_quantize", run_time=("stream",))
def shift_quantize(spec: KernelSpec) -> object:
    """Maxima, then the few scalars and one value a channel, then blocks of 128 elements."""
    bits, groups = spec["bits"], spec["groups"]
    with nest.function(spec, ("stream",)) as f:
        x, factor = f["x"], f.get("factor")
        q, exponent, scale, outer_scale, r = f.outputs
        folded = [] if factor is None else [(factor, _itself)]
        extents, factors, (outer, inner) = hoisted(
            x.shape, folded, outer_scale.shape, exponent.shape
        )
        scaled = Scaled(x, extents, factors)
        inverses = Factor(outer_scale.size, outer)
        channel = nest.scratch(exponent.size, "float32")

        def store_outer(index: Expr, found: Expr) -> None:
            outer_scale.store(index, unless_tiny(found))
            inverses.store(index, inverse(found))

        if not spec["outer_axes"]:
            outer_scale.store(0, nest.const(1.0, "float32"))
            divided = scaled
            maxima(scaled, inner, exponent.size, channel.store)
        else:
            divided = scaled.times(inverses)
            measure = _by_rows if _rows_outside(outer, inner) else _one_by_one
            measure(scaled, inverses, inner, store_outer, channel)
        largest = widest(Scaled(channel, [exponent.size], []), Block([], []))
        r.store(0, nest.bits_of(largest, "float32"))
        scale.store(0, step(bits, True, groups, r[0]))
        units = nest.scratch(1, "float32")
        units.store(0, steps_per_unit(bits, True, r[0]))
        with nest.serial(exponent.size, "i") as i:
            exponent.store(i, group_of(channel[i], r[0], groups))
        powers = Factor.of(
            exponent.size, inner, lambda i: units[0] * power(nest.cast(exponent[i], "int32"))
        )
        philox = Philox.of(f["rng"], f.scalars["stream"])
        quantize_blocks(divided, [powers], philox, bits, q)
    return f.result


def _itself(value: Expr) -> Expr:
    return value


def _rows_outside(outer: list[int], inner: list[int]) -> bool:
    """Whether outer scales lie on the first merged axis alone, groups on the last one or none."""
    return len(outer) > 1 and not any(outer[1:]) and not any(inner[:-1])


def _one_by_one(
    scaled: Scaled, inverses: Factor, inner: list[int], store_outer: Store, channel: Array
) -> None:
    """All outer maxima, then those of the channels."""
    maxima(scaled, inverses.steps, inverses.size, store_outer)
    maxima(scaled.times(inverses), inner, channel.size, channel.store)


def _by_rows(
    scaled: Scaled, inverses: Factor, inner: list[int], store_outer: Store, channel: Array
) -> None:
    """Both maxima in one read: of a row of the first axis (of several where that is one row of
    memory), then of its columns. Without groups the row's maximum, divided, is enough: the product
    with a positive number rounds in order."""
    extents = scaled.extents
    divided = scaled.times(inverses)
    slices = Slices(extents[0], channel.size, scaled.x.size)

    def take(first: Expr, rows: int, partial: Array, base: Expr) -> None:
        with nest.serial(rows, "row") as i:
            found = nest.scratch(1, "float32")
            bits = widest(scaled, Block([first + i], extents[1:-1]))
            found.store(0, nest.bits_of(bits, "float32"))
            store_outer(first + i, found[0])
            if not any(inner):
                after = magnitude(found[0] * inverses[first + i])
                partial.store(base, tirx.max(partial[base], after))
        if any(inner):
            column_maxima(divided, Block([], [rows, *extents[1:-1]], first), partial, base)

    def slice_of(begin: Expr, length: Expr, partial: Array, base: Expr) -> None:
        together = ROWS if len(extents) == 2 else 1
        whole = tirx.floordiv(length, together)
        with nest.serial(whole, "rows") as i:
            take(begin + i * together, together, partial, base)
        if together > 1:
            with nest.serial(length, "row", whole * together) as i:
                take(begin + i, 1, partial, base)

    slices.run(slice_of)
    slices.combine(channel.store)
