"""Convolutions whose groups have few channels, depthwise ones above all: a thread for every result
of fprop and dgrad, a reduction for every weight of wgrad. Matrix instructions would multiply mostly
zeros."""

from collections.abc import Callable, Sequence

from tvm import tirx

from sqcompile.backends.conv_geometry import Axis, Geometry
from sqcompile.backends.cuda import grid
from sqcompile.backends.cuda.gemm_results import Finish, channel_sums, elements
from sqcompile.backends.cuda.grid import Array, Expr
from sqcompile.backends.cuda.reduce import TOTAL, folded
from sqcompile.backends.kernels import KernelSpec

FEW = 4
"""Products of input and output channels of a group, at most."""

Met = Callable[[Axis, Expr, Expr], tuple[Expr, Expr]]
"""met(axis, result, tap) -> (the line of the source that a tap reads, whether there is one)."""


def fits(g: Geometry) -> bool:
    """Whether these kernels are the faster ones."""
    return g.groups > 1 and g.inputs * g.outputs <= FEW


def _forward(axis: Axis, result: Expr, tap: Expr) -> tuple[Expr, Expr]:
    line = result * axis.stride + tap * axis.dilation - axis.padding
    return line, tirx.And(line >= 0, line < axis.size)


def _backward(axis: Axis, result: Expr, tap: Expr) -> tuple[Expr, Expr]:
    reached = result + axis.padding - tap * axis.dilation
    line = tirx.floordiv(reached, axis.stride)
    whole = tirx.EQ(line * axis.stride, reached)
    return line, grid.all_of([whole, line >= 0, line < axis.out])


def _shifted(f: grid.Function, spec: KernelSpec, value: Expr, at: Expr) -> Expr:
    """An int32 with the shift that exponent number `at` has."""
    exponent, groups = f.get("exponent"), spec.get("shift_groups", 1)
    if exponent is None or groups == 1:
        return value
    shift = groups - 1 - grid.cast(exponent[at], "int32")
    return value * tirx.shift_left(grid.const(1, "int32"), shift)


def fprop(spec: KernelSpec, f: grid.Function, g: Geometry, finish: Finish) -> None:
    """Rows of the weights are output channels."""
    outer = g.inputs * g.taps
    steps = (g.outputs * outer, outer, g.taps)
    _correlate(spec, f, g, finish, f["x"], (g.outputs, g.inputs), steps, _forward)


def dgrad(spec: KernelSpec, f: grid.Function, g: Geometry, finish: Finish) -> None:
    """Rows of the weights are input channels."""
    outer = g.inputs * g.taps
    steps = (g.outputs * outer, g.taps, outer)
    _correlate(spec, f, g, finish, f["g"], (g.inputs, g.outputs), steps, _backward)


def _correlate(
    spec: KernelSpec,
    f: grid.Function,
    g: Geometry,
    finish: Finish,
    source: Array,
    channels: tuple[int, int],
    steps: Sequence[int],
    met: Met,
) -> None:
    """Every result adds taps and channels."""
    w, axes = f["w"], (g.rows, g.columns)
    _, height, width, pitch = source.shape
    own, summed = channels
    dtype = "int64" if spec["k_chunk"] else "int32"

    def total(index: Expr) -> Expr:
        image, y, x, channel = grid.unravel(index, finish.shape)
        group, row = tirx.floordiv(channel, own), tirx.floormod(channel, own)
        held = grid.slots(1, dtype)
        held.store(0, grid.zero(dtype))
        with grid.loops([axis.kernel for axis in axes], "tap") as taps:
            (line, above), (column, left) = (
                met(axis, at, tap) for axis, at, tap in zip(axes, (y, x), taps, strict=True)
            )
            with grid.when(tirx.And(above, left)), grid.serial(summed, "c") as c:
                at = group * summed + c
                place = ((image * height + line) * width + column) * pitch + at
                value = _shifted(f, spec, grid.cast(source[place], "int32"), at)
                kernel = grid.linear([group, row, c, taps[0], taps[1]], [*steps, axes[1].kernel, 1])
                one = value * grid.cast(w[kernel], "int32")
                held.store(0, held[0] + grid.cast(one, dtype))
        return held[0]

    elements(finish, total)
    channel_sums(finish)


def wgrad(spec: KernelSpec, f: grid.Function, g: Geometry, finish: Finish) -> None:
    """Every weight adds pixels; neighbouring threads take neighbouring channels."""
    gradient, x, axes = f["g"], f["x"], (g.rows, g.columns)
    images, height, width, pitch = x.shape
    outputs = gradient.shape[3]
    extents = [*(axis.kernel for axis in axes), g.inputs, outputs]
    pixels = [images, *(axis.out for axis in axes)]

    def element(result: Expr, k: Expr) -> Sequence[Expr]:
        *taps, c, o = grid.unravel(result, extents)
        image, *at = grid.unravel(k, pixels)
        (line, above), (column, left) = (
            _forward(axis, one, tap) for axis, one, tap in zip(axes, at, taps, strict=True)
        )
        channel = tirx.floordiv(o, g.outputs) * g.inputs + c
        place = ((image * height + line) * width + column) * pitch + channel
        value = _shifted(f, spec, grid.cast(gradient[k * outputs + o], "int32"), k)
        one = value * grid.cast(x[place], "int32")
        both = tirx.if_then_else(tirx.And(above, left), one, grid.zero("int32"))
        return [grid.cast(both, "int64")]

    def store(result: Expr, values: Sequence[Expr]) -> None:
        *taps, c, o = grid.unravel(result, extents)
        index = ((o * g.inputs + c) * axes[0].kernel + taps[0]) * axes[1].kernel + taps[1]
        finish.element(index, values[0])

    count = pixels[0] * pixels[1] * pixels[2]
    folded(finish.size, count, True, [TOTAL], element, store)
