"""Gradients of L1 batch norm: sums over the rows of every channel, then dx element by element."""

from collections.abc import Sequence

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.channels import Periods
from sqcompile.backends.cpu.gradient_sums import ColumnSums
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.norm import InputGradient, f32, held, to_float
from sqcompile.backends.cpu.saved_xhat import Saved
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec


def saved_of(f: nest.Function) -> Saved:
    """The xhat that a gradient reads."""
    xhat = f.get("packed") or f["xhat"]
    return Saved(xhat, xhat.dtype == "uint8")


@KERNELS.kernel("sq::l1_batch_norm_backward", "sq::l1_batch_norm_packed_backward")
def l1_batch_norm_backward(spec: KernelSpec) -> object:
    """Two passes over g and xhat, parallel over blocks of rows."""
    with nest.function(spec) as f:
        dx, dgamma, dbeta = f.outputs
        input_gradient(f, dx, channel_constants(f, spec, dgamma, dbeta))
    return f.result


def channel_constants(
    f: nest.Function, spec: KernelSpec, dgamma: Array, dbeta: Array
) -> list[Array]:
    """Write dgamma and dbeta -> what the integers of every channel lose where xhat is not
    negative and where it is, and the factor that makes the rest dx."""
    g, gamma, scale = f["g"], f.get("gamma"), f["g_scale"]
    sums = ColumnSums(g, saved_of(f))
    channels = scale.size
    constants = [nest.scratch(channels, "float32") for _ in range(3)]
    with nest.serial(channels, "c") as c:
        worth = held(scale[c])
        factor = worth if gamma is None else gamma[c] * worth
        factor = held(factor * f["coefficient"][c])
        total = held_sums(sums.of(c))
        parts = InputGradient.of(spec, total, g.size // channels, factor)
        values = (parts.above, parts.below, parts.factor)
        for array, value in zip(constants, values, strict=True):
            array.store(c, value)
        dgamma.store(c, to_float(total[1]) * (worth * f32(spec["step"] / 2)))
        dbeta.store(c, to_float(total[0]) * worth)
    return constants


def input_gradient(f: nest.Function, dx: Array, constants: Sequence[Array]) -> None:
    """Write dx."""
    g, xhat = f["g"], saved_of(f)
    periods = Periods.of(g.shape)
    spread = [periods.spread(array) for array in constants]

    def one(index: Expr, place: Expr) -> None:
        at = index * LANES
        dx.store(nest.ramp(at), difference(g, xhat, at, [a[nest.ramp(place)] for a in spread]))

    periods.vectors(one)
    with periods.leftover() as (i, c):
        above, below, factor = (array[c] for array in constants)
        part = nest.select(xhat.scalar(i) >= nest.zero("int32"), above, below)
        dx.store(i, (to_float(nest.cast(g[i], "int32")) - part) * factor)


def difference(g: Array, xhat: Saved, at: Expr, constants: Sequence[Expr], first: Expr = 0) -> Expr:
    """16 elements of dx from `at` on; g begins at element `first`."""
    above, below, factor = constants
    part = nest.select(xhat.positive(at), above, below)
    integers = nest.cast(g[nest.ramp(at - first)], "int32", LANES)
    return (nest.cast(integers, "float32", LANES) - part) * factor


def vector(
    g: Array, xhat: Saved, dx: Array, at: Expr, constants: Sequence[Expr], first: Expr = 0
) -> None:
    """Write 16 elements of dx from `at` on; g begins at element `first`."""
    dx.store(nest.ramp(at), difference(g, xhat, at, constants, first))


def held_sums(sums: tuple[Expr, Expr, Expr]) -> tuple[Expr, Expr, Expr]:
    """Three int64 sums in variables."""
    total, total_xhat, total_sign = (held(one, "int64") for one in sums)
    return total, total_xhat, total_sign


@KERNELS.kernel("sq::l1_layer_norm_affine_backward", "sq::l1_layer_norm_affine_packed_backward")
def l1_layer_norm_affine_backward(spec: KernelSpec) -> object:
    """The column sums of a batch norm's gradient."""
    with nest.function(spec) as f:
        g, scale, (dgamma, dbeta) = f["g"], f["g_scale"], f.outputs
        sums = ColumnSums(g, saved_of(f))
        with nest.serial(g.shape[1], "d") as d:
            total, total_xhat, _ = sums.of(d)
            dgamma.store(d, to_float(total_xhat) * (scale[d] * f32(spec["step"] / 2)))
            dbeta.store(d, to_float(total) * scale[d])
    return f.result
