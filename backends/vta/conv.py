"""Convolutions as correlations of tiles.

fprop and dgrad: a tile of INP is BATCH images by BLOCK channels at one pixel, and the grid is the
image. A strided dgrad has one phase for every residue of the result's coordinate.

wgrad reduces over images and pixels, so that a tile's BLOCK values are pixels, and one tap's
pixels are the next one's moved by one, which no tile index can express. Rows can: the reduced
axis of a tile is (image, output column), its planes are tiles of that, and taps of *rows* are
rows of the grid. INP holds x once for every column tap, as rows of BATCH channels; WGT holds g.
    result[c, o](kh, kw) = sum over q, oh of INP_kw[q](oh * stride + kh * dilation - padding)
                                             @ WGT[q](oh).T
is a correlation whose kernel is as high as g and whose result is as high as the kernel.

A pixel's exponent shifts g's value as it is packed; where pixels are sorted by group, a wgrad has
another form (gathered.py).

Padding is that of LOAD, unless zero is no element (an offset) or a side is wider than a LOAD's.
"""

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from sqcompile.backends.conv_geometry import Lines, Phase, backward, forward
from sqcompile.backends.vta.correlation import MOST_PADDING, Correlation, outside, plain, widened
from sqcompile.backends.vta.digits import Digits
from sqcompile.backends.vta.forms import (
    Array,
    ProductForm,
    check_epilogue,
    chunks,
    horner,
    joined,
    most_summed,
    shifted,
    stored,
)
from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.reduction import Length, Sides, factors, reduction
from sqcompile.backends.vta.spec import ConvSpec


