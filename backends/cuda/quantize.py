"""Quantisers: nearest and stochastic rounding, scales, group exponents."""

from collections.abc import Sequence

from tvm import tirx

from sqcompile.backends.cuda import grid
from sqcompile.backends.cuda.absmax import maxima
from sqcompile.backends.cuda.grid import Array, Expr
from sqcompile.backends.cuda.passes import Stored, along, mapped
from sqcompile.backends.cuda.philox import Philox
from sqcompile.backends.cuda.reduce import LARGEST, folded
from sqcompile.backends.cuda.stochastic import Scaled, carry, into
from sqcompile.backends.cuda.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.backends.rounding import (
    clamp,
    group_of,
    inverse,
    is_tiny,
    magnitude,
    power,
    rounded,
    step,
    steps_per_unit,
    unless_tiny,
)
from sqcompile.backends.strides import broadcast
from sqcompile.ops.quantize import limits


def at_shape(array: Array, shape: Sequence[int], index: Expr) -> Expr:
    """The element of an operand that broadcasts to `shape`, at a row-major index of that."""
    if array.size == 1:
        return array[0]
    steps = broadcast(shape, array.shape)
    return array[grid.linear(grid.unravel(index, shape), steps)]


def nearest(
    value: Expr,
    r: Expr,
    bits: int,
    signed: bool,
    exponent: Expr | None = None,
    shift_groups: int = 1,
) -> Expr:
    """The integer of a value on the grid of an absmax r, 2^exponent times as fine for a group
    exponent, as int32; with its shift where there are shift_groups."""
    low, high = limits(bits, signed)
    units = grid.keep(steps_per_unit(bits, signed, grid.keep(r)))
    if exponent is not None:
        units = grid.keep(units * power(grid.cast(exponent, "int32")))
    q = rounded(grid.keep(clamp(grid.keep(value * units), low, high)))
    if exponent is None or shift_groups == 1:
        return q
    left = grid.const(shift_groups - 1, "int32") - grid.cast(exponent, "int32")
    return tirx.shift_left(q, left)


@KERNELS.kernel("sq::quantize", views={"x": grid.anywhere})
def quantize(spec: KernelSpec) -> object:
    """One pass."""
    with grid.function(spec) as f:
        x, r, exponent, (q,) = f["x"], f["r"], f.get("exponent"), f.outputs
        bits, signed = spec["bits"], spec["signed"]

        def element(i: Expr, given: Sequence[Expr]) -> Sequence[Expr]:
            group = None if exponent is None else at_shape(exponent, x.shape, i)
            one_range = at_shape(r, x.shape, i)
            return [nearest(given[0], one_range, bits, signed, group, spec["shift_groups"])]

        mapped(x.size, [along(x)], [Stored(q)], element)
    return f.result


@KERNELS.kernel("sq::quantize_rows")
def quantize_rows(spec: KernelSpec) -> object:
    """Absmax and scale of every row, then its elements."""
    bits, signed = spec["bits"], spec["signed"]
    with grid.function(spec) as f:
        x, (q, scale, r) = f["x"], f.outputs
        row = x.size // max(r.size, 1)

        def found(index: Expr, value: Expr) -> None:
            r.store(index, value)
            scale.store(index, step(bits, signed, 1, value))

        maxima(x, list(range(1, len(x.shape))), [], False, found)

        mapped(
            x.size,
            [along(x)],
            [Stored(q)],
            lambda i, given: [nearest(given[0], r[tirx.floordiv(i, max(row, 1))], bits, signed)],
        )
    return f.result


