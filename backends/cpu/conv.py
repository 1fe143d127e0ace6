"""Integer 2-D convolutions as products over panels that are unfolded a block at a time.

The unfolded operand (the input of fprop and wgrad, the gradient of dgrad) is never whole in
memory: a task writes the part that its results need, one panel row per channel and tap, with
copies of image rows, and multiplies it while it is in cache. Padding costs nothing then, and no
inner loop divides. dgrad with a stride multiplies the zeros between the gradients as well.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.dot import ROWS, Accumulator, Panel, padded, product
from sqcompile.backends.cpu.epilogue import Epilogue
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.products import shift_of, shifted
from sqcompile.backends.cpu.sweep import broadcast
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec

POSITIONS = 128
"""Results of a channel that one task of fprop or dgrad computes, about."""
PANEL_BYTES = 1 << 18
"""Size that a panel may have, about: a share of the L2 cache."""
WEIGHT_ROWS = 16
"""Channels and taps whose weight gradients one task computes."""
WEIGHT_STEPS = 1024
"""Positions that wgrad unfolds at a time, about."""
SHORT_SHIFTS = 8
"""Groups whose shifted 8-bit values fit int16."""

Fill = Callable[[Array, Expr, int, "Place"], None]


@dataclass(frozen=True)
class Place:
    """An image row: of group `group`, image `image`, row `height` of the result."""

    group: Expr
    image: Expr
    height: Expr


@dataclass(frozen=True)
class Geometry:
    """The sizes of a convolution: x (N, C, H, W), w (O, C / groups, KH, KW), y (N, O, OH, OW)."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    y: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @classmethod
    def of(
        cls, spec: KernelSpec, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]
    ) -> "Geometry":
        """From the spec's attributes and the three shapes."""
        return cls(x, w, y, spec["stride"], spec["padding"], spec["dilation"], spec["groups"])

    @property
    def taps(self) -> int:
        """KH * KW."""
        return self.w[2] * self.w[3]

    @property
    def inputs(self) -> int:
        """Input channels of a group."""
        return self.w[1]

    @property
    def outputs(self) -> int:
        """Output channels of a group."""
        return self.w[0] // self.groups

    def columns(self, kw: Expr) -> tuple[Expr, Expr, Expr]:
        """(first, count, shift): at tap column kw the ow of first ... first + count - 1 meet the
        image, at iw = ow * stride + shift."""
        stride, width = self.stride[1], self.x[3]
        shift = kw * self.dilation[1] - self.padding[1]
        first = tirx.max(tirx.floordiv(stride - 1 - shift, stride), 0)
        last = tirx.min(tirx.floordiv(width - 1 - shift, stride) + 1, self.y[3])
        return first, tirx.max(last - first, 0), shift


def _clear(array: Array, start: Expr, count: Expr) -> None:
    with nest.serial(count, "z") as z:
        array.store(start + z, nest.zero(array.dtype))


def _unfold_tap(
    g: Geometry, x: Array, panel: Array, base: Expr, place: Place, tap: tuple[Expr, Expr, Expr]
) -> None:
    """panel[base + ow] = x at tap (c, kh, kw) of result row `place`, zero outside the image."""
    c, kh, kw = tap
    _, channels, height, width = g.x
    _clear(panel, base, g.y[3])
    y = place.height * g.stride[0] + kh * g.dilation[0] - g.padding[0]
    with nest.when(tirx.all(y >= 0, y < height)):
        first, count, shift = g.columns(kw)
        plane = place.image * channels + place.group * g.inputs + c
        source = (plane * height + y) * width + shift
        with nest.serial(count, "i") as i:
            value = x[source + (first + i) * g.stride[1]]
            panel.store(base + first + i, nest.cast(value, panel.dtype))


def _unfold(g: Geometry, x: Array) -> Fill:
    """Rows (c, kh, kw) of a panel for fprop."""

    def fill(panel: Array, start: Expr, stride: int, place: Place) -> None:
        with nest.loops([g.inputs, g.w[2], g.w[3]]) as (c, kh, kw):
            base = start + ((c * g.w[2] + kh) * g.w[3] + kw) * stride
            _unfold_tap(g, x, panel, base, place, (c, kh, kw))

    return fill


def _fold_back(g: Geometry, gradient: Array, exponent: Array | None, shift_groups: int) -> Fill:
    """Rows (o, kh, kw) of a panel for dgrad: the gradients whose windows hold an input, with their
    shifts, zeros where the stride leaves none."""
    steps = [0] * 4 if exponent is None else broadcast(g.y, exponent.shape)

    def fill(panel: Array, start: Expr, stride: int, place: Place) -> None:
        with nest.loops([g.outputs, g.w[2], g.w[3]]) as (o, kh, kw):
            base = start + ((o * g.w[2] + kh) * g.w[3] + kw) * stride
            _clear(panel, base, g.x[3])
            reach = place.height + g.padding[0] - kh * g.dilation[0]
            oh = tirx.floordiv(reach, g.stride[0])
            on_grid = tirx.EQ(tirx.floormod(reach, g.stride[0]), 0)
            with nest.when(tirx.all(reach >= 0, on_grid, oh < g.y[2])):
                first, count, shift = g.columns(kw)
                channel = place.group * g.outputs + o
                source = ((place.image * g.y[1] + channel) * g.y[2] + oh) * g.y[3]
                with nest.serial(count, "i") as i:
                    ow = first + i
                    where = nest.linear([place.image, channel, oh, ow], steps)
                    value = shifted(gradient[source + ow], shift_of(exponent, shift_groups, where))
                    target = base + ow * g.stride[1] + shift
                    panel.store(target, nest.cast(value, panel.dtype))

    return fill


