"""From operands to grids of tiles and back: what every kind of program shares.

A form knows a spec on one accelerator: its instructions, how host arrays become tiles, and how
result tiles become a host array.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sqcompile.backends.vta.carry import Carry, Totals, totals
from sqcompile.backends.vta.correlation import Correlation, Run, Segment
from sqcompile.backends.vta.cuts import Tiling
from sqcompile.backends.vta.digits import Digits
from sqcompile.backends.vta.emit import Emitter
from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.spec import Values
from sqcompile.backends.vta.tiling import tiled
from sqcompile.backends.vta.tir.schedule import scheduled

Array = NDArray[Any]


class Grid(NamedTuple):
    """A grid of tiles in DRAM, as a scratchpad reads them."""

    name: str
    memory: Memory
    shape: tuple[int, ...]


class Form(Protocol):
    """A spec on one accelerator. Addresses are by name of a grid, "out" and "uops", in tiles;
    `carry` says what a stored integer has of the one before it in its place."""

    grids: tuple[Grid, ...]
    result_shape: tuple[int, ...]
    result_bits: int
    carry: Carry | None

    def write(self, addresses: Mapping[str, int], overlap: bool) -> tuple[bytes, bytes]:
        """Instructions and micro-ops."""

    def script(self) -> str | None:
        """The TIR that instructions are written from, as a program that overlaps has it; None where
        they are written without."""

    def pack(self, operands: Sequence[Array]) -> list[Array]:
        """Operands -> the tiles of every grid, integers (*shape, rows, columns)."""

    def unpack(self, tiles: Array, operands: Sequence[Array]) -> Array:
        """int32 (*result_shape, BATCH, BLOCK) and the same operands -> what the op gives."""


class ProductForm:
    """What products have in common: their correlation says all but how operands become tiles."""

    def __init__(self, hardware: Hardware, correlation: Correlation) -> None:
        self.hardware = hardware
        self.correlation = correlation
        self.grids = (
            Grid("inp", Memory.INP, correlation.inp_shape),
            Grid("wgt", Memory.WGT, correlation.wgt_shape),
        )
        self.result_shape = correlation.result_shape
        self.result_bits, self.carry = correlation.totals

    def tiling(self, overlap: bool = True) -> Tiling:
        """How it is cut."""
        return tiled(self.hardware, self.correlation, overlap)

    def write(self, addresses: Mapping[str, int], overlap: bool) -> tuple[bytes, bytes]:
        """Instructions and micro-ops."""
        tiling = self.tiling(overlap)
        return Emitter(self.hardware, self.correlation, tiling, addresses).run()

    def script(self) -> str:
        """The function as scheduled, and with its pipeline."""
        return scheduled(self.hardware, self.correlation, self.tiling()).script()


def shifted(operand: Array, exponent: Array | None, groups: int) -> Array:
    """operand << (groups - 1 - exponent), int32."""
    wide = operand.astype(np.int32)
    return wide if exponent is None else wide << (groups - 1 - exponent.astype(np.int32))


def chunks(values: Array, axis: int, length: int) -> Array:
    """An axis -> two, (count, length), with zeros after its end where it is no multiple."""
    axis %= values.ndim
    count = -(-values.shape[axis] // length)
    missing = count * length - values.shape[axis]
    if missing:
        pads = [(0, missing if number == axis else 0) for number in range(values.ndim)]
        values = np.pad(values, pads)
    return values.reshape(*values.shape[:axis], count, length, *values.shape[axis + 1 :])


def joined(tiles: Array, axis: int, size: int) -> Array:
    """The inverse of `chunks` for an axis of `size`: axes (count, length) -> one."""
    flat = tiles.reshape(*tiles.shape[:axis], -1, *tiles.shape[axis + 2 :])
    return flat[(slice(None),) * axis + (slice(size),)]


def digit_runs(inp: Digits, wgt: Digits, planes: int) -> list[tuple[int, Run]]:
    """(power of two, planes that meet) of all pairs of digits; digit i of an operand has planes
    i * planes onwards."""
    return [
        (i * inp.width + j * wgt.width, Run(i * planes, j * planes, planes))
        for i in range(inp.count)
        for j in range(wgt.count)
    ]


def horner(weighted: Sequence[tuple[int, Run]]) -> tuple[Segment, ...]:
    """Runs of planes whose products count 2^weight times, the heaviest first."""
    weights: dict[int, list[Run]] = {0: []}
    for weight, run in weighted:
        weights.setdefault(weight, []).append(run)
    order = sorted(weights, reverse=True)
    shifts = [0, *(high - low for high, low in pairwise(order))]
    return tuple(
        Segment(shift, tuple(weights[weight])) for shift, weight in zip(shifts, order, strict=True)
    )


def bound(inp: Digits, wgt: Digits, values: tuple[Values, Values], length: int) -> int:
    """The largest absolute value of a sum of `length` products of the operands less their
    offsets."""
    found = length
    for digits, of in zip((inp, wgt), values, strict=True):
        found *= max(abs(of.low - digits.offset), abs(of.high - digits.offset))
    return found


def stored(most: int, segments: Sequence[Segment], hardware: Hardware) -> Totals:
    """What a program stores of sums between -most and most."""
    left = sum(segment.shift for segment in segments)
    return totals(most, left, hardware.width(Memory.OUT))
