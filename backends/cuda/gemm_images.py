"""Images as a correlation reads them word by word: packed by a launch where they are not so.

The channels of a pixel are a part of the reduction. Where they are no multiple of four, as in the
first convolution of a network, a tile would be gathered byte by byte, with the coordinates of all
of a thread's rows in its registers; with zeros behind the channels of each pixel it is words. As
nibbles (see `gemm_nibbles`) an image has half of the bytes, and a pair never leaves its pixel.
"""

from typing import NamedTuple

from tvm import tirx

from sqcompile.backends.cuda import grid
from sqcompile.backends.cuda.gemm_shift import BYTE, NIBBLE, word_of
from sqcompile.backends.cuda.gemm_stage import WORD
from sqcompile.backends.cuda.grid import Array, Expr
from sqcompile.backends.kernels import TensorSpec


class Packed(NamedTuple):
    """An image (N, H, W, bytes) in planes of `bits`: so many channels of a group, with the zeros
    behind them."""

    image: Array
    channels: int
    bits: int

    @property
    def bytes_(self) -> int:
        """Bytes of a pixel in a group."""
        return self.channels * self.bits // BYTE


def packed_image(image: Array, groups: int, bits: int) -> Packed:
    """An image (N, H, W, C) of `groups` of channels, as it is if it has whole words, else by a
    launch."""
    *pixels, pitch = image.shape
    per_word, channels = 32 // bits, pitch // groups
    whole = -(-channels // per_word) * per_word
    made = Packed(image, whole, bits)
    if (whole == channels and bits == BYTE) or not image.size:
        return made
    words = groups * whole // per_word
    count = image.size // pitch * words
    packed = grid.workspace(count * WORD, "int8")
    stored = grid.viewed(packed, TensorSpec((max(count, 1),), "int32"))
    if whole == channels:
        source = grid.viewed(image, TensorSpec((max(2 * count, 1),), "int32"))
        grid.each(count, lambda item: stored.store(item, _halves(source, item)))
    else:
        extents = [image.size // pitch, groups, whole // per_word]
        grid.each(
            count,
            lambda item: stored.store(
                item, _gathered(image, channels, bits, grid.unravel(item, extents))
            ),
        )
    shape = (*pixels, groups * made.bytes_)
    return made._replace(image=grid.viewed(packed, TensorSpec(shape, "int8")))


def _gathered(image: Array, channels: int, bits: int, at: list[Expr]) -> Expr:
    """A word of a group's channels, those behind the last one zero."""
    pixel, group, word = at
    per_word, pitch = 32 // bits, image.shape[-1]
    values = []
    for i in range(per_word):
        channel = word * per_word + i
        place = pixel * pitch + group * channels + channel
        read = grid.cast(image[place], "int32")
        values.append(grid.keep(tirx.if_then_else(channel < channels, read, grid.zero("int32"))))
    return word_of(values, 0, bits)


def _halves(source: Array, item: Expr) -> Expr:
    """The word of nibbles of two words of bytes."""
    low, high = (_joined(grid.cast(source[2 * item + i], "uint32")) for i in range(2))
    return grid.cast(tirx.bitwise_or(low, tirx.shift_left(high, grid.const(16, "uint32"))), "int32")


def _joined(word: Expr) -> Expr:
    """The low nibbles of a word's bytes, in its low half."""
    for mask, distance in ((0x0F0F0F0F, NIBBLE), (0x00FF00FF, BYTE)):
        word = grid.keep(tirx.bitwise_and(word, grid.const(mask, "uint32")))
        moved = tirx.shift_right(word, grid.const(distance, "uint32"))
        word = tirx.bitwise_or(word, moved)
    return grid.keep(tirx.bitwise_and(word, grid.const(0xFFFF, "uint32")))
