"""L1 layer norm: a task takes rows, and visits a row once, while it lies in the L1 cache."""

from collections.abc import Callable, Sequence

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.batch_norm_backward import held_sums
from sqcompile.backends.cpu.gradient_sums import terms
from sqcompile.backends.cpu.machine import machine
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.norm import (
    InputGradient,
    Spread,
    affine,
    deviation,
    held,
    rounded_mean,
    saved,
    threshold,
    to_float,
)
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec

LONGEST = 1 << 14
"""Vectors that a lane sums in int32: 2^14 times 4 products of int8 stay below 2^31."""


def row_sums(
    length: int,
    count: int,
    vector: Callable[[Sequence[Array], Expr], None],
    scalar: Callable[[Expr], Sequence[Expr]],
) -> list[Expr]:
    """int64 sums over a row of `length` elements: vector(slots, i) adds those of one vector of
    the dot product from i on to int32 slots, scalar(i) gives the int32 terms of one element."""
    totals = [nest.scratch(1, "int64") for _ in range(count)]
    for total in totals:
        total.store(0, nest.zero("int64"))
    dot = machine().dot
    size, lanes = dot.lanes * dot.depth, nest.ramp(0, dot.lanes)
    whole = length // size

    def part(first: Expr, vectors: int) -> None:
        slots = [nest.scratch(dot.lanes, "int32") for _ in range(count)]
        for slot in slots:
            slot.store(lanes, nest.splat(nest.zero("int32"), dot.lanes))
        with nest.serial(vectors, "v") as v:
            vector(slots, (first + v) * size)
        for total, slot in zip(totals, slots, strict=True):
            added = tirx.call_llvm_pure_intrin("int32", "llvm.vector.reduce.add", slot[lanes])
            total.store(0, total[0] + nest.cast(added, "int64"))

    if whole // LONGEST:
        with nest.serial(whole // LONGEST, "part") as index:
            part(index * LONGEST, LONGEST)
    if whole % LONGEST:
        part(whole // LONGEST * LONGEST, whole % LONGEST)
    if length % size:
        with nest.serial(length % size, "i") as i:
            for total, term in zip(totals, scalar(whole * size + i), strict=True):
                total.store(0, total[0] + nest.cast(term, "int64"))
    return [held(total[0], "int64") for total in totals]


class RowStatistics:
    """Mean and deviation of one row of int8 from `start` on."""

    def __init__(self, spec: KernelSpec, x: Array, start: Expr, length: int) -> None:
        terms_of, frac_bits = terms(), spec["frac_bits"]
        dot, size = terms_of.dot, terms_of.count
        lanes = nest.ramp(0, dot.lanes)

        def splat(value: Expr, dtype: str) -> Expr:
            return nest.splat(nest.cast(value, dtype), size)

        def add(slot: Array, value: Expr) -> None:
            ones = nest.splat(nest.const(1, dot.left), size)
            slot.store(lanes, dot.add(slot[lanes], ones, value))

        def sum_vector(slots: Sequence[Array], i: Expr) -> None:
            add(slots[0], terms_of.load(x, start + i))

        (total,) = row_sums(
            length, 1, sum_vector, lambda i: [nest.cast(x[start + i], "int32")]
        )
        self.mean = held(rounded_mean(total, length, frac_bits), "int64")
        limit = held(nest.cast(threshold(self.mean, frac_bits), "int32"), "int32")
        zero, one = nest.zero("int32"), nest.const(1, "int32")

        def above_vector(slots: Sequence[Array], i: Expr) -> None:
            value = terms_of.load(x, start + i)
            greater = value > splat(limit, terms_of.dtype)
            none = splat(zero, terms_of.dtype)
            add(slots[0], nest.select(greater, value, none))
            add(slots[1], nest.select(greater, splat(one, terms_of.dtype), none))

        def above_scalar(i: Expr) -> list[Expr]:
            value = nest.cast(x[start + i], "int32")
            greater = value > limit
            return [nest.select(greater, value, zero), nest.select(greater, one, zero)]

        above, number = row_sums(length, 2, above_vector, above_scalar)
        self.deviation = deviation(self.mean, total, above, number, length, frac_bits)


@KERNELS.kernel("sq::l1_layer_norm")
def l1_layer_norm(spec: KernelSpec) -> object:
    """Sum, deviation and result of a row in one visit."""
    with nest.function(spec) as f:
        x, scale, gamma, beta = f["x"], f["scale"], f.get("gamma"), f.get("beta")
        y, xhat, coefficient = f.outputs
        rows, length = x.shape
        shift = nest.const(spec["frac_bits"], "int32")
        with nest.parallel(rows, x.size * 4, "m") as m:
            start = m * length
            row = RowStatistics(spec, x, start, length)
            spread = Spread.of(spec, row.mean, row.deviation, length, held(scale[m]))
            coefficient.store(m, spread.coefficient)
            mean = held(nest.cast(row.mean, "int32"), "int32")

            def one(i: Expr) -> None:
                at = start + i
                centred = tirx.shift_left(nest.cast(x[at], "int32"), shift) - mean
                value = to_float(centred) * spread.factor
                xhat.store(at, nest.cast(saved(value, spec["bits"], spec["step"]), "int8"))
                read = [None if a is None else a[i] for a in (gamma, beta)]
                y.store(at, affine(value, *read))

            nest.vectors(length, one)
    return f.result


@KERNELS.kernel("sq::l1_layer_norm_backward")
def l1_layer_norm_backward(spec: KernelSpec) -> object:
    """Sums and dx of a row in one visit."""
    with nest.function(spec) as f:
        h, xhat, (dx,) = f["h"], f["xhat"], f.outputs
        rows, length = h.shape
        terms_of = terms()
        bias = nest.const(128 if terms_of.dot.bytes else 0, "int32")
        zero = nest.zero("int32")
        with nest.parallel(rows, h.size * 4, "m") as m:
            start = m * length

            def vector(slots: Sequence[Array], i: Expr) -> None:
                terms_of.add(slots, terms_of.load(h, start + i), terms_of.load(xhat, start + i))

            def scalar(i: Expr) -> list[Expr]:
                one_h, k = (nest.cast(a[start + i], "int32") for a in (h, xhat))
                return [one_h, one_h * (k + bias), nest.cast(k >= zero, "int32")]

            sums = held_sums(terms_of.results(row_sums(length, 3, vector, scalar), length))
            factor = held(f["h_scale"][m] * f["coefficient"][m])
            parts = InputGradient.of(spec, sums, length, factor)

            def one(i: Expr) -> None:
                at = start + i
                part = nest.select(xhat[at] >= nest.zero("int8"), parts.above, parts.below)
                dx.store(at, (to_float(nest.cast(h[at], "int32")) - part) * parts.factor)

            nest.vectors(length, one)
    return f.result
