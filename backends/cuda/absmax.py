"""Largest magnitudes, and the largest elements of rows: integers that order like the floats."""

from collections.abc import Callable, Sequence

from tvm import tirx

from sqcompile.backends.cuda import grid
from sqcompile.backends.cuda.grid import Array, Expr
from sqcompile.backends.cuda.reduce import LARGEST, Fold, Reduced, folded
from sqcompile.backends.cuda.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.backends.rounding import inverse, magnitude

Store = Callable[[Expr, Expr], None]
"""store(result, value), in one thread."""
_FIRST = Fold("int32", -(2**31), tirx.max)


def maxima(
    x: Array, axes: Sequence[int], factors: Sequence[Array], divided: bool, store: Store
) -> None:
    """store(result, largest magnitude of x times the factors as float32), over `axes` of x; the
    last factor is an outer scale, by which x is `divided`."""
    walk = Reduced.of(x.shape, axes, *(one.shape for one in factors))

    def element(result: Expr, k: Expr) -> Sequence[Expr]:
        at, *others = walk.places(result, k)
        value = grid.at(x, at)
        for index, (factor, place) in enumerate(zip(factors, others, strict=True)):
            one = factor[place]
            last = index == len(factors) - 1
            value = grid.keep(value * (inverse(grid.keep(one)) if divided and last else one))
        return [magnitude(value)]

    def put(result: Expr, values: Sequence[Expr]) -> None:
        store(result, grid.keep(grid.bits_of(values[0], "float32")))

    folded(walk.results, walk.count, walk.columns, [LARGEST], element, put)


@KERNELS.kernel("sq::absmax", views={"x": grid.anywhere})
def absmax(spec: KernelSpec) -> object:
    """One read of x."""
    with grid.function(spec) as f:
        outer, (out,) = f.get("outer"), f.outputs
        factors = [] if outer is None else [outer]
        maxima(f["x"], spec["axes"], factors, outer is not None, out.store)
    return f.result


def ordered_bits(bits: Expr) -> Expr:
    """The bits of a float as int32 that orders like the number, and back."""
    sign = tirx.shift_right(bits, grid.const(31, "int32"))
    return tirx.bitwise_xor(bits, tirx.bitwise_and(sign, grid.const(0x7FFFFFFF, "int32")))


@KERNELS.kernel("sq::amax")
def amax(spec: KernelSpec) -> object:
    """A warp for each row, or several where rows are few."""
    with grid.function(spec) as f:
        x, (out,) = f["x"], f.outputs
        length = x.shape[-1]

        def element(result: Expr, k: Expr) -> Sequence[Expr]:
            return [ordered_bits(grid.keep(grid.bits_of(x[result * length + k], "int32")))]

        def store(result: Expr, values: Sequence[Expr]) -> None:
            out.store(result, grid.bits_of(ordered_bits(values[0]), "float32"))

        folded(out.size, length, False, [_FIRST], element, store)
    return f.result
