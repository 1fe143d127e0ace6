"""Losses of class indices: one element picked from a row, and rows that are 0 but for one."""

from functools import partial

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.rows import each_row, keep, spread, store
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec


def _class(target: Array, row: Expr, classes: int) -> Expr:
    """The row's class, or the nearest one."""
    low, high = nest.const(0, "int64"), nest.const(classes - 1, "int64")
    return nest.cast(tirx.min(tirx.max(target[row], low), high), "int32")


def _weight(spec: KernelSpec, f: nest.Function, row: Expr, classes: int) -> tuple[Expr, Expr]:
    """(whether the row is ignored, the weight of its class)."""
    weight, zero = f.get("weight"), nest.zero("float32")
    ignored = tirx.EQ(f["target"][row], nest.const(spec["ignored"], "int64"))
    one = nest.const(1.0, "float32")
    own = one if weight is None else weight[_class(f["target"], row, classes)]
    return ignored, nest.select(ignored, zero, own)


def _negative(x: Expr) -> Expr:
    return nest.bits_of(
        tirx.bitwise_xor(nest.bits_of(x, "int32"), nest.const(-(2**31), "int32")), "float32"
    )


@KERNELS.kernel("sq::nll_loss")
def nll_loss(spec: KernelSpec) -> object:
    """One element of every row."""
    with nest.function(spec) as f:
        x, (losses, weights) = f["x"], f.outputs
        rows, classes = x.shape
        with each_row(rows, 1) as row:
            ignored, own = _weight(spec, f, row, classes)
            weights.store(row, own)
            picked = _negative(x[row * classes + _class(f["target"], row, classes)])
            cost = picked * weights[row]
            losses.store(row, nest.select(ignored, nest.zero("float32"), cost))
    return f.result


@KERNELS.kernel("sq::nll_loss_backward")
def nll_loss_backward(spec: KernelSpec) -> object:
    """Rows of a comparison with their class."""
    classes = spec["classes"]
    with nest.function(spec) as f:
        g, (dx,) = f["g"], f.outputs
        with each_row(dx.shape[0], classes) as row:
            ignored, own = _weight(spec, f, row, classes)
            cost = _negative(g[row if g.size > 1 else 0]) * own
            value = keep(nest.select(ignored, nest.zero("float32"), cost))
            index = keep(_class(f["target"], row, classes))
            store(classes, dx, row * classes, partial(_one_hot, index, value))
    return f.result


def _one_hot(index: Expr, value: Expr, at: Expr, lanes: int) -> Expr:
    """The value in the lane of column `index`, 0 in the others."""
    column = nest.ramp(at, lanes) if lanes > 1 else at
    here = tirx.EQ(column, spread(index, lanes))
    return nest.select(here, spread(value, lanes), spread(nest.zero("float32"), lanes))