def scaled_by(
    x: Array,
    r: Array,
    outer: Array | None,
    exponent: Array | None,
    bits: int,
    factor: Array | None = None,
) -> Scaled:
    """t = ((x * factor) * (1 / outer)) * ((qmax / r) * 2^exponent), 0 where r is tiny."""

    def scaled(i: Expr) -> Expr:
        value = grid.at(x, i)
        if factor is not None:
            value = grid.keep(value * at_shape(factor, x.shape, i))
        if outer is not None:
            value = grid.keep(value * inverse(grid.keep(at_shape(outer, x.shape, i))))
        scale = steps_per_unit(bits, True, grid.keep(at_shape(r, x.shape, i)))
        if exponent is not None:
            raised = power(grid.cast(at_shape(exponent, x.shape, i), "int32"))
            scale = grid.keep(scale) * raised
        return value * grid.keep(scale)

    return scaled


@KERNELS.kernel("sq::quantize_stochastic", run_time=("stream",), views={"x": grid.anywhere})
def quantize_stochastic(spec: KernelSpec) -> object:
    """A thread for sixteen rows of a column."""
    with grid.function(spec, ("stream",)) as f:
        x, (q,) = f["x"], f.outputs
        philox = Philox(f["rng"], f.scalars["stream"])
        scaled = scaled_by(x, f["r"], f.get("outer"), f.get("exponent"), spec["bits"])
        carry(x.shape, philox, spec["bits"], [(scaled, into(q))])
    return f.result


@KERNELS.kernel("sq::quant_scale")
def quant_scale(spec: KernelSpec) -> object:
    """Elementwise over r."""
    bits, signed, groups = spec["bits"], spec["signed"], spec["groups"]
    with grid.function(spec) as f:
        r, (scale,) = f["r"], f.outputs
        grid.each(r.size, lambda i: scale.store(i, step(bits, signed, groups, grid.keep(r[i]))))
    return f.result


@KERNELS.kernel("sq::group_scale")
def group_scale(spec: KernelSpec) -> object:
    """Elementwise over the exponents."""
    bits, signed = spec["bits"], spec["signed"]
    with grid.function(spec) as f:
        r, exponent, (scale,) = f["r"], f["exponent"], f.outputs

        def channel(i: Expr) -> None:
            absmax = grid.keep(at_shape(r, exponent.shape, i))
            halved = power(grid.zero("int32") - grid.cast(exponent[i], "int32"))
            worth = grid.keep(grid.keep(step(bits, signed, 1, absmax)) * halved)
            scale.store(i, grid.select(is_tiny(absmax), grid.const(1.0, "float32"), worth))

        grid.each(exponent.size, channel)
    return f.result


@KERNELS.kernel("sq::outer_scale")
def outer_scale(spec: KernelSpec) -> object:
    """Elementwise over r."""
    with grid.function(spec) as f:
        r, (scale,) = f["r"], f.outputs
        grid.each(r.size, lambda i: scale.store(i, unless_tiny(grid.keep(r[i]))))
    return f.result


def largest_of(r: Array) -> Array:
    """The largest magnitude of a tensor, in memory between launches."""
    largest = grid.workspace(1, "float32")

    def element(result: Expr, k: Expr) -> Sequence[Expr]:
        return [magnitude(grid.keep(r[k]))]

    def store(result: Expr, values: Sequence[Expr]) -> None:
        largest.store(0, grid.bits_of(values[0], "float32"))

    folded(1, r.size, False, [LARGEST], element, store)
    return largest


def exponents_of(r: Array, exponent: Array, groups: int) -> Array:
    """Group exponents of absmaxes, in a launch behind that which finds the largest; the latter."""
    largest = largest_of(r)
    grid.each(r.size, lambda i: exponent.store(i, group_of(r[i], largest[0], groups)))
    return largest


@KERNELS.kernel("sq::group_exponent")
def group_exponent(spec: KernelSpec) -> object:
    """The maximum of r, then elementwise."""
    with grid.function(spec) as f:
        r, (exponent,) = f["r"], f.outputs
        exponents_of(r, exponent, spec["groups"])
    return f.result


__all__ = ["at_shape", "exponents_of", "largest_of", "nearest", "scaled_by"]
