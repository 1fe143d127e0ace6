"""L1 batch norm: forward, alone and with what follows it, and its gradients."""

from collections.abc import Callable, Sequence

from sqcompile.backends.cuda import grid
from sqcompile.backends.cuda.absmax import maxima
from sqcompile.backends.cuda.grid import Array, Expr
from sqcompile.backends.cuda.norm import (
    Gradient,
    Normalized,
    Sets,
    Sums,
    Value,
    affine,
    norm_sums,
    product,
    real,
    saved,
    saved_sink,
    unpacked,
)
from sqcompile.backends.cuda.passes import (
    Bits,
    Largest,
    Stored,
    along,
    lanes_for,
    magnitude_of,
    mapped,
    threads_for,
)
from sqcompile.backends.cuda.philox import Philox
from sqcompile.backends.cuda.quantize import at_shape, exponents_of, nearest
from sqcompile.backends.cuda.shift_quantize import quantize_pair
from sqcompile.backends.cuda.table import KERNELS
from sqcompile.backends.kernels import KernelSpec, TensorSpec


class _Forward:
    """The norm of a spec, whose y is float32."""

    def __init__(self, spec: KernelSpec, f: grid.Function) -> None:
        self.spec, self.f, self.x = spec, f, f["x"]
        axes = list(range(len(self.x.shape) - 1))
        self.norm = Normalized(
            self.x, f["scale"], axes, spec["eps"], spec["frac_bits"], total=f.get("sums")
        )

    def measure(self, coefficient: Array, mean: Array, var: Array) -> None:
        """The statistics, which are outputs."""
        bias = self.f.get("bias")

        def statistics(channel: Expr, average: Expr, sigma: Expr) -> None:
            mean.store(channel, average if bias is None else average + bias[channel])
            var.store(channel, sigma * sigma)

        self.norm.measure(coefficient, statistics)

    def y(self, index: Expr, xhat: Expr) -> Expr:
        """An element of the result."""
        f = self.f
        return affine(xhat, f.get("gamma"), f.get("beta"), self.x.shape, index)

    def k(self, xhat: Expr) -> Expr:
        """The integer that is saved."""
        return saved(xhat, self.spec["bits"], self.spec["step"])


def _relu(value: Expr) -> Expr:
    """0 where value < 0, else value."""
    return grid.keep(grid.select(value < real(0.0), real(0.0), value))


@KERNELS.kernel("sq::l1_batch_norm")
def l1_batch_norm(spec: KernelSpec) -> object:
    """Two reductions, then elements."""
    with grid.function(spec) as f:
        y, xhat, coefficient, mean, var = f.outputs
        forward = _Forward(spec, f)
        forward.measure(coefficient, mean, var)

        def element(index: Expr, given: Sequence[Expr]) -> Sequence[Expr]:
            value = forward.norm.xhat(index, given[0])
            return [forward.y(index, value), forward.k(value)]

        mapped(y.size, [along(forward.x)], [Stored(y), saved_sink(xhat)], element)
    return f.result


@KERNELS.kernel("sq::l1_batch_norm_relu_quantize")
def l1_batch_norm_relu_quantize(spec: KernelSpec) -> object:
    """y stays in memory until its absmax is known."""
    with grid.function(spec) as f:
        q, r, xhat, mask, *statistics, exponent = f.outputs
        forward = _Forward(spec, f)
        forward.measure(*statistics)
        kept = grid.workspace(q.size, "float32")
        y = Array(kept.buffer, TensorSpec(q.shape, "float32"))

        def found(value: Expr) -> None:
            r.store(0, product(value, grid.literal(spec["share"])))

        _store_result(forward, y, xhat, mask, exponent, found)
        bits, signed = spec["out_bits"], spec["signed"]

        def element(i: Expr, given: Sequence[Expr]) -> Sequence[Expr]:
            group = at_shape(exponent, q.shape, i) if exponent.size else None
            return [nearest(given[0], r[0], bits, signed, group)]

        mapped(q.size, [along(y)], [Stored(q)], element)
    return f.result


@KERNELS.kernel("sq::l1_batch_norm_add_relu")
def l1_batch_norm_add_relu(spec: KernelSpec) -> object:
    """The residual is added where y is computed; the mask is read from y."""
    with grid.function(spec) as f:
        y, r, xhat, mask, *statistics, exponent = f.outputs
        forward = _Forward(spec, f)
        forward.measure(*statistics)
        _store_result(forward, y, xhat, mask, exponent, lambda value: r.store(0, value))
    return f.result


