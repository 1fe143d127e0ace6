"""L1 layer and RMS norm: a task takes a few rows and does all with them while they lie in the L1
cache."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

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
"""Vectors that a lane sums in int32: 2^14 times 4 products of int8 stay below 2^31. All lanes
together may not."""

BLOCK = 2048
"""Elements of a block of rows."""


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
            wide = nest.cast(slot[lanes], "int64", dot.lanes)
            added = tirx.call_llvm_pure_intrin("int64", "llvm.vector.reduce.add", wide)
            total.store(0, total[0] + added)

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
    """Mean and deviation of one row of int8 from `start` on; the mean is 0 when nothing is
    centred."""

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
        self.mean = nest.zero("int64")
        if spec["centred"]:
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
    """The elements of one normalised row of int8 from `start` on, with the factor and the int32
    mean of its `spread`."""

    def __init__(
        self,
        spec: KernelSpec,
        x: Array,
        start: Expr,
        factor: Expr,
        mean: Expr,
        gamma: Array | None,
        beta: Array | None,
    ) -> None:
        self.spec, self.x, self.start, self.affine = spec, x, start, (gamma, beta)
        self.factor, self.mean = factor, mean

    def element(self, i: Expr) -> tuple[Expr, Expr]:
        """(y, k) of element i of the row: x * 2^f - m has 25 bits at most."""
        shift = nest.const(self.spec["frac_bits"], "int32")
        value = nest.cast(self.x[self.start + i], "int32")
        xhat = to_float(tirx.shift_left(value, shift) - self.mean) * self.factor
        gamma, beta = (None if a is None else a[i] for a in self.affine)
        return affine(xhat, gamma, beta), saved(xhat, self.spec["bits"], self.spec["step"])


def row_spread(spec: KernelSpec, x: Array, start: Expr, scale: Expr) -> tuple[Spread, Expr]:
    """The spread of the row of int8 from `start` on and its mean as int32."""
    length = spec.tensor("x").shape[1]
    row = RowStatistics(spec, x, start, length)
    spread = Spread.of(spec, row.mean, row.deviation, length, held(scale))
    return spread, held(nest.cast(row.mean, "int32"), "int32")


@contextmanager
def row_blocks(rows: int, length: int, work: int) -> Iterator[tuple[int, Expr, Expr]]:
    """Blocks of rows for tasks: (most rows of a block, its first row, its number of rows).

    What all rows of a block want is computed first: the chains of dependent scalars behind the
    sums of one row (divisions, reductions) then run beside those of the next.
    """
    most = max(1, min(rows, BLOCK // length))
    with nest.parallel(-(-rows // most), rows * work, "block") as block:
        first = block * most
        yield most, first, tirx.min(rows - first, most) if rows % most else most


@KERNELS.kernel("sq::l1_layer_norm")
def l1_layer_norm(spec: KernelSpec) -> object:
    """Sum, deviation and result while a block of rows lies in the L1 cache."""
    with nest.function(spec) as f:
        x, scale, (y, xhat, coefficient) = f["x"], f["scale"], f.outputs
        rows, length = x.shape
        with row_blocks(rows, length, length * 4) as (most, first, count):
            factors, means = nest.scratch(most, "float32"), nest.scratch(most, "int32")
            with nest.serial(count, "row") as row:
                m = first + row
                spread, mean = row_spread(spec, x, m * length, scale[m])
                coefficient.store(m, spread.coefficient)
                factors.store(row, spread.factor)
                means.store(row, mean)
            with nest.serial(count, "row") as row:
                start = (first + row) * length
                factor, mean = held(factors[row]), held(means[row], "int32")
                one_row = Row(spec, x, start, factor, mean, f.get("gamma"), f.get("beta"))

                def one(i: Expr) -> None:
                    value, k = one_row.element(i)
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
    """Sums and dx while a block of rows lies in the L1 cache."""
    with nest.function(spec) as f:
        h, (dx,) = f["h"], f.outputs
        rows, length = h.shape
        with row_blocks(rows, length, length * 4) as (most, first, count):
            gradient = RowGradients(spec, h, saved_of(f), length, most)
            with nest.serial(count, "row") as row:
                m = first + row
                factor = held(f["h_scale"][m] * f["coefficient"][m])
                gradient.sum(row, m * length, factor)
            with nest.serial(count, "row") as row:
                gradient.write(dx, row, (first + row) * length)
    return f.result


class RowGradients:
    """dx of a block of rows; h begins at element `origin`."""

    def __init__(
        self, spec: KernelSpec, h: Array, k: Saved, length: int, most: int, origin: Expr = 0
    ) -> None:
        self.spec, self.h, self.saved, self.length, self.origin = spec, h, k, length, origin
        self.constants = [nest.scratch(most, "float32") for _ in range(3)]

    def sum(self, row: Expr, start: Expr, factor: Expr) -> None:
        """Row number `row` of the block, which begins at element `start`."""
        terms_of = terms(self.saved)
        sums = row_sums(
            self.length,
            3,
            lambda slots, i: terms_of.add(slots, *terms_of.load(self.h, start + i, self.origin)),
            lambda i: terms_of.scalar(self.h, start + i, self.origin),
        )
        totals = held_sums(terms_of.results(sums, self.length))
        parts = InputGradient.of(self.spec, totals, self.length, factor)
        values = (parts.above, parts.below, parts.factor)
        for array, value in zip(self.constants, values, strict=True):
            array.store(row, value)

    def write(self, dx: Array, row: Expr, start: Expr) -> None:
        """dx of the row."""
        above, below, factor = (held(array[row]) for array in self.constants)
        with nest.serial(self.length // LANES, "v") as v:
            wide = [nest.splat(one) for one in (above, below, factor)]
            vector(self.h, self.saved, dx, start + v * LANES, wide, self.origin)
        with nest.serial(self.length, "i", self.length - self.length % LANES) as i:
            at = start + i
            part = nest.select(self.saved.scalar(at) >= nest.zero("int32"), above, below)
            value = to_float(nest.cast(self.h[at - self.origin], "int32"))
            dx.store(at, (value - part) * factor)
