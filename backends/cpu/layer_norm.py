"""L1 layer norm: a task takes rows, and visits a row once, while it lies in the L1 cache."""

from collections.abc import Callable, Sequence

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.batch_norm_backward import held_sums, saved_of, vector
from sqcompile.backends.cpu.gradient_sums import terms
from sqcompile.backends.cpu.machine import machine
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
        frac_bits, dot = spec["frac_bits"], machine().dot
        size, lanes = dot.lanes * dot.depth, nest.ramp(0, dot.lanes)

        def load(i: Expr) -> Expr:
            value = x[nest.ramp(start + i, size)]
            return value if dot.bytes else nest.cast(value, dot.right, size)

        def splat(value: Expr, dtype: str) -> Expr:
            return nest.splat(nest.cast(value, dtype), size)

        def add(slot: Array, value: Expr) -> None:
            ones = nest.splat(nest.const(1, dot.left), size)
            slot.store(lanes, dot.add(slot[lanes], ones, value))

        def sum_vector(slots: Sequence[Array], i: Expr) -> None:
            add(slots[0], load(i))

        (total,) = row_sums(length, 1, sum_vector, lambda i: [nest.cast(x[start + i], "int32")])
        self.mean = held(rounded_mean(total, length, frac_bits), "int64")
        limit = held(nest.cast(threshold(self.mean, frac_bits), "int32"), "int32")
        zero, one = nest.zero("int32"), nest.const(1, "int32")

        def above_vector(slots: Sequence[Array], i: Expr) -> None:
            value = load(i)
            greater = value > splat(limit, dot.right)
            none = splat(zero, dot.right)
            add(slots[0], nest.select(greater, value, none))
            add(slots[1], nest.select(greater, splat(one, dot.right), none))

        def above_scalar(i: Expr) -> list[Expr]:
            value = nest.cast(x[start + i], "int32")
            greater = value > limit
            return [nest.select(greater, value, zero), nest.select(greater, one, zero)]

        above, number = row_sums(length, 2, above_vector, above_scalar)
        self.deviation = deviation(self.mean, total, above, number, length, frac_bits)


class Row:
    """The elements of one normalised row of int8 from `start` on."""

    def __init__(
        self,
        spec: KernelSpec,
        x: Array,
        start: Expr,
        scale: Expr,
        gamma: Array | None,
        beta: Array | None,
    ) -> None:
        self.spec, self.x, self.start, self.affine = spec, x, start, (gamma, beta)
        length = spec.tensor("x").shape[1]
        row = RowStatistics(spec, x, start, length)
        self.spread = Spread.of(spec, row.mean, row.deviation, length, held(scale))
        self.mean = held(nest.cast(row.mean, "int32"), "int32")

    def element(self, i: Expr) -> tuple[Expr, Expr]:
        """(y, k) of element i of the row: x * 2^f - m has 25 bits at most."""
        shift = nest.const(self.spec["frac_bits"], "int32")
        value = nest.cast(self.x[self.start + i], "int32")
        xhat = to_float(tirx.shift_left(value, shift) - self.mean) * self.spread.factor
        gamma, beta = (None if a is None else a[i] for a in self.affine)
        return affine(xhat, gamma, beta), saved(xhat, self.spec["bits"], self.spec["step"])


@KERNELS.kernel("sq::l1_layer_norm")
def l1_layer_norm(spec: KernelSpec) -> object:
    """Sum, deviation and result of a row in one visit."""
    with nest.function(spec) as f:
        x, scale, (y, xhat, coefficient) = f["x"], f["scale"], f.outputs
        rows, length = x.shape
        with nest.parallel(rows, x.size * 4, "m") as m:
            start = m * length
            row = Row(spec, x, start, scale[m], f.get("gamma"), f.get("beta"))
            coefficient.store(m, row.spread.coefficient)

            def one(i: Expr) -> None:
                value, k = row.element(i)
                y.store(start + i, value)
                xhat.store(start + i, nest.cast(k, "int8"))

            nest.vectors(length, one)
    return f.result


def whole_bytes(spec: KernelSpec) -> str:
    """Rows of packed values start at a byte."""
    odd = spec.outputs[0].shape[1] % 2
    return "rows of packed values need an even length" if odd else ""


@KERNELS.kernel("sq::l1_layer_norm_backward")
@KERNELS.kernel("sq::l1_layer_norm_packed_backward", limit=whole_bytes)
def l1_layer_norm_backward(spec: KernelSpec) -> object:
    """Sums and dx of a row in one visit."""
    with nest.function(spec) as f:
        h, (dx,) = f["h"], f.outputs
        rows, length = h.shape
        saved_k = saved_of(f)
        with nest.parallel(rows, h.size * 4, "m") as m:
            factor = held(f["h_scale"][m] * f["coefficient"][m])
            row_gradient(spec, h, saved_k, dx, factor, m * length, length)
    return f.result


def row_gradient(
    spec: KernelSpec,
    h: Array,
    saved_k: Saved,
    dx: Array,
    factor: Expr,
    start: Expr,
    length: int,
    first: Expr = 0,
) -> None:
    """dx of the row from element `start` on; h begins at element `first`."""
    terms_of = terms(saved_k)
    sums = row_sums(
        length,
        3,
        lambda slots, i: terms_of.add(slots, *terms_of.load(h, start + i, first)),
        lambda i: terms_of.scalar(h, start + i, first),
    )
    totals = held_sums(terms_of.results(sums, length))
    parts = InputGradient.of(spec, totals, length, factor)
    with nest.serial(length // LANES, "v") as v:
        wide = [nest.splat(one) for one in (parts.above, parts.below, parts.factor)]
        vector(h, saved_k, dx, start + v * LANES, wide, first)
    with nest.serial(length, "i", length - length % LANES) as i:
        at = start + i
        positive = saved_k.scalar(at) >= nest.zero("int32")
        part = nest.select(positive, parts.above, parts.below)
        dx.store(at, (to_float(nest.cast(h[at - first], "int32")) - part) * parts.factor)
