"""2-D pooling of images (N, H, W, C): rows in parallel, vectors over channels.

Forward takes the taps of a window in order. Backward gathers: an element of dx adds what the
windows over it give, by ascending tap, in a register. Which taps those are depends on its place
within a stride, so places of equal phase share code; windows that do not overlap need no phases,
because each element has one window at most.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.sweep import in_vectors
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec

UNROLLED_TAPS = 16
"""Windows with more taps loop over them: unrolled code would grow, and its time hardly matters."""

Part = Callable[[Expr, Expr, Expr], Expr]
"""part(element of the pooled tensor, tap number, lane) -> what a window adds to an element."""


class _Windows:
    """Where the taps of windows read. Axis 0 is the height, axis 1 the width."""

    def __init__(self, spec: KernelSpec, plain: Sequence[int], pooled: Sequence[int]) -> None:
        self.images, *self.size, self.channels = plain
        self.pooled = pooled[1:3]
        self.kernel, self.stride, self.padding = spec["kernel"], spec["stride"], spec["padding"]
        self.dilation = spec.get("dilation", (1, 1))
        self.taps = self.kernel[0] * self.kernel[1]
        self.work = pooled[0] * pooled[1] * pooled[2] * pooled[3] * self.taps
        self.apart = all(
            d == 1 and k <= s
            for d, k, s in zip(self.dilation, self.kernel, self.stride, strict=True)
        )

    def each_tap(self, emit: Callable[[Expr, Expr], None]) -> None:
        """emit(kh, kw) for every tap, in order."""
        if self.taps <= UNROLLED_TAPS:
            for tap in range(self.taps):
                emit(tap // self.kernel[1], tap % self.kernel[1])
            return
        with nest.serial(self.kernel[0], "kh") as kh, nest.serial(self.kernel[1], "kw") as kw:
            emit(kh, kw)

    def coordinate(self, axis: int, window: Expr, tap: Expr) -> Expr:
        """Where a tap of a window lies along an axis."""
        return window * self.stride[axis] + (tap * self.dilation[axis] - self.padding[axis])

    @contextmanager
    def inside(self, y: Expr, x: Expr) -> Iterator[None]:
        """if (y, x) lies in the image; no test where no window leaves it."""
        tests = []
        for axis, at in enumerate((y, x)):
            reach = self.dilation[axis] * (self.kernel[axis] - 1) - self.padding[axis]
            if self.padding[axis]:
                tests.append(at >= 0)
            if (self.pooled[axis] - 1) * self.stride[axis] + reach >= self.size[axis]:
                tests.append(at < self.size[axis])
        if not tests:
            yield
            return
        with nest.when(tirx.all(*tests)):
            yield


def _offset(n: Expr, y: Expr, x: Expr, size: Sequence[int], channels: int, c: Expr) -> Expr:
    return ((n * size[0] + y) * size[1] + x) * channels + c


def _forward(
    windows: _Windows,
    start: Callable[[int], list[Array]],
    take: Callable[[list[Array], Expr, Expr, Expr], None],
    finish: Callable[[list[Array], Expr, Expr], None],
) -> None:
    """For every vector of results: start(lanes) -> registers; take(registers, element of x, tap
    number, lane) for the taps inside the image, in order; finish(registers, element of y, lane)."""
    rows, columns = windows.pooled

    def vector(n: Expr, oh: Expr, ow: Expr, c: Expr, lanes: int) -> None:
        registers = start(lanes)

        def tap(kh: Expr, kw: Expr) -> None:
            y, x = windows.coordinate(0, oh, kh), windows.coordinate(1, ow, kw)
            with windows.inside(y, x), nest.lanes(count=lanes) as lane:
                at = _offset(n, y, x, windows.size, windows.channels, c)
                take(registers, at + lane, kh * windows.kernel[1] + kw, lane)

        windows.each_tap(tap)
        with nest.lanes(count=lanes) as lane:
            at = _offset(n, oh, ow, windows.pooled, windows.channels, c)
            finish(registers, at + lane, lane)

    with nest.parallel(windows.images * rows, windows.work, "row") as row:
        n, oh = tirx.floordiv(row, rows), tirx.floormod(row, rows)
        with nest.serial(columns, "ow") as ow:
            in_vectors(windows.channels, lambda c, lanes: vector(n, oh, ow, c, lanes))


def _filled(lanes: int, value: Expr) -> Array:
    """A register with one value in every lane."""
    register = nest.scratch(lanes, nest.dtype_of(value))
    with nest.lanes(count=lanes) as lane:
        register.store(lane, value)
    return register


@KERNELS.kernel("sq::max_pool2d")
def max_pool2d(spec: KernelSpec) -> object:
    """Taps in order, the first maximum wins."""
    with nest.function(spec) as f:
        x, (y, tap) = f["x"], f.outputs

        def start(lanes: int) -> list[Array]:
            return [_filled(lanes, _minus_infinity()), _filled(lanes, nest.zero("uint8"))]

        def take(registers: list[Array], at: Expr, number: Expr, lane: Expr) -> None:
            best, chosen = registers
            better = x[at] > best[lane]
            chosen.store(lane, nest.select(better, nest.cast(number, "uint8"), chosen[lane]))
            best.store(lane, nest.select(better, x[at], best[lane]))

        def finish(registers: list[Array], at: Expr, lane: Expr) -> None:
            y.store(at, registers[0][lane])
            tap.store(at, registers[1][lane])

        _forward(_Windows(spec, x.shape, y.shape), start, take, finish)
    return f.result


def _minus_infinity() -> Expr:
    return nest.bits_of(nest.const(-0x800000, "int32"), "float32")


@KERNELS.kernel("sq::avg_pool2d")
def avg_pool2d(spec: KernelSpec) -> object:
    """Taps summed in order, padding counted, one division."""
    with nest.function(spec) as f:
        x, (y,) = f["x"], f.outputs
        windows = _Windows(spec, x.shape, y.shape)

        def take(registers: list[Array], at: Expr, number: Expr, lane: Expr) -> None:
            registers[0].store(lane, registers[0][lane] + x[at])

        def finish(registers: list[Array], at: Expr, lane: Expr) -> None:
            y.store(at, registers[0][lane] / nest.const(windows.taps, "float32"))

        _forward(windows, lambda lanes: [_filled(lanes, nest.zero("float32"))], take, finish)
    return f.result


def _backward(windows: _Windows, dx: Array, part: Part) -> None:
    """dx = the sum of part(...) over the windows that cover an element, from +0.0."""
    if windows.apart:
        _backward_apart(windows, dx, part)
    else:
        _backward_overlapping(windows, dx, part)


def _store_vectors(
    windows: _Windows, dx: Array, n: Expr, y: Expr, x: Expr, add: Callable[[Array, Expr], None]
) -> None:
    """dx at (n, y, x): add(sums, first channel) adds to the vector `sums`."""

    def vector(c: Expr, lanes: int) -> None:
        sums = _filled(lanes, nest.zero("float32"))
        add(sums, c)
        at = _offset(n, y, x, windows.size, windows.channels, c)
        with nest.lanes(count=lanes) as lane:
            dx.store(at + lane, sums[lane])

    in_vectors(windows.channels, vector)


def _add(sums: Array, part: Part, at: Expr, tap: Expr) -> None:
    with nest.lanes(count=sums.size) as lane:
        sums.store(lane, sums[lane] + part(at + lane, tap, lane))


def _backward_apart(windows: _Windows, dx: Array, part: Part) -> None:
    (height, width), stride, kernel = windows.size, windows.stride, windows.kernel
    with nest.parallel(windows.images * height, dx.size, "row") as row:
        n, y = tirx.floordiv(row, height), tirx.floormod(row, height)
        with nest.serial(width, "x") as x:
            places = [at + p for at, p in zip((y, x), windows.padding, strict=True)]
            window = [tirx.floordiv(at, s) for at, s in zip(places, stride, strict=True)]
            tap = [tirx.floormod(at, s) for at, s in zip(places, stride, strict=True)]
            tests = [t < k for t, k, s in zip(tap, kernel, stride, strict=True) if k < s]
            tests += [w < m for w, m in zip(window, windows.pooled, strict=True)]

            def add(sums: Array, c: Expr) -> None:
                at = _offset(n, window[0], window[1], windows.pooled, windows.channels, c)
                with nest.when(tirx.all(*tests)):
                    _add(sums, part, at, tap[0] * kernel[1] + tap[1])

            _store_vectors(windows, dx, n, y, x, add)


def _backward_overlapping(windows: _Windows, dx: Array, part: Part) -> None:
    height, width = (-(-n // s) for n, s in zip(windows.size, windows.stride, strict=True))
    with nest.parallel(windows.images * height, windows.work, "row") as row:
        n, y = tirx.floordiv(row, height), tirx.floormod(row, height)
        with nest.serial(width, "x") as x:
            for phase in range(windows.stride[0] * windows.stride[1]):
                _phase(windows, dx, part, (n, y, x), divmod(phase, windows.stride[1]))


def _phase(
    windows: _Windows,
    dx: Array,
    part: Part,
    at: tuple[Expr, Expr, Expr],
    phase: tuple[int, int],
) -> None:
    """The element at `phase` of stride cell (y, x): its taps are known, their windows shifted."""
    n, *cell = at
    shifts: list[list[tuple[int, int]]] = []
    for axis in range(2):
        distances = [
            (tap, phase[axis] + windows.padding[axis] - tap * windows.dilation[axis])
            for tap in range(windows.kernel[axis])
        ]
        step = windows.stride[axis]
        shifts.append([(tap, far // step) for tap, far in distances if far % step == 0])
    place = [c * s + p for c, s, p in zip(cell, windows.stride, phase, strict=True)]
    inside = [p < m for p, m in zip(place, windows.size, strict=True)]

    def add(sums: Array, c: Expr) -> None:
        for kh, down in shifts[0]:
            for kw, right in shifts[1]:
                oh, ow = cell[0] + down, cell[1] + right
                there = [oh >= 0, oh < windows.pooled[0], ow >= 0, ow < windows.pooled[1]]
                with nest.when(tirx.all(*there)):
                    first = _offset(n, oh, ow, windows.pooled, windows.channels, c)
                    _add(sums, part, first, kh * windows.kernel[1] + kw)

    with nest.when(tirx.all(*inside)):
        _store_vectors(windows, dx, n, place[0], place[1], add)


@KERNELS.kernel("sq::max_pool2d_backward")
def max_pool2d_backward(spec: KernelSpec) -> object:
    """A window adds its gradient at the tap that won."""
    with nest.function(spec) as f:
        g, tap, (dx,) = f["g"], f["tap"], f.outputs

        def part(at: Expr, number: Expr, lane: Expr) -> Expr:
            won = tirx.EQ(tap[at], nest.cast(number, "uint8"))
            return nest.select(won, g[at], nest.zero("float32"))

        _backward(_Windows(spec, dx.shape, g.shape), dx, part)
    return f.result


@KERNELS.kernel("sq::avg_pool2d_backward")
def avg_pool2d_backward(spec: KernelSpec) -> object:
    """A window adds its share at every tap."""
    with nest.function(spec) as f:
        g, (dx,) = f["g"], f.outputs
        windows = _Windows(spec, dx.shape, g.shape)

        def part(at: Expr, number: Expr, lane: Expr) -> Expr:
            # A division by a power of two is a product to LLVM, and one feeds a sum here.
            return nest.fence(g[at] / nest.const(windows.taps, "float32"))

        _backward(windows, dx, part)
    return f.result
