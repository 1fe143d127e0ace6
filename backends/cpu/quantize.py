"""Quantisers: nearest and stochastic rounding, scales, group exponents."""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.absmax import Block, widest
from sqcompile.backends.cpu.nest import Expr
from sqcompile.backends.cpu.philox import Philox
from sqcompile.backends.cpu.rounding import (
    cast,
    clamp,
    floor_to,
    group_of,
    inverse,
    is_tiny,
    power,
    rounded,
    step,
    steps_per_unit,
    unless_tiny,
)
from sqcompile.backends.cpu.scaled import Factor, Scaled, hoisted
from sqcompile.backends.cpu.stochastic import Rounding, quantize_runs
from sqcompile.backends.cpu.sweep import in_runs, in_whole_vectors, refined, sweep
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.ops.quantize import limits
from sqcompile.walks import Walk

__all__ = ["clamp", "floor_to"]

LINE = 1024
"""Elements that rows with a factor a column are gathered to, about."""


def _one_range(spec: KernelSpec) -> str:
    grouped = spec.tensor("exponent") is not None and spec.tensor("r").size != 1
    return "group exponents go with one absmax" if grouped else ""


@KERNELS.kernel("sq::quantize", views={"x": in_runs}, limit=_one_range)
def quantize(spec: KernelSpec) -> object:
    """Elementwise over x, (qmax / r) * 2^exponent once per element of r or exponent."""
    bits, signed, groups = spec["bits"], spec["signed"], spec["shift_groups"]
    low, high = limits(bits, signed)
    with nest.function(spec) as f:
        x, r, exponent, (q,) = f["x"], f["r"], f.get("exponent"), f.outputs
        shifts = exponent is not None and groups > 1

        def unit(i: Expr) -> Expr:
            if exponent is None:
                return steps_per_unit(bits, signed, r[i])
            return steps_per_unit(bits, signed, r[0]) * _power(exponent[i])

        def shift(i: Expr) -> Expr:
            assert exponent is not None
            return power(nest.const(groups - 1, "int32") - nest.cast(exponent[i], "int32"))

        def one(source: Expr, by: Expr, place: Expr, shifted: Expr | None = None) -> None:
            value = rounded(clamp(x[x.walk.begin + source] * by, low, high))
            if shifted is not None:
                value = value * shifted
            q.store(place, cast(value, q.dtype))

        scaled_by = r if exponent is None else exponent
        whole, columns = x.walk == Walk.whole(x.shape), scaled_by.shape[-1]
        by_column = columns > 1 and (columns,) == x.shape[-1:]
        if whole and by_column and scaled_by.size == columns and not shifts:
            units = Factor.of(scaled_by.size, [], unit)
            _by_rows(x.size, units, lambda i, by: one(i, by, i))
        elif whole and by_column and shifts and scaled_by.shape == (x.shape[0], 1, columns):
            _by_blocks(x.shape, unit, shift, lambda i, by, shifted: one(i, by, i, shifted))
        else:
            units = Factor.of(scaled_by.size, [], unit)
            back = Factor.of(scaled_by.size, [], shift) if shifts else None
            extents, strides = refined(x, scaled_by.shape, q.shape)

            def element(at: list[Expr]) -> None:
                one(at[0], units[at[1]], at[2], None if back is None else back[at[1]])

            sweep(extents, strides, element)
    return f.result


def _by_blocks(
    shape: Sequence[int],
    unit: Callable[[Expr], Expr],
    shift: Callable[[Expr], Expr],
    one: Callable[[Expr, Expr, Expr], None],
) -> None:
    """one(index, factor, shift) for blocks of rows that have factors for every column."""
    blocks, rows, columns = shape
    with nest.parallel(blocks, prod(shape), "block") as block:
        first = block * columns
        units = Factor.of(columns, [], lambda i: unit(first + i))
        back = Factor.of(columns, [], lambda i: shift(first + i))
        with nest.serial(rows, "row") as row, nest.serial(columns, "e") as e:
            one((block * rows + row) * columns + e, units[e], back[e])


