"""Depthwise convolutions: every channel for itself, so vectors run over channels and each product
is one lane's. There is nothing for a dot product to add up."""

from collections.abc import Callable
from math import prod

from tvm import tirx

from sqcompile.backends.conv_geometry import Geometry, backward, forward
from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.channel_sums import sums_of
from sqcompile.backends.cpu.conv_correlate import Block, Correlation, blocks
from sqcompile.backends.cpu.conv_image import Image
from sqcompile.backends.cpu.conv_operands import Range, Stored
from sqcompile.backends.cpu.conv_vectors import at, filled, pick, shift_of, shifts
from sqcompile.backends.cpu.epilogue import Epilogue
from sqcompile.backends.cpu.machine import machine
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.kernels import KernelSpec

PIXELS = 8
"""Results of a channel vector that are computed together."""


def fits(spec: KernelSpec) -> bool:
    """One input and one output channel a group, and several groups."""
    shape = spec["weight_shape"] if "wgrad" in spec.op else spec.tensor("w").shape
    return bool(spec["groups"] > 1 and shape[1] == 1 and shape[0] == spec["groups"])


def _words(first: Range, second: Range, shift: int) -> Stored:
    """Both operands as 16-bit values, the shift on the first one."""
    largest = [max(-low, high, 1) for low, high in (first, second)]
    each = (largest[0] << shift) * largest[1]
    return Stored(machine().words, 0, shift, 0, (2**31 - 1) // each)


def fprop(spec: KernelSpec) -> object:
    """Tasks of some rows or images, every channel."""
    with nest.function(spec) as f:
        g = Geometry.of(spec, f["x"].shape, f["w"].shape, spec.outputs[0].shape)
        groups, shift = shifts(spec, f)
        form = _words(*spec.ranges("x", "w"), groups - 1)
        rows, columns = forward(g.rows, skip=True), forward(g.columns, skip=False)
        c = Correlation(g.images, g.groups, 1, 1, rows, columns, form)
        _correlate(c, f, spec, (f["x"], f["w"], g), shift)
    return f.result


def dgrad(spec: KernelSpec) -> object:
    """As fprop, over the gradient."""
    with nest.function(spec) as f:
        g = Geometry.of(spec, spec.outputs[0].shape, f["w"].shape, f["g"].shape)
        groups, shift = shifts(spec, f)
        form = _words(*spec.ranges("g", "w"), groups - 1)
        c = Correlation(g.images, g.groups, 1, 1, backward(g.rows), backward(g.columns), form)
        _correlate(c, f, spec, (f["g"], f["w"], g), shift)
    return f.result


def _correlate(
    c: Correlation,
    f: nest.Function,
    spec: KernelSpec,
    operands: tuple[Array, Array, Geometry],
    shift: Callable[[Expr], Expr] | None,
) -> None:
    source, w, g = operands
    epilogue = Epilogue(spec, f)
    if not epilogue.out.size:
        return
    turned = _turned(w, g)
    lanes = min(machine().lanes, 1 << (g.groups.bit_length() - 1))
    vectors = -(-g.groups // lanes)

    def first(vector: Expr) -> Expr:
        """The first channel of a vector; the last one overlaps its neighbour."""
        start = vector * lanes
        return tirx.min(start, g.groups - lanes) if g.groups % lanes else start

    sums = sums_of(spec, f, prod(c.cut()), vectors, lanes)
    with blocks(c, epilogue, source, shift, 1) as (block, _):
        if sums is not None:
            sums.clear(block.index * vectors, vectors)
        pixels = min(PIXELS, prod(block.extents))
        phases = [len(c.rows.phases), len(c.columns.phases)]
        with nest.loops(phases, "p") as (row, column), block.tiles(pixels) as (start, again):
            place = [block.pixel(start + k, row, column) for k in range(pixels)]
            with nest.serial(vectors, "vector") as vector:
                weights = turned, g.columns.kernel
                results = _tile(block, row, column, weights, place, first(vector), lanes)
                if sums is not None:
                    sums.add(block.index * vectors + vector, [results], again)
    if sums is not None:
        sums.finish(vectors, lambda vector: (first(vector), lanes))


def _turned(weights: Array, g: Geometry) -> Array:
    """[tap][channel] int32."""
    out = nest.scratch(g.taps * g.groups, "int32")
    with nest.serial(g.taps, "tap") as tap, nest.serial(g.groups, "channel") as channel:
        value = nest.cast(weights[channel * g.taps + tap], "int32")
        out.store(tap * g.groups + channel, value)
    return out


def _tile(
    block: Block,
    row: Expr,
    column: Expr,
    weights: tuple[Array, int],
    place: list[tuple[Expr, list[Expr]]],
    channel: Expr,
    lanes: int,
) -> list[Expr]:
    """Writes the results at `place` of a vector of channels, and returns them."""
    c, image = block.c, block.image
    here = at(0, lanes)
    sums = [nest.scratch(lanes, "int32") for _ in place]
    for one in sums:
        one.store(here, filled(nest.zero("int32"), lanes))
    axes = (c.rows, row), (c.columns, column)
    first = [pick(i, [p.kernel for p in lines.phases]) for lines, i in axes]
    taps = [pick(i, [p.taps for p in lines.phases]) for lines, i in axes]
    turned, width = weights
    with nest.loops(taps, "tap") as (kh, kw):
        line = first[0] + kh * c.rows.kernel_step
        tap = line * width + first[1] + kw * c.columns.kernel_step
        weight = turned[at(tap * image.channels + channel, lanes)]
        away = kh * c.rows.spacing * image.line + kw * c.columns.spacing * image.channels
        for one, (base, _) in zip(sums, place, strict=True):
            value = block.scratch[at(base + away + channel, lanes)]
            one.store(here, one[here] + nest.cast(value, "int32", lanes) * weight)
    wide = block.epilogue.out.dtype == "int64"
    results = [nest.cast(one[here], "int64", lanes) if wide else one[here] for one in sums]
    for value, (_, where) in zip(results, place, strict=True):
        block.epilogue.vector(value, [*where, channel], lanes)
    return results


def wgrad(spec: KernelSpec) -> object:
    """A task for every vector of channels, over all images."""
    with nest.function(spec) as f:
        x, gradient, exponent = f["x"], f["g"], f.get("exponent")
        g = Geometry.of(spec, x.shape, spec.outputs[0].shape, gradient.shape)
        groups = spec["shift_groups"] if exponent is not None else 1
        form = _words(*spec.ranges("g", "x"), groups - 1)
        epilogue = Epilogue(spec, f)
        lanes = min(machine().lanes, 1 << (g.groups.bit_length() - 1))
        tokens = g.images * g.rows.out * g.columns.out
        kind = "int32" if tokens <= form.terms else "int64"
        count = -(-g.groups // lanes)
        with nest.parallel(count, tokens * g.groups * g.taps, "task") as task:
            channel = task * lanes
            if g.groups % lanes:
                channel = tirx.min(channel, g.groups - lanes)
            sums = _token_sums(g, form, (x, gradient), (exponent, groups), channel, lanes, kind)
            with nest.loops([g.taps, lanes], "w") as (tap, lane):
                kh, kw = nest.unravel(tap, [g.rows.kernel, g.columns.kernel])
                value = sums[tap * lanes + lane]
                if epilogue.out.dtype != "float32":
                    value = nest.cast(value, epilogue.out.dtype)
                epilogue.element(value, [channel + lane, 0, kh, kw])
    return f.result


def _token_sums(
    g: Geometry,
    form: Stored,
    operands: tuple[Array, Array],
    shift: tuple[Array | None, int],
    channel: Expr,
    lanes: int,
    kind: str,
) -> Array:
    """[tap][lanes] of a vector of channels; a line of taps at a time stays in registers."""
    x, gradient = operands
    rows, columns = forward(g.rows, skip=True), forward(g.columns, skip=False)
    height, width = rows.lines(g.rows.out), columns.lines(g.columns.out)
    image = Image(rows, columns, lanes, height, width, form)
    scratch, sums = image.scratch(1), nest.scratch(g.taps * lanes, kind)
    with nest.serial(g.taps, "tap") as tap:
        sums.store(at(tap * lanes, lanes), filled(nest.zero(kind), lanes))
    with nest.serial(g.images, "image") as n:
        image.pack_slices(x, n, g.groups, channel, scratch)
        with nest.serial(g.rows.kernel, "kh") as kh:
            across = range(g.columns.kernel)
            held = [nest.scratch(lanes, kind) for _ in across]
            for kw in across:
                first = at((kh * g.columns.kernel + kw) * lanes, lanes)
                held[kw].store(at(0, lanes), sums[first])
            with nest.loops([g.rows.out, g.columns.out], "token") as (oh, ow):
                token = (n * g.rows.out + oh) * g.columns.out + ow
                value = nest.cast(gradient[at(token * g.groups + channel, lanes)], "int32", lanes)
                if shift[0] is not None:
                    left = shift_of(shift[0], shift[1], token)
                    value = tirx.shift_left(value, filled(left, lanes))
                line = oh * rows.stride + kh * rows.spacing
                start = (line * width + ow * columns.stride) * lanes
                for kw in across:
                    seen = scratch[at(start + kw * columns.spacing * lanes, lanes)]
                    term = value * nest.cast(seen, "int32", lanes)
                    term = term if kind == "int32" else nest.cast(term, kind, lanes)
                    held[kw].store(at(0, lanes), held[kw][at(0, lanes)] + term)
            for kw in across:
                first = at((kh * g.columns.kernel + kw) * lanes, lanes)
                sums.store(first, held[kw][at(0, lanes)])
    return sums
