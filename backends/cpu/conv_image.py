"""Image lines of a convolution, copied into padded scratch as the dot product reads them."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from tvm import tirx

from sqcompile.backends.conv_geometry import Lines
from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.conv_operands import Stored
from sqcompile.backends.cpu.conv_vectors import SLACK, at, filled, pieces
from sqcompile.backends.cpu.nest import Array, Expr

ALIGNED = 64
"""Elements of a cache line (half as many of 16-bit ones): stores across two lines cost twice."""
WIDENED = 8
"""Lines are widened to whole cache lines where they are at least so many times as long."""


def aligned_width(width: int, channels: int) -> int:
    """The next width whose lines are whole cache lines, if that is not much more."""
    wide = next(w for w in count(width) if w * channels % ALIGNED == 0)
    return wide if (wide - width) * WIDENED <= width else width


@dataclass(frozen=True)
class Image:
    """Padded lines [height][width][channels] of one image in scratch, as `stored` has them.

    Channels are not padded: a dot product that reads past the last one multiplies by zero.
    `factors` holds the power of two that each channel is multiplied by, repeated over a line.
    """

    rows: Lines
    columns: Lines
    channels: int
    height: int
    width: int
    stored: Stored
    factors: Array | None = None

    @property
    def lead(self) -> int:
        """Elements before the image, such that the first copied element of a line is aligned."""
        left = (self._inside()[0] - self.columns.origin) * self.channels
        return -left % ALIGNED

    @property
    def line(self) -> int:
        """Elements of a line."""
        return self.width * self.channels

    @property
    def size(self) -> int:
        """Elements of the image."""
        return self.height * self.line

    def scratch(self, images: int) -> Array:
        """Memory for some images."""
        return nest.scratch(self.lead + images * self.size + SLACK, self.stored.dot.left)

    def pack(self, x: Array, image: Expr, first: Expr, out: Array, start: Expr) -> None:
        """Write `height` lines of image `image` of x (N, H, W, C), the first one line `first`."""
        with nest.serial(self.height, "line") as line:
            row = self.rows.origin + (first + line) * self.rows.pitch
            begin = start + line * self.line
            inside = tirx.all(row >= 0, row < self.rows.source)
            with nest.when(inside):
                self.pack_line(x, image * self.rows.source + row, out, begin)
            with nest.when(tirx.Not(inside)):
                self.clear(out, begin, self.line)

    def pack_line(self, x: Array, row: Expr, out: Array, begin: Expr) -> None:
        """Write the line of row `row` (n * H + h) of x."""
        low, high = self._inside()
        left, copied = (low - self.columns.origin) * self.channels, (high - low) * self.channels
        if copied <= 0:
            self.clear(out, begin, self.line)
            return
        source = (row * self.columns.source + low) * self.channels
        self.clear(out, begin, left)
        with pieces(copied) as (piece, lanes):
            value = x[at(source + piece, lanes)]
            factor = None if self.factors is None else self.factors[at(piece, lanes)]
            out.store(at(begin + left + piece, lanes), stored(self.stored, value, factor, lanes))
        self.clear(out, begin + left + copied, self.line - left - copied)

    def pack_slices(self, x: Array, image: Expr, stride: int, first: Expr, out: Array) -> None:
        """As `pack`, of channels first, ... of x, which has `stride` of them."""
        with nest.serial(self.height, "line") as line:
            row = self.rows.origin + line * self.rows.pitch
            inside = tirx.all(row >= 0, row < self.rows.source)
            with nest.when(inside):
                source = image * self.rows.source + row
                self.pack_slice(x, source, stride, first, out, line * self.line)
            with nest.when(tirx.Not(inside)):
                self.clear(out, line * self.line, self.line)

    def pack_slice(
        self, x: Array, row: Expr, stride: int, first: Expr, out: Array, start: Expr
    ) -> None:
        """Write `channels` channels of a row's pixels, which have `stride` of them."""
        low, high = self._inside()
        left = (low - self.columns.origin) * self.channels
        if high <= low:
            self.clear(out, start, self.line)
            return
        self.clear(out, start, left)
        source = (row * self.columns.source + low) * stride + first
        with nest.serial(high - low, "pixel") as pixel, pieces(self.channels) as (piece, lanes):
            value = x[at(source + pixel * stride + piece, lanes)]
            place = at(start + left + pixel * self.channels + piece, lanes)
            out.store(place, stored(self.stored, value, None, lanes))
        end = left + (high - low) * self.channels
        self.clear(out, start + end, self.line - end)

    def _inside(self) -> tuple[int, int]:
        origin = self.columns.origin
        return max(origin, 0), min(origin + self.width, self.columns.source)

    def clear(self, out: Array, start: Expr, length: int) -> None:
        """What padding holds."""
        if length > 0:
            with pieces(length) as (piece, lanes):
                zero = nest.const(self.stored.bias, out.dtype)
                out.store(at(start + piece, lanes), filled(zero, lanes))

    def fill_factors(self, factor: Callable[[Expr], Expr]) -> None:
        """factors = factor(channel), int16, for a whole line."""
        assert self.factors is not None
        with (
            nest.serial(self.factors.size // self.channels, "pixel") as pixel,
            nest.serial(self.channels, "channel") as channel,
        ):
            self.factors.store(pixel * self.channels + channel, factor(channel))


def stored(form: Stored, value: Expr, factor: Expr | None, lanes: int) -> Expr:
    """int8 or uint8 values as the left operand, times a power of two."""
    dtype = nest.dtype_of(value).split("x")[0]
    if form.dot.bytes and factor is None:
        if dtype == "uint8":
            return value
        raw = tirx.reinterpret("uint8" if lanes == 1 else f"uint8x{lanes}", value)
        return raw ^ filled(nest.const(form.bias, "uint8"), lanes) if form.bias else raw
    wide = nest.cast(value, "int16", lanes)
    if factor is not None:
        wide = wide * factor
    if not form.dot.bytes:
        return wide
    return nest.cast(wide + filled(nest.const(form.bias, "int16"), lanes), "uint8", lanes)
