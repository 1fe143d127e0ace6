"""Convolutions as products whose operands are images: implicit GEMM.

fprop and dgrad are one correlation (`conv_geometry`): a row for every result of a phase, a step of
k for every tap and channel. Weights, which are small, are packed along k first, and take the group
shifts, which belong to channels. wgrad has a row for every output channel and a column for every
tap and channel; k goes over the results of the forward convolution, and the gradient takes the
shifts. Groups of channels are a batch. Few channels in a group have kernels of their own
(`conv_direct`).
"""

from itertools import product

from tvm import tirx

from sqcompile.backends.conv_geometry import Geometry, Lines, Phase, backward, forward
from sqcompile.backends.cuda import conv_direct, gemm_nibbles, grid
from sqcompile.backends.cuda.gemm import Gemm
from sqcompile.backends.cuda.gemm_images import Packed, packed_image
from sqcompile.backends.cuda.gemm_operands import Kernel, Matrix, Operand, Taps, Windows
from sqcompile.backends.cuda.gemm_results import Finish, Index, emit
from sqcompile.backends.cuda.gemm_shift import (
    BYTE,
    NIBBLE,
    Range,
    Shared,
    Shift,
    exponent_shift,
    packed,
    shares,
    signs,
)
from sqcompile.backends.cuda.grid import Array, Expr
from sqcompile.backends.cuda.table import KERNELS
from sqcompile.backends.kernels import KernelSpec


@KERNELS.kernel("sq::conv_fprop", "sq::conv_fprop_dequantize", "sq::conv_fprop_sums")
def conv_fprop(spec: KernelSpec) -> object:
    """The correlation of the input with the weights."""
    x, w = spec.tensor("x").shape, spec.tensor("w").shape
    g = Geometry.of(spec, x, w, spec.outputs[0].shape)
    with grid.function(spec) as f:
        finish = Finish(spec, f, spec.outputs[0].shape)
        if conv_direct.fits(g):
            conv_direct.fprop(spec, f, g, finish)
        else:
            outer = g.inputs * g.taps
            axes = forward(g.rows, skip=False), forward(g.columns, skip=False)
            steps = (g.outputs * outer, outer, g.taps)
            _correlate(spec, f, axes, ("x", "w"), (g.outputs, g.inputs), steps, finish)
    return f.result


@KERNELS.kernel("sq::conv_dgrad", "sq::conv_dgrad_dequantize")
def conv_dgrad(spec: KernelSpec) -> object:
    """The correlation of the gradient with the flipped weights, a launch for each residue of the
    stride."""
    y, w = spec.tensor("g").shape, spec.tensor("w").shape
    g = Geometry.of(spec, spec.outputs[0].shape, w, y)
    with grid.function(spec) as f:
        finish = Finish(spec, f, spec.outputs[0].shape)
        if conv_direct.fits(g):
            conv_direct.dgrad(spec, f, g, finish)
        else:
            outer = g.inputs * g.taps
            axes = backward(g.rows), backward(g.columns)
            steps = (g.outputs * outer, g.taps, outer)
            _correlate(spec, f, axes, ("g", "w"), (g.inputs, g.outputs), steps, finish)
    return f.result


def _correlate(
    spec: KernelSpec,
    f: grid.Function,
    axes: tuple[Lines, Lines],
    names: tuple[str, str],
    channels: tuple[int, int],
    steps: tuple[int, int, int],
    finish: Finish,
) -> None:
    """Products of all phases. channels: (of results, of the source) in a group; steps: those of the
    weights from a group, a channel of results, a channel of the source to the next."""
    source, w = (f[name] for name in names)
    groups, (rows, columns) = spec["groups"], axes
    shifts = spec.get("shift_groups", 1) if f.get("exponent") is not None else 1
    ranges = spec.ranges(*names)
    shared, bits = _share(ranges, shifts, 1)
    image = packed_image(source, groups, bits)
    shift = None if shifts == 1 else _channel_shift(f["exponent"], shifts, image, channels[1])
    gemms = []
    for phases in product(rows.phases, columns.phases):
        a = Windows(image.image, image.bytes_, axes, phases)
        kernel = Kernel(w, axes, phases, (*channels, image.channels), steps)
        b: list[Operand] = [kernel]
        if a.rows and kernel.steps:
            b = list(packed(kernel, groups, shared, shift, bits))
        gemm = Gemm([a], b, signs(source, w, ranges, bits), groups, bits)
        gemms.append((gemm, _result_index(finish.shape, axes, phases, a, channels[0])))
    emit(gemms, spec["k_chunk"] > 0, finish)


