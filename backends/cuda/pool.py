"""Pooling of images (N, H, W, C) and resampling along an axis: a thread for an element of the
result, which goes over its taps in order. Neighbouring threads have neighbouring channels."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod

from tvm import tirx

from sqcompile.backends.cuda import grid
from sqcompile.backends.cuda.grid import Array, Expr
from sqcompile.backends.cuda.table import KERNELS
from sqcompile.backends.kernels import KernelSpec


class Window:
    """The windows of a pooling: their taps, by their place in the input or in the result."""

    def __init__(self, spec: KernelSpec, image: Sequence[int], pooled: Sequence[int]) -> None:
        self.kernel, self.stride = list(spec["kernel"]), list(spec["stride"])
        self.padding = list(spec["padding"])
        self.dilation = list(spec.get("dilation") or (1, 1))
        self.image, self.pooled = image, pooled

    @contextmanager
    def taps(self) -> Iterator[tuple[Expr, Expr, Expr]]:
        """Loops over (kh, kw, number of the tap), ascending."""
        with grid.loops(self.kernel, "tap") as (kh, kw):
            yield kh, kw, kh * self.kernel[1] + kw

    def read(self, at: Sequence[Expr], kh: Expr, kw: Expr) -> tuple[Expr, Expr]:
        """Where a tap of the window at (n, ph, pw, c) reads, and whether that is in the image."""
        n, *window, c = at
        places = [
            one * stride + tap * dilation - padding
            for one, stride, tap, dilation, padding in zip(
                window, self.stride, (kh, kw), self.dilation, self.padding, strict=True
            )
        ]
        return self._place(n, places, c, self.image)

    def write(self, at: Sequence[Expr], kh: Expr, kw: Expr) -> tuple[Expr, Expr]:
        """The window whose tap reads (n, h, w, c), and whether there is one."""
        n, *pixel, c = at
        windows, whole = [], []
        for one, stride, tap, dilation, padding in zip(
            pixel, self.stride, (kh, kw), self.dilation, self.padding, strict=True
        ):
            moved = one + padding - tap * dilation
            windows.append(tirx.floordiv(moved, stride))
            whole.append(tirx.EQ(tirx.floormod(moved, stride), 0))
        index, inside = self._place(n, windows, c, self.pooled)
        return index, grid.all_of([inside, *whole])

    def _place(
        self, n: Expr, places: Sequence[Expr], c: Expr, shape: Sequence[int]
    ) -> tuple[Expr, Expr]:
        height, width, channels = shape[1:]
        h, w = places
        inside = grid.all_of([h >= 0, h < height, w >= 0, w < width])
        return ((n * height + h) * width + w) * channels + c, inside


def _accumulated(initial: float) -> Array:
    total = grid.slots(1, "float32")
    total.store(0, grid.const(initial, "float32"))
    return total


@KERNELS.kernel("sq::max_pool2d")
def max_pool2d(spec: KernelSpec) -> object:
    """The first maximum of the taps, and which it is."""
    with grid.function(spec) as f:
        x, (out, tap) = f["x"], f.outputs
        window = Window(spec, x.shape, out.shape)

        def emit(i: Expr) -> None:
            at = grid.unravel(i, out.shape)
            best, number = _accumulated(-float("inf")), grid.slots(1, "uint8")
            number.store(0, grid.zero("uint8"))
            with window.taps() as (kh, kw, index):
                place, inside = window.read(at, kh, kw)
                with grid.when(inside):
                    value = grid.keep(x[place])
                    with grid.when(value > best[0]):
                        best.store(0, value)
                        number.store(0, grid.cast(index, "uint8"))
            out.store(i, best[0])
            tap.store(i, number[0])

        grid.each(out.size, emit)
    return f.result


@KERNELS.kernel("sq::avg_pool2d")
def avg_pool2d(spec: KernelSpec) -> object:
    """The taps' sum, then one division."""
    size = float(prod(spec["kernel"]))
    with grid.function(spec) as f:
        x, (out,) = f["x"], f.outputs
        window = Window(spec, x.shape, out.shape)

        def emit(i: Expr) -> None:
            at, total = grid.unravel(i, out.shape), _accumulated(0.0)
            with window.taps() as (kh, kw, _):
                place, inside = window.read(at, kh, kw)
                with grid.when(inside):
                    total.store(0, total[0] + x[place])
            out.store(i, total[0] / grid.const(size, "float32"))

        grid.each(out.size, emit)
    return f.result


def _backward(spec: KernelSpec, f: grid.Function, value: Callable[[Expr, Expr], Expr]) -> None:
    """dx = the sum of value(window, tap) over the taps that read an element, ascending."""
    g, (out,) = f["g"], f.outputs
    window = Window(spec, out.shape, g.shape)

    def emit(i: Expr) -> None:
        at, total = grid.unravel(i, out.shape), _accumulated(0.0)
        with window.taps() as (kh, kw, index):
            place, inside = window.write(at, kh, kw)
            with grid.when(inside):
                total.store(0, total[0] + value(place, index))
        out.store(i, total[0])

    grid.each(out.size, emit)


@KERNELS.kernel("sq::max_pool2d_backward")
def max_pool2d_backward(spec: KernelSpec) -> object:
    """The gradients of the windows that an element won."""
    with grid.function(spec) as f:
        g, tap = f["g"], f["tap"]
        zero = grid.const(0.0, "float32")

        def value(place: Expr, index: Expr) -> Expr:
            won = tirx.EQ(grid.cast(tap[place], "int32"), index)
            return grid.keep(grid.select(won, g[place], zero))

        _backward(spec, f, value)
    return f.result


@KERNELS.kernel("sq::avg_pool2d_backward")
def avg_pool2d_backward(spec: KernelSpec) -> object:
    """The shares of the windows that an element is in."""
    size = float(prod(spec["kernel"]))
    with grid.function(spec) as f:
        g = f["g"]
        _backward(spec, f, lambda place, index: grid.fence(g[place] / grid.const(size, "float32")))
    return f.result


@KERNELS.kernel("sq::resample")
def resample(spec: KernelSpec) -> object:
    """Neighbours along an axis, times their weights, added in order."""
    axis = spec["axis"]
    with grid.function(spec) as f:
        x, first, weight, (out,) = f["x"], f["first"], f["weight"], f.outputs
        size, inner, results = x.shape[axis], prod(x.shape[axis + 1 :]), out.shape[axis]
        taps = weight.shape[1]

        def emit(i: Expr) -> None:
            outer, rest = tirx.floordiv(i, results * inner), tirx.floormod(i, inner)
            result = tirx.floormod(tirx.floordiv(i, inner), results)
            start = grid.keep((outer * size + first[result]) * inner + rest)
            total = _accumulated(0.0)
            with grid.serial(taps, "tap") as t:
                part = grid.fence(weight[result * taps + t] * x[start + t * inner])
                total.store(0, total[0] + part)
            out.store(i, total[0])

        grid.each(out.size, emit)
    return f.result