def _by_rows(size: int, units: Factor, one: Callable[[Expr, Expr], None]) -> None:
    """one(index, factor) for rows that have a factor a column: short rows are taken several at a
    time, so that loops are long. The last rows may overlap the ones before."""
    columns = units.size
    rows = size // columns
    fold = min(rows, max(1, LINE // columns))
    if not fold:
        return
    line = Factor.of(fold * columns, [], lambda i: units[tirx.floormod(i, columns)])
    with nest.parallel(-(-rows // fold), size, "rows") as block:
        first = block * fold
        if rows % fold:
            first = tirx.min(first, rows - fold)
        with nest.serial(line.size, "e") as e:
            one(first * columns + e, line[e])


@KERNELS.kernel("sq::quantize_stochastic", run_time=("stream",), views={"x": in_whole_vectors})
def quantize_stochastic(spec: KernelSpec) -> object:
    """1 / outer, qmax / r and 2^exponent once per element, then blocks of 128 elements."""
    with nest.function(spec, ("stream",)) as f:
        x, r, outer, exponent, (q,) = f["x"], f["r"], f.get("outer"), f.get("exponent"), f.outputs
        units = partial(steps_per_unit, spec["bits"], True)
        scales = [(r, units)] if exponent is None else [(r, units), (exponent, _power)]
        divided = [] if outer is None else [(outer, inverse)]
        plain, factors, _ = hoisted(x, [*divided, *scales])
        philox = Philox.of(f["rng"], f.scalars["stream"])
        scaled = plain.times(*factors[: len(divided)])
        quantize_runs([Rounding(scaled, factors[len(divided) :], q)], philox, spec["bits"])
    return f.result


def _power(exponent: Expr) -> Expr:
    return power(cast(exponent, "int32"))


@KERNELS.kernel("sq::quant_scale")
def quant_scale(spec: KernelSpec) -> object:
    """Elementwise over r."""
    bits, signed, groups = spec["bits"], spec["signed"], spec["groups"]
    with nest.function(spec) as f:
        r, (scale,) = f["r"], f.outputs
        sweep([r.size], [[1]], lambda at: scale.store(at[0], step(bits, signed, groups, r[at[0]])))
    return f.result


@KERNELS.kernel("sq::group_scale", limit=_one_range)
def group_scale(spec: KernelSpec) -> object:
    """Elementwise over the exponents."""
    bits, signed = spec["bits"], spec["signed"]
    with nest.function(spec) as f:
        r, exponent, (scale,) = f["r"], f["exponent"], f.outputs

        def one(at: list[Expr]) -> None:
            halved = step(bits, signed, 1, r[0]) * power(-cast(exponent[at[0]], "int32"))
            scale.store(at[0], nest.select(is_tiny(r[0]), nest.const(1.0, "float32"), halved))

        sweep([exponent.size], [[1]], one)
    return f.result


@KERNELS.kernel("sq::outer_scale")
def outer_scale(spec: KernelSpec) -> object:
    """Elementwise over r."""
    with nest.function(spec) as f:
        r, (scale,) = f["r"], f.outputs
        sweep([r.size], [[1]], lambda at: scale.store(at[0], unless_tiny(r[at[0]])))
    return f.result


@KERNELS.kernel("sq::group_exponent")
def group_exponent(spec: KernelSpec) -> object:
    """The maximum of r (serial: r has one element per channel or row), then elementwise."""
    with nest.function(spec) as f:
        r, (exponent,) = f["r"], f.outputs
        largest = nest.scratch(1, "float32")
        found = widest(Scaled(r, [r.size], []), Block([], []))
        largest.store(0, nest.bits_of(found, "float32"))
        with nest.serial(r.size, "i") as i:
            exponent.store(i, group_of(r[i], largest[0], spec["groups"]))
    return f.result