class _Blocks:
    """The tasks of fprop and dgrad: blocks of image rows of the result (N, *, height, width)."""

    def __init__(self, shape: tuple[int, ...], depth: int) -> None:
        self.height, self.width = shape[2:]
        self.rows = shape[0] * self.height
        fitting = PANEL_BYTES // max(1, 2 * depth * self.width)
        self.block = max(1, min(self.rows, -(-POSITIONS // max(1, self.width)), fitting))
        self.count = -(-self.rows // self.block)
        self.columns = padded(self.block * self.width, LANES)

    def used(self, block: Expr) -> Expr:
        """Image rows in a block."""
        return tirx.min(self.block, self.rows - block * self.block)

    def place(self, group: Expr, block: Expr, row: Expr) -> Place:
        """Where a row of a block lies."""
        index = block * self.block + row
        return Place(group, tirx.floordiv(index, self.height), tirx.floormod(index, self.height))


def _convolve(
    f: nest.Function, spec: KernelSpec, weights: Array, depth: int, channels: int, fill: Fill
) -> None:
    """Every task: fill a panel [depth][columns], multiply the weights [groups][padded
    channels][depth] with it, write its image rows."""
    epilogue, groups = Epilogue(spec, f), spec["groups"]
    blocks = _Blocks(epilogue.shape, depth)
    rows, columns = padded(channels, ROWS), blocks.columns
    work = groups * blocks.count * columns * rows * (depth + 1)
    dtype = "int16" if spec.get("shift_groups", 1) <= SHORT_SHIFTS else "int32"
    with nest.parallel(groups * blocks.count, work, "task") as task:
        group, block = tirx.floordiv(task, blocks.count), tirx.floormod(task, blocks.count)
        panel = nest.scratch(depth * columns, dtype)
        with nest.serial(blocks.used(block), "row") as row:
            fill(panel, row * blocks.width, columns, blocks.place(group, block, row))
        used = blocks.used(block) * blocks.width
        with nest.serial(depth, "k") as k:
            _clear(panel, k * columns + used, columns - used)
        acc = Accumulator.of(rows, columns, spec["k_chunk"] * spec_taps(spec))
        acc.clear()
        left = Panel(weights, group * rows * depth, depth)
        product(left, Panel(panel, 0, columns), acc, rows, columns, depth)
        with (
            nest.serial(channels, "channel") as channel,
            nest.serial(blocks.used(block), "row") as row,
        ):
            place = blocks.place(group, block, row)
            at = [place.image, group * channels + channel, place.height, 0]
            epilogue.row(acc.array, channel * columns + row * blocks.width, at, blocks.width)


def spec_taps(spec: KernelSpec) -> int:
    """KH * KW of a convolution that reads its weights."""
    shape = spec.tensor("w").shape
    return int(shape[2] * shape[3])


def _pack_weights(
    g: Geometry, w: Array, height: int, depth: int, source: Callable[[Expr, Expr, Expr], Expr]
) -> Array:
    """int32 [groups][padded height][depth], out[group][row][k] = w[source(group, row, k)]."""
    rows = padded(height, ROWS)
    out = nest.scratch(g.groups * rows * depth, "int32")
    with nest.parallel(g.groups * rows, g.groups * rows * depth, "row") as task:
        group, row = tirx.floordiv(task, rows), tirx.floormod(task, rows)
        with nest.serial(depth, "k") as k:
            inside = row < height
            index = source(group, tirx.min(row, height - 1), k)
            value = nest.select(inside, nest.cast(w[index], "int32"), nest.zero("int32"))
            out.store(task * depth + k, value)
    return out


@KERNELS.kernel("sq::conv_fprop", "sq::conv_fprop_dequantize")
def conv_fprop(spec: KernelSpec) -> object:
    """Tasks of about POSITIONS results of every output channel of a group, in parallel."""
    with nest.function(spec) as f:
        x, w = f["x"], f["w"]
        g = Geometry.of(spec, x.shape, w.shape, spec.outputs[0].shape)
        depth = g.inputs * g.taps
        weights = _pack_weights(
            g, w, g.outputs, depth, lambda group, o, k: (group * g.outputs + o) * depth + k
        )
        _convolve(f, spec, weights, depth, g.outputs, _unfold(g, x))
    return f.result


@KERNELS.kernel("sq::conv_dgrad", "sq::conv_dgrad_dequantize")
def conv_dgrad(spec: KernelSpec) -> object:
    """Tasks of about POSITIONS results of every input channel of a group, in parallel."""
    with nest.function(spec) as f:
        gradient, w, exponent = f["g"], f["w"], f.get("exponent")
        g = Geometry.of(spec, spec.outputs[0].shape, w.shape, gradient.shape)
        depth = g.outputs * g.taps

        def source(group: Expr, c: Expr, k: Expr) -> Expr:
            o, tap = tirx.floordiv(k, g.taps), tirx.floormod(k, g.taps)
            return ((group * g.outputs + o) * g.inputs + c) * g.taps + tap

        weights = _pack_weights(g, w, g.inputs, depth, source)
        fill = _fold_back(g, gradient, exponent, spec["shift_groups"])
        _convolve(f, spec, weights, depth, g.inputs, fill)
    return f.result


def _pack_gradient(g: Geometry, gradient: Array, exponent: Array | None, groups: int) -> Array:
    """[conv groups][N * OH * OW][padded output channels] with shifts, zeros beyond."""
    width = padded(g.outputs, LANES)
    images, _, height, length = g.y
    rows = images * height
    dtype = "int16" if groups <= SHORT_SHIFTS else "int32"
    out = nest.scratch(g.groups * rows * length * width, dtype)
    steps = [0] * 4 if exponent is None else broadcast(g.y, exponent.shape)
    with nest.parallel(g.groups * rows, out.size, "row") as task:
        group, row = tirx.floordiv(task, rows), tirx.floormod(task, rows)
        image, oh = tirx.floordiv(row, height), tirx.floormod(row, height)
        if width > g.outputs:
            _clear(out, task * length * width, length * width)
        with nest.serial(g.outputs, "o") as o, nest.serial(length, "ow") as ow:
            channel = group * g.outputs + o
            at = [image, channel, oh, ow]
            shift = shift_of(exponent, groups, nest.linear(at, steps))
            value = gradient[((image * g.y[1] + channel) * height + oh) * length + ow]
            place = (task * length + ow) * width + o
            out.store(place, nest.cast(shifted(value, shift), dtype))
    return out


def _divisor(number: int, limit: int) -> int:
    """The largest divisor of number that is at most limit, at least 1."""
    return next(d for d in range(max(1, min(number, limit)), 0, -1) if number % d == 0)


@KERNELS.kernel("sq::conv_wgrad", "sq::conv_wgrad_dequantize")
def conv_wgrad(spec: KernelSpec) -> object:
    """Packs the gradient with the output channels innermost, then tasks of WEIGHT_ROWS channels
    and taps in parallel, each over all images: no sum crosses threads."""
    with nest.function(spec) as f:
        gradient, x, exponent = f["g"], f["x"], f.get("exponent")
        g = Geometry.of(spec, x.shape, spec.outputs[0].shape, gradient.shape)
        epilogue, k_chunk = Epilogue(spec, f), spec["k_chunk"]
        right = _pack_gradient(g, gradient, exponent, spec["shift_groups"])
        height, length, width = g.y[2], g.y[3], padded(g.outputs, LANES)
        rows, results = g.y[0] * height, g.inputs * g.taps
        limit = max(1, WEIGHT_STEPS // max(1, length))
        block = _divisor(rows, min(limit, k_chunk) if k_chunk else limit)
        steps, strips = block * length, -(-results // WEIGHT_ROWS)
        work = g.groups * results * width * rows * length
        with nest.parallel(g.groups * strips, work, "task") as task:
            group, strip = tirx.floordiv(task, strips), tirx.floormod(task, strips)
            first = strip * WEIGHT_ROWS
            used = tirx.min(WEIGHT_ROWS, results - first)
            acc = Accumulator.of(WEIGHT_ROWS, width, k_chunk * length)
            acc.clear()
            panel = nest.scratch(WEIGHT_ROWS * steps, "int32")
            _clear(panel, used * steps, (WEIGHT_ROWS - used) * steps)
            with nest.serial(rows // block if rows else 0, "part") as part:
                with nest.serial(used, "r") as r, nest.serial(block, "row") as row:
                    index = part * block + row
                    image, oh = tirx.floordiv(index, height), tirx.floormod(index, height)
                    tap = nest.unravel(first + r, g.w[1:])
                    base = r * steps + row * length
                    _unfold_tap(g, x, panel, base, Place(group, image, oh), tuple(tap))
                start = (group * rows + part * block) * length * width
                left = Panel(panel, 0, steps)
                product(left, Panel(right, start, width), acc, WEIGHT_ROWS, width, steps)
            with nest.serial(used, "r") as r, nest.serial(g.outputs, "o") as o:
                at = [group * g.outputs + o, *nest.unravel(first + r, g.w[1:])]
                epilogue.element(acc.array[r * width + o], at)
    return f.result
