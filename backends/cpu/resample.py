"""Weighted sums of neighbours along an axis: results in parallel, vectors along what stands behind
the axis; where that is shorter than a vector, along the axis too, element by element gathered."""

from collections.abc import Callable

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.lookup import split
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.sweep import in_vectors
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec

UNROLLED_TAPS = 8
"""More taps than that are a loop."""


@KERNELS.kernel("sq::resample")
def resample(spec: KernelSpec) -> object:
    """Taps summed in order in a register, every product rounded first."""
    with nest.function(spec) as f:
        x, first, weight, (out,) = f["x"], f["first"], f["weight"], f.outputs
        sizes = split(x.shape, spec["axis"])
        emit = _gathered if sizes[2] < nest.LANES else _along
        emit(x, first, weight, out, sizes)
    return f.result


def _along(x: Array, first: Array, weight: Array, out: Array, sizes: tuple[int, int, int]) -> None:
    before, size, inner = sizes
    results, taps = weight.shape
    with nest.parallel(before * results, out.size * taps, "result") as task:
        row, result = tirx.floordiv(task, results), tirx.floormod(task, results)
        start = (row * size + nest.bound(first[result])) * inner

        def piece(column: Expr, lanes: int) -> None:
            def element(tap: Expr, lane: Expr) -> Expr:
                return weight[result * taps + tap] * x[start + tap * inner + column + lane]

            _sum(out, task * inner + column, lanes, taps, element)

        in_vectors(inner, piece)


def _gathered(
    x: Array, first: Array, weight: Array, out: Array, sizes: tuple[int, int, int]
) -> None:
    before, size, inner = sizes
    results, taps = weight.shape
    with nest.parallel(before, out.size * taps, "row") as row:

        def piece(at: Expr, lanes: int) -> None:
            def element(tap: Expr, lane: Expr) -> Expr:
                result = tirx.floordiv(at + lane, inner)
                place = (first[result] + tap) * inner + tirx.floormod(at + lane, inner)
                return weight[result * taps + tap] * x[row * size * inner + place]

            _sum(out, row * results * inner + at, lanes, taps, element)

        in_vectors(results * inner, piece)


def _sum(
    out: Array, at: Expr, lanes: int, taps: int, element: Callable[[Expr, Expr], Expr]
) -> None:
    """out[at ...] = the sum over taps of element(tap, lane), from +0.0."""
    total = nest.scratch(lanes, "float32")
    with nest.lanes(count=lanes) as lane:
        total.store(lane, nest.zero("float32"))

    def add(tap: Expr) -> None:
        with nest.lanes(count=lanes) as lane:
            total.store(lane, total[lane] + nest.fence(element(tap, lane)))

    if taps <= UNROLLED_TAPS:
        for tap in range(taps):
            add(tap)
    else:
        with nest.serial(taps, "tap") as tap:
            add(tap)
    with nest.lanes(count=lanes) as lane:
        out.store(at + lane, total[lane])