def _result_index(
    shape: list[int],
    axes: tuple[Lines, Lines],
    phases: tuple[Phase, Phase],
    windows: Windows,
    channels: int,
) -> Index:
    """Where the results of a phase stand in an image of `shape`."""

    def index(z: Expr, m: Expr, n: Expr) -> Expr:
        image, *results = grid.unravel(m, windows.results)
        y, x = (
            result * lines.step + phase.first
            for result, lines, phase in zip(results, axes, phases, strict=True)
        )
        return ((image * shape[1] + y) * shape[2] + x) * shape[3] + z * channels + n

    return index


def _share(ranges: tuple[Range, Range], groups: int, side: int) -> tuple[Shared, int]:
    """What the operand `side` takes of shifts, all of them, and the bits of a plane."""
    nibbles = shares(ranges[side], groups, NIBBLE)
    if gemm_nibbles.fit(ranges, (Shared(), nibbles)):
        return nibbles, NIBBLE
    return shares(ranges[side], groups), BYTE


def _channel_shift(exponents: Array, groups: int, image: Packed, channels: int) -> Shift:
    """The shifts of the reduced channels, of which a group has `channels`."""

    def shift(z: Expr, k: Expr) -> Expr:
        at = z * channels + tirx.floormod(k, image.channels)
        return groups - 1 - grid.cast(exponents[at], "int32")

    return shift


@KERNELS.kernel("sq::conv_wgrad", "sq::conv_wgrad_dequantize")
def conv_wgrad(spec: KernelSpec) -> object:
    """The product of the gradient and what the taps of the input are."""
    y, x = spec.tensor("g").shape, spec.tensor("x").shape
    g = Geometry.of(spec, x, spec.outputs[0].shape, y)
    with grid.function(spec) as f:
        finish = Finish(spec, f, spec.outputs[0].shape)
        if conv_direct.fits(g):
            conv_direct.wgrad(spec, f, g, finish)
        else:
            _weight_product(spec, f, g, finish)
    return f.result


def _weight_product(spec: KernelSpec, f: grid.Function, g: Geometry, finish: Finish) -> None:
    """The gradient takes the shifts, which belong to pixels: it is packed for them, or as nibbles.
    The taps of the input are joined to nibbles as they are brought."""
    exponent, groups, shift = f.get("exponent"), spec["shift_groups"], None
    if exponent is not None and groups > 1:
        shift = exponent_shift(exponent, groups, 0, 1)
    ranges = spec.ranges("g", "x")
    shared, bits = _share(ranges, groups if shift else 1, 0)
    taps = Taps(f["x"], g, BYTE // bits)
    pitch = f["g"].shape[3]
    gradient = Matrix(f["g"], g.outputs, taps.steps, 1, pitch, g.outputs if g.groups > 1 else 0)
    a: list[Operand] = [gradient]
    if taps.steps and (shift or bits == NIBBLE):
        a = list(packed(gradient, g.groups, shared, shift, bits))
    signed = signs(f["g"], f["x"], ranges, bits)

    def index(z: Expr, m: Expr, n: Expr) -> Expr:
        tap, channel = tirx.floordiv(n, g.inputs), tirx.floormod(n, g.inputs)
        return ((z * g.outputs + m) * g.inputs + channel) * g.taps + tap

    emit([(Gemm(a, [taps], signed, g.groups, bits), index)], spec["k_chunk"] > 0, finish)