class ConvForm(ProductForm):
    """One of the three products of a convolution, but for a wgrad with sorted groups."""

    def __init__(self, hardware: Hardware, spec: ConvSpec) -> None:
        self.spec = spec
        batch, block = hardware.batch, hardware.block
        wgrad = spec.kind == "wgrad"
        groups, images = spec.channel_groups, spec.x[0]
        self.inputs, self.outputs = spec.w[1], spec.w[0] // groups
        lines = _LINES[spec.kind](spec)
        length = _length(spec, lines)
        found = reduction(self._operands(hardware), length, block, spec.groups, spec.counts)
        inp, wgt = found.digits
        needed = [outside(axis) for axis in lines]
        loads = not inp.offset and max(map(max, needed)) <= MOST_PADDING
        self.margins = [(0, 0) if loads else sides for sides in needed]
        rows, columns = (
            widened(axis, *sides) for axis, sides in zip(lines, self.margins, strict=True)
        )
        if wgrad:
            columns = plain(spec.w[3] * -(-self.inputs // batch))
        results = self.inputs if spec.kind == "dgrad" else self.outputs
        segments = horner(found.runs)
        check_epilogue(spec, inp, wgt)
        correlation = Correlation(
            groups=groups,
            images=1 if wgrad else -(-images // batch),
            inp_planes=inp.count * found.planes,
            wgt_planes=wgt.count * found.planes,
            outputs=-(-results // block),
            rows=rows,
            columns=columns,
            kernel=(spec.y[1], 1) if wgrad else (spec.w[2], spec.w[3]),
            segments=segments,
            totals=stored(found.largest, segments, hardware, spec),
            relu=spec.relu,
            most_summed=most_summed(found.largest) if spec.sums else 0,
        )
        super().__init__(hardware, correlation, found)

    def pack(self, operands: Sequence[Array]) -> list[Array]:
        """The two operands, and the exponent if there is one -> tiles."""
        first = self._first(operands)
        second = operands[1].astype(np.int32)
        if self.spec.kind == "wgrad":
            return [self._pixels(self._padded(second)), self._gradients(first)]
        weights = self._grouped(second, 0)  # group, output, input, row, column
        if self.spec.kind == "dgrad":
            weights = weights.swapaxes(1, 2)
        return [
            self._image(self._padded(first), operands),
            self._weights(weights, operands),
        ]

    def unpack(self, tiles: Array, operands: Sequence[Array]) -> Array:
        """Tiles -> what the op gives, with what the offset left out."""
        spec = self.spec
        if spec.kind == "wgrad":
            # group, image (1), output, kh, kw and channel tile, channel, output channel
            found = tiles.reshape(*tiles.shape[:4], spec.w[3], -1, *tiles.shape[5:])[:, 0]
            found = found.transpose(0, 1, 6, 4, 5, 2, 3)  # group, out 2, in 2, kh, kw
            found = joined(joined(found, 3, self.inputs), 1, self.outputs)
            found = found.reshape(spec.w)
            if self.inp.offset:
                sums = self._first(operands).sum((0, 1, 2), dtype=np.int32)
                found = found + self.inp.offset * sums[:, None, None, None]
            return np.ascontiguousarray(found)
        # group, image tile, output, row, column, image, channel -> image 2, rows, columns, channels
        found = tiles.transpose(1, 5, 3, 4, 0, 2, 6)
        channels = self.inputs if spec.kind == "dgrad" else self.outputs
        found = joined(joined(found, 5, channels), 0, spec.x[0])
        found = found.reshape(*found.shape[:3], -1)
        if self.inp.offset:
            found = found + self.inp.offset * self._weight_sums(operands)
        return np.ascontiguousarray(found)

    def unpack_sums(self, tiles: Array, operands: Sequence[Array]) -> Array:
        """int64 (O,). Images that pad a tile have added zeros."""
        sums = super().unpack_sums(tiles, operands)[:, : self.outputs].reshape(-1)
        if self.inp.offset:
            pixels = prod(self.spec.y[:3])
            sums = sums + self.inp.offset * pixels * self._weight_sums(operands).astype(np.int64)
        return sums

    def _first(self, operands: Sequence[Array]) -> Array:
        exponent = operands[2] if self.spec.groups > 1 and self.groups is None else None
        return shifted(operands[0], exponent, self.spec.groups)

    def _operands(self, hardware: Hardware) -> Callable[[int], Sides]:
        """INP and WGT by the largest shift of the first operand."""
        kind, widths = self.spec.kind, (hardware.width(Memory.INP), hardware.width(Memory.WGT))

        def sides(most: int) -> Sides:
            values = (self.spec.first.shifted(most), self.spec.second)
            inp, wgt = values[::-1] if kind == "wgrad" else values
            # What a dgrad's offset leaves out differs from phase to phase: it has none.
            digits = Digits.of(inp, widths[0], centred=kind == "dgrad")
            return Sides((inp, wgt), (digits, Digits.of(wgt, widths[1], centred=True)))

        return sides

    def _exponents(self, operands: Sequence[Array]) -> Array:
        """(channel group, channel)."""
        found: Array = operands[2].reshape(self.spec.channel_groups, -1)
        return found

    def _weight_sums(self, operands: Sequence[Array]) -> Array:
        """Of each output's weights in a fprop, as often as their channels count: int32."""
        weights = operands[1].astype(np.int32)
        if self.groups is not None:
            by_channel = factors(self._exponents(operands), self.spec.groups)
            grouped = self._grouped(weights, 0) * by_channel[:, None, :, None, None]
            weights = grouped.reshape(weights.shape)
        return weights.sum((1, 2, 3), dtype=np.int32)

    def _sorted(self, digits: Array, operands: Sequence[Array], sort: int, axis: int) -> Array:
        """Digits with the reduced axis in planes of groups, where those have some of their own."""
        if self.groups is None:
            return digits
        places = self.groups.places(self._exponents(operands))
        return self.groups.spread(digits, places, sort, axis)

    def _padded(self, image: Array) -> Array:
        """(N, H, W, C) with the margins that loads do not make."""
        rows, columns = self.margins
        return np.pad(image, [(0, 0), rows, columns, (0, 0)])

    def _grouped(self, values: Array, axis: int) -> Array:
        """A channel axis -> (channel group, channel), the group first of all axes."""
        groups = self.spec.channel_groups
        shape = (*values.shape[:axis], groups, -1, *values.shape[axis + 1 :])
        return np.moveaxis(values.reshape(shape), axis, 0)

    def _image(self, image: Array, operands: Sequence[Array]) -> Array:
        """(N, H, W, C) -> tiles of BATCH images by BLOCK channels."""
        digits = self._grouped(self.inp.split(image), 4)  # group, digit, N, H, W, C
        digits = self._sorted(digits, operands, sort=0, axis=5)
        tiles = chunks(chunks(digits, 5, self.hardware.block), 2, self.hardware.batch)
        # group, digit, image tile, image, H, W, plane, channel
        tiles = tiles.transpose(0, 2, 1, 6, 4, 5, 3, 7)
        return self._as(tiles, self.correlation.inp_shape, self.hardware.batch)

    def _weights(self, weights: Array, operands: Sequence[Array]) -> Array:
        """(group, output, reduced, KH, KW) -> tiles of BLOCK by BLOCK."""
        block = self.hardware.block
        digits = self._sorted(self.wgt.split(weights), operands, sort=1, axis=3)
        tiles = chunks(chunks(digits, 3, block), 2, block)
        # digit, group, output tile, output, plane, reduced, KH, KW
        tiles = tiles.transpose(1, 2, 0, 4, 6, 7, 3, 5)
        return self._as(tiles, self.correlation.wgt_shape, block)

    def _pixels(self, image: Array) -> Array:
        """x (N, H, W, C) -> for every column tap, tiles of BATCH channels by BLOCK of (n, ow)."""
        spec, (_, columns) = self.spec, self.spec.axes
        before = self.margins[1][0] or columns.padding
        last = (columns.out - 1) * columns.stride + (columns.kernel - 1) * columns.dilation
        after = max(0, last + 1 - before - spec.x[2])
        if not self.margins[1][0]:
            image = np.pad(image, [(0, 0), (0, 0), (before, after), (0, 0)])
        taps = np.arange(columns.kernel)[:, None] * columns.dilation
        read = image[:, :, taps + np.arange(columns.out) * columns.stride]
        # N, H, kw, ow, C -> group, digit, kw, H, (n, ow), C
        digits = self._grouped(self.inp.split(read), 5).transpose(0, 1, 4, 3, 2, 5, 6)
        flat = digits.reshape(*digits.shape[:4], -1, digits.shape[-1])
        tiles = chunks(chunks(flat, 5, self.hardware.batch), 4, self.hardware.block)
        # group, digit, kw, H, plane, q, channel tile, channel
        tiles = tiles.transpose(0, 1, 4, 3, 2, 6, 7, 5)
        return self._as(tiles, self.correlation.inp_shape, self.hardware.batch)

    def _gradients(self, gradient: Array) -> Array:
        """g (N, OH, OW, O) -> tiles of BLOCK output channels by BLOCK of (n, ow), a row oh each."""
        digits = self._grouped(self.wgt.split(gradient), 4).transpose(0, 1, 3, 2, 4, 5)
        flat = digits.reshape(*digits.shape[:3], -1, digits.shape[-1])
        tiles = chunks(chunks(flat, 4, self.hardware.block), 3, self.hardware.block)
        # group, digit, OH, plane, q, output tile, output
        tiles = tiles.transpose(0, 5, 1, 3, 2, 6, 4)
        return self._as(tiles, self.correlation.wgt_shape, self.hardware.block)

    def _as(self, tiles: Array, shape: tuple[int, ...], rows: int) -> Array:
        return tiles.reshape(*shape, rows, self.hardware.block)


def _length(spec: ConvSpec, lines: Sequence[Lines]) -> Length:
    """wgrad's taps are rows of the gradient, with images and columns in tiles; the others' are the
    kernel's."""
    taps = spec.y[1] if spec.kind == "wgrad" else spec.w[2] * spec.w[3]
    inner = spec.x[0] * spec.y[2] if spec.kind == "wgrad" else spec.reduced
    mean = [sum(one.count * one.taps for one in axis.phases) / axis.results for axis in lines]
    return Length(inner, taps, mean[0] * mean[1])


def _reduced_rows(spec: ConvSpec) -> tuple[Lines, Lines]:
    """wgrad: the kernel's rows are results, the gradient's are taps; columns are packed."""
    rows, columns = spec.axes
    phase = Phase(0, rows.kernel, -rows.padding, rows.out, 0)
    down = Lines(rows.size, rows.kernel, 1, rows.dilation, rows.stride, 1, 1, (phase,))
    return down, plain(columns.size)


_LINES: dict[str, Callable[[ConvSpec], tuple[Lines, Lines]]] = {
    "fprop": lambda spec: (forward(spec.axes[0], False), forward(spec.axes[1], False)),
    "dgrad": lambda spec: (backward(spec.axes[0]), backward(spec.axes[1])),
    "wgrad": _reduced_rows,
}
