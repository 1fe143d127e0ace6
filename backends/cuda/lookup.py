"""Slices by number, the sums of their gradients, and the range of numbers."""

from collections.abc import Sequence
from math import prod

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from sqcompile.backends.cuda import grid
from sqcompile.backends.cuda.grid import Array, Expr
from sqcompile.backends.cuda.reduce import Fold, folded
from sqcompile.backends.cuda.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.ops.index_range import NONE


def nearest_row(index: Array, position: Expr, size: int) -> Expr:
    """The number at a position as int32, or the nearest one that there is."""
    wide = grid.cast(index[position], "int64")
    most = grid.const(size - 1, "int64")
    inside = tirx.min(tirx.max(wide, grid.zero("int64")), most)
    return grid.keep(grid.cast(inside, "int32"))


@KERNELS.kernel("sq::take")
def take(spec: KernelSpec) -> object:
    """A thread for an element."""
    axis = spec["axis"]
    with grid.function(spec) as f:
        x, index, (out,) = f["x"], f["index"], f.outputs
        inner, size, count = prod(x.shape[axis + 1 :]), x.shape[axis], index.size

        def emit(i: Expr) -> None:
            outer, position, rest = grid.unravel(i, [1, count, inner])
            outer = tirx.floordiv(i, count * inner)
            row = nearest_row(index, position, size)
            out.store(i, x[(outer * size + row) * inner + rest])

        grid.each(out.size, emit)
    return f.result


@KERNELS.kernel("sq::take_backward")
def take_backward(spec: KernelSpec) -> object:
    """Every position learns the next one with its row, and whether it is the first; then the first
    of each row adds all of them, in order."""
    axis, size, skipped = spec["axis"], spec["size"], spec["skipped"]
    with grid.function(spec) as f:
        g, index, (out,) = f["g"], f["index"], f.outputs
        inner, count = prod(g.shape[axis + 1 :]), index.size
        outer = prod(g.shape[:axis])
        grid.each(out.size, lambda i: out.store(i, grid.const(0.0, "float32")))
        following = grid.workspace(count, "int32")
        first = grid.workspace(count, "uint8")
        _chains(index, size, following, first)

        def emit(i: Expr) -> None:
            position = tirx.floormod(tirx.floordiv(i, inner), count)
            head, rest = tirx.floordiv(i, count * inner), tirx.floormod(i, inner)
            row = nearest_row(index, position, size)
            counts = tirx.NE(row, grid.const(skipped, "int32"))
            with grid.when(tirx.And(tirx.NE(first[position], grid.zero("uint8")), counts)):
                total, at = grid.slots(1, "float32"), grid.slots(1, "int32")
                total.store(0, grid.const(0.0, "float32"))
                at.store(0, position)
                with T.While(at[0] < count):
                    total.store(0, total[0] + g[(head * count + at[0]) * inner + rest])
                    at.store(0, following[at[0]])
                out.store((head * size + row) * inner + rest, total[0])

        grid.each(outer * count * inner, emit)
    return f.result


def _chains(index: Array, size: int, following: Array, first: Array) -> None:
    """For every position the next one with the same row, or the number of positions, and whether
    no earlier one has its row: a thread looks at all of them, which its neighbours read too."""
    count = index.size

    def emit(position: Expr) -> None:
        row = nearest_row(index, position, size)
        found, alone = grid.slots(1, "int32"), grid.slots(1, "uint8")
        found.store(0, grid.const(count, "int32"))
        alone.store(0, grid.const(1, "uint8"))
        with grid.serial(count, "other") as other:
            same = tirx.EQ(nearest_row(index, other, size), row)
            with grid.when(tirx.And(same, other < position)):
                alone.store(0, grid.zero("uint8"))
            later = tirx.And(other > position, other < found[0])
            with grid.when(tirx.And(same, later)):
                found.store(0, other)
        following.store(position, found[0])
        first.store(position, alone[0])

    grid.each(count, emit)


_LOWEST = Fold("int64", NONE[0], tirx.min)
_HIGHEST = Fold("int64", NONE[1], tirx.max)


@KERNELS.kernel("sq::index_range")
def index_range(spec: KernelSpec) -> object:
    """The lowest and the highest of numbers, without one that does not count."""
    ignored = spec["ignored"]
    with grid.function(spec) as f:
        x, (out,) = f["x"], f.outputs

        def element(result: Expr, k: Expr) -> Sequence[Expr]:
            number = grid.keep(grid.cast(x[k], "int64"))
            if ignored is None:
                return [number, number]
            out_of_it = tirx.EQ(number, grid.const(ignored, "int64"))
            return [grid.select(out_of_it, grid.const(limit, "int64"), number) for limit in NONE]

        def store(result: Expr, values: Sequence[Expr]) -> None:
            for place, value in enumerate(values):
                out.store(place, value)

        folded(1, x.size, False, [_LOWEST, _HIGHEST], element, store)
    return f.result
