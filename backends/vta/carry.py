"""Accumulators that are not cleared: what a block leaves in them is taken off on the host.

When the last slice of a result is stored, its accumulator holds what is above the slices before
it. The next block in its place adds to that instead of to zero, which saves one tile operation for
every tile of results, and what is stored is

    total = sum + (total that was there before >> right) << left

where `left` is what segments shift the accumulators by between products. The host has both totals.
They take hardly more bits than the sums, as only the bits above the last slice are carried. Where
accumulators are cleared in between (`epilogues.py`), nothing is taken off.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sqcompile.backends.vta import isa
from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.uops import destinations, uops_of

ACC_BITS = 32


class Carry(NamedTuple):
    """What a total has of the one before: shifted right, then left."""

    right: int
    left: int

    def of(self, totals: NDArray[np.int32]) -> NDArray[np.int32]:
        """What they leave behind."""
        return totals >> self.right << self.left


class Totals(NamedTuple):
    """Bits of the integers that are stored, what they carry (None: they are sums), and whether the
    highest bit is a sign."""

    bits: int
    carry: Carry | None
    signed: bool = True


def slices_of(bits: int, width: int) -> int:
    """Slices of `width` bits that a result of so many has in DRAM."""
    return -(-bits // width)


def totals(bound: int, left: int, width: int) -> Totals:
    """For sums between -bound and bound that leave in slices of `width` bits. Nothing is carried
    where that takes a slice more, or grows from block to block."""
    bits = min(ACC_BITS, bound.bit_length() + 1)
    slices = slices_of(bits, width)
    carry = Carry(width * (slices - 1), left)
    if slices * width >= ACC_BITS:  # integers modulo 2^32, whatever is added
        return Totals(ACC_BITS, carry)
    if carry.right <= left:
        return Totals(bits, None)
    # most = bound + ((most >> right) + 1 << left) has a solution, for right > left
    gain = 1 << carry.right - left
    most = (bound + (1 << left)) * gain // (gain - 1) + 1
    grown = most.bit_length() + 1
    return Totals(bits, None) if slices_of(grown, width) > slices else Totals(grown, carry)


def positive(bound: int) -> Totals:
    """For integers between 0 and bound. A ReLU leaves nothing that could be taken off: accumulators
    are cleared."""
    return Totals(max(1, bound.bit_length()), None, signed=False)


def summed(bound: int, left: int, width: int) -> Totals:
    """For sums between -bound and bound that are added up in the scratchpad. Whole totals may be
    carried: what is there in the end is their sum. What is left of a total may not."""
    found = totals(bound, left, width)
    if found.carry == Carry(0, 0):
        return found
    return Totals(min(ACC_BITS, bound.bit_length() + 1), None)


def befores(
    hardware: Hardware, program: Sequence[isa.Instruction], dram: bytes, out: int, count: int
) -> NDArray[np.int64]:
    """(count,) by tile of the results from tile `out` of DRAM on, the one whose first slice was
    stored from the same place of the scratchpad before, and not cleared since; -1 for none. `dram`
    holds the micro-ops."""
    held: dict[int, int] = {}
    uops = np.zeros((hardware.depth(Memory.UOP), 3), np.int64)
    found = np.full(count, -1, np.int64)
    for one in program:
        for place, uop in uops_of(hardware, one, dram):
            uops[place] = uop
        if isinstance(one, isa.Gemm) and one.reset:
            for place in destinations(one, uops).tolist():
                held.pop(place, None)
        if not isinstance(one, isa.Store) or not 0 <= one.dram_base - out < count:
            continue
        rows = np.arange(one.y_size)[:, None] * one.x_stride
        tiles = (one.dram_base - out + rows + np.arange(one.x_size)).reshape(-1).tolist()
        for place, tile in enumerate(tiles, one.sram_base):
            found[tile] = held.get(place, -1)
            held[place] = tile
    return found


def taken_off(stored: NDArray[np.int32], before: NDArray[np.int64], carry: Carry) -> NDArray[Any]:
    """(tiles, values) of totals -> of sums."""
    carried = carry.of(stored)[before]
    carried[before < 0] = 0
    return stored - carried
