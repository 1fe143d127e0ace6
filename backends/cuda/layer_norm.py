"""L1 layer, RMS and group norm: forward and backward, alone and with their quantisers."""

from collections.abc import Sequence

from sqcompile.backends.cuda import grid
from sqcompile.backends.cuda.absmax import maxima
from sqcompile.backends.cuda.grid import Array, Expr
from sqcompile.backends.cuda.norm import (
    Gradient,
    Normalized,
    affine,
    product,
    saved,
    saved_sink,
)
from sqcompile.backends.cuda.passes import Stored, along, mapped
from sqcompile.backends.cuda.philox import Philox
from sqcompile.backends.cuda.quantize import at_shape, nearest, scaled_by
from sqcompile.backends.cuda.stochastic import carry, into
from sqcompile.backends.cuda.table import KERNELS
from sqcompile.backends.kernels import KernelSpec, TensorSpec
from sqcompile.backends.rounding import step as step_of
from sqcompile.ops.norm import GROUP_AXES


def _forward(
    spec: KernelSpec,
    f: grid.Function,
    x: Array,
    scale: Array,
    outputs: Sequence[Array],
    axes: Sequence[int],
) -> None:
    """y, xhat and coefficient of integers."""
    y, xhat, coefficient = outputs
    centred = bool(spec.get("centred", True))
    norm = Normalized(x, scale, axes, spec["eps"], spec["frac_bits"], centred)
    norm.measure(coefficient)
    gamma, beta = f.get("gamma"), f.get("beta")

    def element(index: Expr, given: Sequence[Expr]) -> Sequence[Expr]:
        value = norm.xhat(index, given[0])
        k = saved(value, spec["bits"], spec["step"])
        return [affine(value, gamma, beta, x.shape, index), k]

    mapped(y.size, [along(x)], [Stored(y), saved_sink(xhat)], element)


@KERNELS.kernel("sq::l1_layer_norm")
def l1_layer_norm(spec: KernelSpec) -> object:
    """Two reductions, then elements."""
    with grid.function(spec) as f:
        _forward(spec, f, f["x"], f["scale"], f.outputs, [1])
    return f.result


@KERNELS.kernel("sq::l1_group_norm")
def l1_group_norm(spec: KernelSpec) -> object:
    """The same over pixels and the channels of a group."""
    with grid.function(spec) as f:
        _forward(spec, f, f["x"], f["scale"], f.outputs, GROUP_AXES)
    return f.result


@KERNELS.kernel("sq::quantize_l1_layer_norm")
def quantize_l1_layer_norm(spec: KernelSpec) -> object:
    """Rows are quantised to memory first."""
    bits = spec["in_bits"]
    with grid.function(spec) as f:
        x, (*outputs, r) = f["x"], f.outputs
        q, scale = _quantized_memory(x)

        def found(row: Expr, value: Expr) -> None:
            r.store(row, value)
            scale.store(row, step_of(bits, True, 1, value))

        maxima(x, [1], [], False, found)

        mapped(
            x.size,
            [along(x)],
            [Stored(q)],
            lambda i, given: [nearest(given[0], at_shape(r, x.shape, i), bits, True)],
        )
        _forward(spec, f, q, scale, outputs, [1])
    return f.result


def _quantized_memory(x: Array) -> tuple[Array, Array]:
    """Memory for x as int8, and for a scale of every row."""
    q = Array(grid.workspace(x.size, "int8").buffer, TensorSpec(x.shape, "int8"))
    return q, grid.workspace(x.shape[0], "float32")


def _gradient(
    spec: KernelSpec,
    f: grid.Function,
    h: Array,
    scale: Array,
    xhat: Array,
    axes: Sequence[int],
) -> None:
    """dx of integers h worth scale[set] each."""
    dx, coefficient = f.outputs[0], f["coefficient"]
    gradient = Gradient(
        h,
        xhat,
        axes,
        spec["step"],
        lambda row: product(scale[row], coefficient[row]),
        bool(spec.get("centred", True)),
    )
    gradient.measure()
    gradient.store(dx)


@KERNELS.kernel("sq::l1_layer_norm_backward", "sq::l1_layer_norm_packed_backward")
def l1_layer_norm_backward(spec: KernelSpec) -> object:
    """One reduction, then elements."""
    with grid.function(spec) as f:
        _gradient(spec, f, f["h"], f["h_scale"], _saved_of(f), [1])
    return f.result


@KERNELS.kernel("sq::l1_group_norm_backward", "sq::l1_group_norm_packed_backward")
def l1_group_norm_backward(spec: KernelSpec) -> object:
    """The same over pixels and the channels of a group."""
    with grid.function(spec) as f:
        _gradient(spec, f, f["h"], f["h_scale"], _saved_of(f), GROUP_AXES)
    return f.result


def _saved_of(f: grid.Function) -> Array:
    packed = f.get("packed")
    return f["xhat"] if packed is None else packed


@KERNELS.kernel("sq::quantize_l1_layer_norm_backward", run_time=("stream",))
def quantize_l1_layer_norm_backward(spec: KernelSpec) -> object:
    """gamma * g is quantised to memory first."""
    bits = spec["in_bits"]
    with grid.function(spec, ("stream",)) as f:
        g, gamma, (_, r) = f["g"], f.get("gamma"), f.outputs
        q, scale = _quantized_memory(g)

        def found(row: Expr, value: Expr) -> None:
            r.store(row, value)
            scale.store(row, step_of(bits, True, 1, value))

        maxima(g, [1], [] if gamma is None else [gamma], False, found)
        philox = Philox(f["rng"], f.scalars["stream"])
        carry(g.shape, philox, bits, [(scaled_by(g, r, None, None, bits, gamma), into(q))])
        _gradient(spec, f, q, scale, f["xhat"], [1])
    return f.result
