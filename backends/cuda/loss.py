"""The negative log likelihood by row, and its gradient."""

from tvm import tirx

from sqcompile.backends.cuda import grid
from sqcompile.backends.cuda.grid import Array, Expr
from sqcompile.backends.cuda.lookup import nearest_row
from sqcompile.backends.cuda.table import KERNELS
from sqcompile.backends.kernels import KernelSpec


def _negative(x: Expr) -> Expr:
    """-x: a flipped sign bit."""
    bits = grid.bits_of(grid.keep(x), "int32")
    return grid.bits_of(tirx.bitwise_xor(bits, grid.const(-(2**31), "int32")), "float32")


def _ignored(target: Array, row: Expr, ignored: int) -> Expr:
    return tirx.EQ(target[row], grid.const(ignored, "int64"))


def _weight(target: Array, row: Expr, weight: Array | None, ignored: int) -> Expr:
    """The weight of a row's class, 0 where it is ignored."""
    one = grid.const(1.0, "float32")
    own = one if weight is None else weight[nearest_row(target, row, weight.size)]
    return grid.keep(
        grid.select(_ignored(target, row, ignored), grid.const(0.0, "float32"), grid.keep(own))
    )


@KERNELS.kernel("sq::nll_loss")
def nll_loss(spec: KernelSpec) -> object:
    """A thread for a row."""
    ignored = spec["ignored"]
    with grid.function(spec) as f:
        x, target, (losses, weights) = f["x"], f["target"], f.outputs
        classes = x.shape[1]

        def emit(row: Expr) -> None:
            own = _weight(target, row, f.get("weight"), ignored)
            weights.store(row, own)
            picked = x[row * classes + nearest_row(target, row, classes)]
            loss = grid.keep(_negative(picked) * own)
            zero = grid.const(0.0, "float32")
            losses.store(row, grid.select(_ignored(target, row, ignored), zero, loss))

        grid.each(target.size, emit)
    return f.result


@KERNELS.kernel("sq::nll_loss_backward")
def nll_loss_backward(spec: KernelSpec) -> object:
    """A thread for an element of the gradient."""
    ignored, classes = spec["ignored"], spec["classes"]
    with grid.function(spec) as f:
        g, target, (out,) = f["g"], f["target"], f.outputs

        def emit(i: Expr) -> None:
            row, column = tirx.floordiv(i, classes), tirx.floormod(i, classes)
            zero = grid.const(0.0, "float32")
            own = _weight(target, row, f.get("weight"), ignored)
            value = grid.keep(_negative(g[0 if g.size == 1 else row]) * own)
            here = tirx.EQ(nearest_row(target, row, classes), column)
            kept = tirx.And(here, tirx.Not(_ignored(target, row, ignored)))
            out.store(i, grid.select(kept, value, zero))

        grid.each(out.size, emit)
    return f.result
