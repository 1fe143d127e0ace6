"""2-D pooling, planes (sample and channel) in parallel.

Forward takes the taps of a window in order; backward takes the taps one after the other over the
whole plane, because that is the order in which an element in several windows sums its gradients.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec


class _Windows:
    """Where the taps of the windows of a plane read."""

    def __init__(self, spec: KernelSpec, plain: Sequence[int], pooled: Sequence[int]) -> None:
        self.height, self.width = plain[2:]
        self.rows, self.columns = pooled[2:]
        self.planes = pooled[0] * pooled[1]
        self.kernel, self.stride, self.padding = spec["kernel"], spec["stride"], spec["padding"]
        self.dilation = spec.get("dilation", (1, 1))
        self.taps = [(kh, kw) for kh in range(self.kernel[0]) for kw in range(self.kernel[1])]
        self.work = self.planes * self.rows * self.columns * len(self.taps)

    def each(self, emit: Callable[[Expr, Expr, Expr, Expr], None]) -> None:
        """emit(plane, base of the window's output row, row, column) for every window."""
        with self.plane() as plane:
            self.windows(plane, emit)

    @contextmanager
    def plane(self) -> Iterator[Expr]:
        """The parallel loop over planes."""
        with nest.parallel(self.planes, self.work, "plane") as plane:
            yield plane

    def windows(self, plane: Expr, emit: Callable[[Expr, Expr, Expr, Expr], None]) -> None:
        """emit for every window of one plane."""
        with nest.serial(self.rows, "oh") as oh, nest.serial(self.columns, "ow") as ow:
            emit(plane, (plane * self.rows + oh) * self.columns + ow, oh, ow)

    def place(self, plane: Expr, tap: tuple[int, int], oh: Expr, ow: Expr) -> tuple[Expr, Expr]:
        """(offset in the unpooled tensor, whether that is inside)."""
        y = oh * self.stride[0] + (tap[0] * self.dilation[0] - self.padding[0])
        x = ow * self.stride[1] + (tap[1] * self.dilation[1] - self.padding[1])
        inside = tirx.all(y >= 0, y < self.height, x >= 0, x < self.width)
        return (plane * self.height + y) * self.width + x, inside


def _scatter(spec: KernelSpec, part: Callable[[nest.Function, Expr, int, Array], None]) -> object:
    """dx = 0, then part(f, window, tap, slot) puts what the window adds at that tap."""
    with nest.function(spec) as f:
        g, (dx,) = f["g"], f.outputs
        windows = _Windows(spec, dx.shape, g.shape)
        size = windows.height * windows.width
        with windows.plane() as plane:
            with nest.serial(size, "i") as i:
                dx.store(plane * size + i, nest.zero("float32"))
            for index, tap in enumerate(windows.taps):

                def add(plane: Expr, window: Expr, oh: Expr, ow: Expr) -> None:
                    at, inside = windows.place(plane, tap, oh, ow)  # noqa: B023
                    with nest.when(inside):
                        slot = nest.scratch(1, "float32")
                        part(f, window, index, slot)  # noqa: B023
                        dx.store(at, dx[at] + slot[0])

                windows.windows(plane, add)
    return f.result


@KERNELS.kernel("sq::max_pool2d")
def max_pool2d(spec: KernelSpec) -> object:
    """Taps in order, the first maximum wins."""
    with nest.function(spec) as f:
        x, (y, tap) = f["x"], f.outputs
        windows = _Windows(spec, x.shape, y.shape)

        def one(plane: Expr, window: Expr, oh: Expr, ow: Expr) -> None:
            best, chosen = nest.scratch(1, "float32"), nest.scratch(1, "uint8")
            best.store(0, _minus_infinity())
            chosen.store(0, nest.zero("uint8"))
            for index, place in enumerate(windows.taps):
                at, inside = windows.place(plane, place, oh, ow)
                with nest.when(inside), nest.when(x[at] > best[0]):
                    best.store(0, x[at])
                    chosen.store(0, nest.const(index, "uint8"))
            y.store(window, best[0])
            tap.store(window, chosen[0])

        windows.each(one)
    return f.result


def _minus_infinity() -> Expr:
    return nest.bits_of(nest.const(-0x800000, "int32"), "float32")


@KERNELS.kernel("sq::max_pool2d_backward")
def max_pool2d_backward(spec: KernelSpec) -> object:
    """A window adds its gradient at the tap that won."""

    def part(f: nest.Function, window: Expr, index: int, slot: Array) -> None:
        won = tirx.EQ(f["tap"][window], nest.const(index, "uint8"))
        slot.store(0, nest.select(won, f["g"][window], nest.zero("float32")))

    return _scatter(spec, part)


@KERNELS.kernel("sq::avg_pool2d")
def avg_pool2d(spec: KernelSpec) -> object:
    """Taps summed in order, padding counted, one division."""
    with nest.function(spec) as f:
        x, (y,) = f["x"], f.outputs
        windows = _Windows(spec, x.shape, y.shape)

        def one(plane: Expr, window: Expr, oh: Expr, ow: Expr) -> None:
            total = nest.scratch(1, "float32")
            total.store(0, nest.zero("float32"))
            for place in windows.taps:
                at, inside = windows.place(plane, place, oh, ow)
                with nest.when(inside):
                    total.store(0, total[0] + x[at])
            y.store(window, total[0] / nest.const(len(windows.taps), "float32"))

        windows.each(one)
    return f.result


@KERNELS.kernel("sq::avg_pool2d_backward")
def avg_pool2d_backward(spec: KernelSpec) -> object:
    """A window adds its share at every tap."""
    taps = spec["kernel"][0] * spec["kernel"][1]

    def part(f: nest.Function, window: Expr, index: int, slot: Array) -> None:
        # A division by a power of two is a product to LLVM, and one feeds a sum here.
        slot.store(0, nest.fence(f["g"][window] / nest.const(taps, "float32")))

    return _scatter(spec, part)
