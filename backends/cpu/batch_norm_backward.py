"""Gradients of L1 batch norm: sums over the rows of every channel, then dx element by element."""

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.channels import Periods
from sqcompile.backends.cpu.gradient_sums import ColumnSums
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.norm import InputGradient, f32, held, to_float
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec


@KERNELS.kernel("sq::l1_batch_norm_backward")
def l1_batch_norm_backward(spec: KernelSpec) -> object:
    """Two passes over g and xhat, parallel over blocks of rows."""
    with nest.function(spec) as f:
        g, xhat, gamma, scale = f["g"], f["xhat"], f.get("gamma"), f["g_scale"]
        dx, dgamma, dbeta = f.outputs
        periods = Periods.of(g.shape)
        sums = ColumnSums(g, xhat)
        constants = [nest.scratch(periods.channels, "float32") for _ in range(3)]
        with nest.serial(periods.channels, "c") as c:
            worth = held(scale[c])
            factor = worth if gamma is None else gamma[c] * worth
            factor = held(factor * f["coefficient"][c])
            total = held_sums(sums.of(c))
            parts = InputGradient.of(spec, total, periods.rows, factor)
            values = (parts.above, parts.below, parts.factor)
            for array, value in zip(constants, values, strict=True):
                array.store(c, value)
            dgamma.store(c, to_float(total[1]) * (worth * f32(spec["step"] / 2)))
            dbeta.store(c, to_float(total[0]) * worth)
        spread = [periods.spread(array) for array in constants]

        def one(i: Expr, arrays: list[Array], c: Expr) -> None:
            above, below, factor = (array[c] for array in arrays)
            part = nest.select(xhat[i] >= nest.zero("int8"), above, below)
            dx.store(i, (to_float(nest.cast(g[i], "int32")) - part) * factor)

        if periods.steps:
            with periods.parallel() as (_, begin, steps):
                with nest.serial(steps, "step") as step:
                    start = (begin + step) * periods.width
                    with nest.serial(periods.width // LANES, "v") as v, nest.lanes() as lane:
                        one(start + v * LANES + lane, spread, v * LANES + lane)
        with periods.leftover() as (i, c):
            one(i, constants, c)
    return f.result


def held_sums(sums: tuple[Expr, Expr, Expr]) -> tuple[Expr, Expr, Expr]:
    """Three int64 sums in variables."""
    total, total_xhat, total_sign = (held(one, "int64") for one in sums)
    return total, total_xhat, total_sign


@KERNELS.kernel("sq::l1_layer_norm_affine_backward")
def l1_layer_norm_affine_backward(spec: KernelSpec) -> object:
    """The column sums of a batch norm's gradient."""
    with nest.function(spec) as f:
        g, scale, (dgamma, dbeta) = f["g"], f["g_scale"], f.outputs
        sums = ColumnSums(g, f["xhat"])
        with nest.serial(g.shape[1], "d") as d:
            total, total_xhat, _ = sums.of(d)
            dgamma.store(d, to_float(total_xhat) * (scale[d] * f32(spec["step"] / 2)))
            dbeta.store(d, to_float(total) * scale[d])
    return f.result
