"""The input side of Winograd's convolution: rows of the image to transformed tiles.

Channels of all tiles of a tile row are one line of bytes: image rows are kept with their even
and odd columns apart, so that the four columns of a tile are four offsets into such lines, and
both transforms are sums of whole vectors whatever the number of channels is.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.winograd_ranges import INPUT, POSITIONS, SIDE, Split, padded

WIDTH = 64
"""Bytes of a vector."""


def span(start: Expr, lanes: int) -> Expr:
    """The indices of `lanes` elements from start on."""
    return nest.ramp(start, lanes) if lanes > 1 else start


def spread(value: Expr, lanes: int) -> Expr:
    """A scalar in `lanes` lanes."""
    return nest.splat(value, lanes) if lanes > 1 else value


def repeated(word: Expr, lanes: int) -> Expr:
    """A dword as 4 bytes, `lanes` times."""
    return tirx.reinterpret(f"uint8x{4 * lanes}", spread(word, lanes))


def pieces(extent: int) -> Iterator[tuple[Expr, int]]:
    """(start, lanes) that cover range(extent) exactly: a loop of whole vectors, then halves."""
    if extent // WIDTH:
        with nest.serial(extent // WIDTH, "piece") as i:
            yield i * WIDTH, WIDTH
    start, lanes = extent // WIDTH * WIDTH, WIDTH // 2
    while lanes:
        if extent - start >= lanes:
            yield start, lanes
            start += lanes
        lanes //= 2


def clear(array: Array, start: Expr, extent: int) -> None:
    """Zeros."""
    for at, lanes in pieces(extent):
        array.store(span(start + at, lanes), spread(nest.zero(array.dtype), lanes))


@dataclass(frozen=True)
class Image:
    """Images (images, height, width, channels) read in tile rows: `padding` zeros around them,
    `rows` x `tiles` tiles that step by two and overlap by two."""

    images: int
    height: int
    width: int
    channels: int
    padding: int
    rows: int
    tiles: int

    @property
    def depth(self) -> int:
        """Channels in whole dwords."""
        return padded(self.channels, 4)

    @property
    def line(self) -> int:
        """Bytes of one position of a tile row."""
        return self.tiles * self.depth


class Shifts:
    """The shifts of the reduced channels as masks: for each bit of the shift, 255 where a channel
    is doubled once more, since x86 shifts no bytes."""

    def __init__(self, exponent: Array | None, groups: int, channels: int, split: Split) -> None:
        self.counts = (split.input_bits, split.weight_bits)
        self.size = padded(channels, WIDTH)
        self.masks: tuple[Array | None, Array | None] = (None, None)
        if exponent is None:
            return
        inputs, weights = (nest.scratch(count * self.size, "uint8") for count in self.counts)
        with nest.serial(channels, "c") as c:
            shift = nest.const(groups - 1, "int32") - nest.cast(exponent[c], "int32")
            for array, count, below in ((inputs, self.counts[0], 0), (weights, *self.counts[::-1])):
                for bit in range(count):
                    yes = nest.select(shift > below + bit, nest.const(255, "int32"), 0)
                    array.store(bit * self.size + c, nest.cast(yes, "uint8"))
        self.masks = (inputs, weights)

    def input(self, value: Expr, channel: Expr, lanes: int) -> Expr:
        """Bytes of `lanes` channels from `channel` on, shifted by their share."""
        if self.masks[0] is None:
            return value
        for bit in range(self.counts[0]):
            mask = self.masks[0][span(bit * self.size + channel, lanes)]
            value = value + tirx.bitwise_and(value, mask)
        return value

    def weights(self, taps: list[Expr], channel: Expr, lanes: int) -> list[Expr]:
        """Of each tap `lanes` times the weights of four reduced channels, shifted by what inputs
        leave."""
        if self.masks[1] is None:
            return taps
        for bit in range(self.counts[1]):
            masks = self.masks[1][nest.ramp(bit * self.size + channel, 4)]
            masks = repeated(nest.bound(tirx.reinterpret("uint32", masks)), lanes)
            doubled = [tap + tirx.bitwise_and(tap, masks) for tap in taps]
            taps = nest.kept(doubled, "uint8", 4 * lanes)
        return taps


class Strip:
    """The four image rows under a tile row, as a ring: the next tile row keeps two of them.

    Row slot, parity of the column, column pair, channel; bytes modulo 256.
    """

    def __init__(self, image: Image, source: Array, shifts: Shifts) -> None:
        self.image, self.source, self.shifts = image, source, shifts
        self.half = (image.tiles + 1) * image.depth
        self.array = nest.scratch(SIDE * 2 * self.half + WIDTH, "uint8")
        clear(self.array, 0, self.array.size)

    def start(self, row: Expr, step: int) -> Expr:
        """Where image row 2 * row + step of the padded image stands."""
        return tirx.bitwise_and(2 * row + step, SIDE - 1) * (2 * self.half)

    def read(self, n: Expr, row: Expr, fresh: Expr) -> None:
        """Bring in the rows under tile row `row` of image n; all four if `fresh` or the first of
        an image, else the last two."""
        with nest.when(tirx.any(fresh, tirx.EQ(row, 0))), nest.serial(2, "step") as step:
            self._read_row(n, row, step)
        with nest.serial(2, "step") as step:
            self._read_row(n, row, step + 2)

    def _read_row(self, n: Expr, row: Expr, step: Expr) -> None:
        image = self.image
        y, base = 2 * row + step - image.padding, self.start(row, step)
        inside = tirx.all(y >= 0, y < image.height)
        with nest.when(inside), nest.serial(image.width, "x") as x:
            self._read_pixel(((n * image.height + y) * image.width + x) * image.channels, base, x)
        with nest.when(tirx.Not(inside)):
            clear(self.array, base, 2 * self.half)

    def _read_pixel(self, pixel: Expr, base: Expr, x: Expr) -> None:
        image = self.image
        column = x + image.padding
        parity = tirx.bitwise_and(column, 1) * self.half
        place = base + parity + tirx.shift_right(column, nest.const(1, "int32")) * image.depth
        for channel, lanes in pieces(image.channels):
            value = self.source[span(pixel + channel, lanes)]
            value = nest.bound(nest.cast(value, "uint8", lanes))
            value = self.shifts.input(value, channel, lanes)
            self.array.store(span(place + channel, lanes), value)

    def transform(self, row: Expr, out: Array, start: Expr, plane: int, split: Split) -> None:
        """out[position * plane + start ...] = B^T x B + bias of the tiles of tile row `row`.

        Writes whole vectors, up to WIDTH - 1 bytes more than a line.
        """
        columns = (0, self.half, self.image.depth, self.half + self.image.depth)
        with nest.serial(-(-self.image.line // WIDTH), "piece") as piece:
            mixed = [self._vertical(row, piece * WIDTH + first) for first in columns]
            for i, j in POSITIONS:
                position = i * SIDE + j
                value = _sum(INPUT[j], [mixed[column][i] for column in range(SIDE)])
                if split.biases[position]:
                    value = value + nest.splat(nest.const(split.biases[position], "uint8"), WIDTH)
                out.store(nest.ramp(position * plane + start + piece * WIDTH, WIDTH), value)

    def _vertical(self, row: Expr, place: Expr) -> list[Expr]:
        values = [
            nest.bound(self.array[nest.ramp(self.start(row, step) + place, WIDTH)])
            for step in range(SIDE)
        ]
        return [nest.bound(_sum(factors, values)) for factors in INPUT]


def _sum(factors: tuple[int, ...], values: list[Expr]) -> Expr:
    """The sum of values of factors 1 and -1, one of the first at least."""
    plus = [v for f, v in zip(factors, values, strict=True) if f == 1]
    total = plus[0]
    for value in plus[1:]:
        total = total + value
    for factor, value in zip(factors, values, strict=True):
        total = total - value if factor == -1 else total
    return total
