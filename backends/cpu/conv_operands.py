"""How the operands of a convolution are stored for the dot product: bytes or words, who is
biased, who carries how much of a group's shift."""

from dataclasses import dataclass

from sqcompile.backends.cpu.machine import Dot, machine

BIAS = 128
"""Added to signed values that stand on the unsigned side of a dot product of bytes."""
LARGEST = 2**31 - 1

Range = tuple[int, int]


@dataclass(frozen=True)
class Stored:
    """Both operands as the dot product takes them.

    The left one gets `bias` (0 or 128) added after its shift of at most `left_shift`; the right
    one is shifted by at most `right_shift`. `terms` products of stored values always fit int32.
    """

    dot: Dot
    bias: int
    left_shift: int
    right_shift: int
    terms: int


def _stored(dot: Dot, left: Range, right: Range, shift: int, spread: bool) -> Stored | None:
    signed = left[0] < 0
    largest, other = (max(-low, high, 1) for low, high in (left, right))
    left_room = (127 if signed else 255) if dot.bytes else 32767
    right_room = 127 if dot.bytes else 32767
    right_shift = shift
    while spread and right_shift and other << right_shift > right_room:
        right_shift -= 1
    left_shift = shift - right_shift
    if largest << left_shift > left_room or other << right_shift > right_room:
        return None
    bias = BIAS if signed and dot.bytes else 0
    each = (2 * BIAS - 1 if bias else largest << left_shift) * (other << right_shift)
    return Stored(dot, bias, left_shift, right_shift, LARGEST // each)


def store(left: Range, right: Range, shift: int, terms: int, spread: bool = True) -> Stored:
    """The fastest exact form of sums of `terms` products of the left (unsigned where it can be)
    and right operands, the product shifted by at most `shift`.

    The right operand takes as much of the shift as it has room for and the left one the rest;
    without `spread` the right one takes it all. Words where bytes have no room, or where biased
    sums would have to be split.
    """
    cpu = machine()
    form = _stored(cpu.dot, left, right, shift, spread)
    if form is not None and (not form.bias or terms <= form.terms):
        return form
    form = _stored(cpu.words, left, right, shift, spread)
    assert form is not None, "int16 holds 8 bits shifted by 7"
    return form
