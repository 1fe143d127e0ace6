"""Products of 4-bit integers as such: two of them in a byte, along the reduction.

m16n8k64 takes its registers where m16n8k32 does: byte i of a row is step i there, steps 2 i and
2 i + 1 here. So a tile of bytes is a tile of nibbles of twice the steps, and only the packing
before the product and the instruction differ.

Both operands must be packed, because tensors hold a byte for each integer. A matrix is packed as
those that take group shifts are. An image keeps its layout, with half of its channels: a pair
never leaves its pixel. In a weight gradient, whose steps are pixels, what is a pair for one tap
is none for the next: it stays in bytes.

A shifted integer has more than 4 bits: it is cut into planes, as wide ones are into bytes. Two
planes of nibbles take as many instructions as one of bytes, but half of the other operand's
memory; three would take more, and stay bytes.
"""

from collections.abc import Sequence

from tvm import tirx

from sqcompile.backends.cuda import architectures, grid
from sqcompile.backends.cuda.gemm_shift import NIBBLE, Range, Shared
from sqcompile.backends.cuda.gemm_stage import WORD
from sqcompile.backends.cuda.grid import Array, Expr
from sqcompile.backends.kernels import TensorSpec

MOST_PLANES = 2
"""Of an operand."""
_IN_WORD = 32 // NIBBLE


def fit(ranges: Sequence[Range], shares: Sequence[Shared]) -> bool:
    """Whether a product of these operands, with these shares of shifts, is one of nibbles: the
    option is on, the architecture has the instruction, and the integers have 4 bits."""
    on = architectures.current()
    if not on.int4 or on.best_mma(NIBBLE) is None:
        return False
    planes = [shared.planes for shared in shares]
    return all(map(_is_nibble, ranges)) and min(planes) == 1 and max(planes) <= MOST_PLANES


def _is_nibble(range_: Range) -> bool:
    low, high = range_
    return (low >= -8 and high <= 7) or (low >= 0 and high <= 15)


def even(channels: int) -> bool:
    """Whether an image of so many channels in a group is packed: in whole words."""
    return channels % _IN_WORD == 0


def packed_image(image: Array) -> Array:
    """A launch that packs an image (N, H, W, C), C a multiple of 8: (N, H, W, C / 2) bytes."""
    *pixels, channels = image.shape
    shape = (*pixels, channels * NIBBLE // 8)
    count = image.size // _IN_WORD
    packed = grid.workspace(count * WORD, "int8")
    words = grid.viewed(packed, TensorSpec((max(count, 1),), "int32"))
    source = grid.viewed(image, TensorSpec((max(2 * count, 1),), "int32"))

    def emit(item: Expr) -> None:
        low, high = (_joined(grid.cast(source[2 * item + i], "uint32")) for i in range(2))
        both = tirx.bitwise_or(low, tirx.shift_left(high, grid.const(16, "uint32")))
        words.store(item, grid.cast(both, "int32"))

    grid.each(count, emit)
    return grid.viewed(packed, TensorSpec(shape, "int8"))


def _joined(word: Expr) -> Expr:
    """The low nibbles of a word's bytes, in its low half."""
    for mask, distance in ((0x0F0F0F0F, 4), (0x00FF00FF, 8)):
        word = grid.keep(tirx.bitwise_and(word, grid.const(mask, "uint32")))
        moved = tirx.shift_right(word, grid.const(distance, "uint32"))
        word = tirx.bitwise_or(word, moved)
    return grid.keep(tirx.bitwise_and(word, grid.const(0xFFFF, "uint32")))
