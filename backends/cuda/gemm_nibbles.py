"""Products of 4-bit integers as such: two of them in a byte, along the reduction.

m16n8k64 takes its registers where m16n8k32 does: byte i of a row is step i there, steps 2 i and
2 i + 1 here. So a tile of bytes is a tile of nibbles of twice the steps, and only the packing
before the product and the instruction differ.

Both operands must be packed, because tensors hold a byte for each integer. A matrix is packed as
those that take group shifts are; an image keeps its layout (see `gemm_images`). In a weight
gradient, whose steps are pixels, what is a pair for one tap is none for the next: the image stays
as it is, and its pixels are joined while a tile is brought (see `gemm_stage`).

A shifted integer has more than 4 bits: it is cut into planes, as wide ones are into bytes. Two
planes of nibbles take as many instructions as one of bytes, but half of the other operand's
memory; three would take more, and stay bytes.
"""

from collections.abc import Sequence

from sqcompile.backends.cuda import architectures
from sqcompile.backends.cuda.gemm_shift import NIBBLE, Range, Shared

MOST_PLANES = 2
"""Of an operand."""


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