def _store_result(
    forward: _Forward,
    y: Array,
    xhat: Array,
    mask: Array,
    exponent: Array,
    found: Callable[[Expr], None],
) -> None:
    """y, plus the residual, through ReLU; what backward keeps of it; found(its absmax); the groups
    of its channels, where there are any."""
    residual, relu = forward.f.get("residual"), forward.spec["relu"]
    sinks = [Stored(y), saved_sink(xhat), *([Bits(mask)] if mask.size else [])]
    threads = threads_for(y.size, lanes_for(y.size, sinks))
    loads = [along(forward.x), *([] if residual is None else [along(residual)])]
    largest = [] if exponent.size else [Largest(threads, found)]

    def element(index: Expr, given: Sequence[Expr]) -> Sequence[Expr]:
        normal = forward.norm.xhat(index, given[0])
        value = forward.y(index, normal)
        if residual is not None:
            value = grid.keep(value + given[1])
        value = _relu(value) if relu else value
        kept = [value, forward.k(normal), *([value > real(0.0)] if mask.size else [])]
        return [*kept, *(magnitude_of(value) for _ in largest)]

    mapped(y.size, loads, [*sinks, *largest], element)
    if exponent.size:
        _store_groups(y, exponent, forward.spec["groups"], found)


def _store_groups(y: Array, exponent: Array, groups: int, found: Callable[[Expr], None]) -> None:
    """The absmax of every channel of a result in memory, its group, and found(the largest)."""
    channels = grid.workspace(exponent.size, "float32")
    maxima(y, list(range(len(y.shape) - 1)), [], False, channels.store)
    largest = exponents_of(channels, exponent, groups)
    grid.each(1, lambda _: found(grid.keep(largest[0])))


def _backward(spec: KernelSpec, f: grid.Function, dgamma: Array, dbeta: Array) -> Gradient:
    """The gradient of a batch norm, measured: dgamma and dbeta are written."""
    g, scale, coefficient, gamma = f["g"], f["g_scale"], f["coefficient"], f.get("gamma")
    packed = f.get("packed")
    xhat = f["xhat"] if packed is None else packed

    def factor(channel: Expr) -> Expr:
        worth = scale[channel]
        if gamma is not None:
            worth = product(gamma[channel], worth)
        return product(worth, coefficient[channel])

    gradient = Gradient(g, xhat, list(range(len(g.shape) - 1)), spec["step"], factor)
    gradient.measure(_affine_sums(scale, spec["step"], dgamma, dbeta))
    return gradient


def _affine_sums(scale: Array, step: float, dgamma: Array, dbeta: Array) -> Sums:
    """Takes the sums of a channel to the gradients of gamma and beta."""

    def store(channel: Expr, total: Expr, total_xhat: Expr) -> None:
        worth = grid.keep(scale[channel])
        dgamma.store(channel, total_xhat * product(worth, real(step / 2)))
        dbeta.store(channel, total * worth)

    return store


@KERNELS.kernel("sq::l1_batch_norm_backward", "sq::l1_batch_norm_packed_backward")
def l1_batch_norm_backward(spec: KernelSpec) -> object:
    """One reduction, then elements."""
    with grid.function(spec) as f:
        dx, dgamma, dbeta = f.outputs
        gradient = _backward(spec, f, dgamma, dbeta)
        gradient.store(dx)
    return f.result


@KERNELS.kernel("sq::l1_batch_norm_backward_quantize", run_time=("stream",))
def l1_batch_norm_backward_quantize(spec: KernelSpec) -> object:
    """dx stays in memory until both quantisers have read it."""
    with grid.function(spec, ("stream",)) as f:
        *pair, dgamma, dbeta = f.outputs
        gradient = _backward(spec, f, dgamma, dbeta)
        g = f["g"]
        dx = Array(grid.workspace(g.size, "float32").buffer, TensorSpec(g.shape, "float32"))
        gradient.store(dx)
        philox = Philox(f["rng"], f.scalars["stream"])
        quantize_pair(spec, dx, f.get("factor"), pair, philox)
    return f.result


@KERNELS.kernel("sq::l1_layer_norm_affine_backward", "sq::l1_layer_norm_affine_packed_backward")
def l1_layer_norm_affine_backward(spec: KernelSpec) -> object:
    """The sums of a batch norm's gradient, per feature."""
    with grid.function(spec) as f:
        g, packed, (dgamma, dbeta) = f["g"], f.get("packed"), f.outputs
        k: Value = unpacked(f["xhat"] if packed is None else packed)
        take = _affine_sums(f["g_scale"], spec["step"], dgamma, dbeta)

        def store(result: Expr, values: Sequence[Expr]) -> None:
            take(result, *(grid.cast(one, "float32") for one in values))

        Sets(g.shape, [0]).sums(2, lambda i: norm_sums(g, k, i)[:2], store)
    return f.result
