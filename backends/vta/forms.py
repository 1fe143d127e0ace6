"""From operands to grids of tiles and back: what every kind of program shares.

A form knows a spec on one accelerator: its instructions, how host arrays become tiles, and how
result tiles become a host array.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sqcompile.backends.vta.carry import ACC_BITS, Carry, Totals, positive, summed, totals
from sqcompile.backends.vta.correlation import Correlation, Run, Segment
from sqcompile.backends.vta.cuts import Tiling
from sqcompile.backends.vta.digits import Digits
from sqcompile.backends.vta.emit import Emitter
from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.places import places, sum_chunks
from sqcompile.backends.vta.reduction import Reduction
from sqcompile.backends.vta.spec import ConvSpec, GemmSpec
from sqcompile.backends.vta.tiling import tiled
from sqcompile.backends.vta.tir.schedule import scheduled
from sqcompile.errors import UsageError

Array = NDArray[Any]


class Grid(NamedTuple):
    """A grid of tiles in DRAM, as a scratchpad reads them."""

    name: str
    memory: Memory
    shape: tuple[int, ...]


class Form(Protocol):
    """A spec on one accelerator. Addresses are by name of a grid, "out" and "uops", in tiles;
    `carry` says what a stored integer has of the one before it in its place, `signed` whether its
    highest bit is a sign."""

    grids: tuple[Grid, ...]
    result_shape: tuple[int, ...]
    result_bits: int
    carry: Carry | None
    signed: bool

    def sum_tiles(self, overlap: bool) -> int:
        """Tiles of OUT that a second result takes in DRAM, the sums; 0 where there is none."""

    def write(self, addresses: Mapping[str, int], overlap: bool) -> tuple[bytes, bytes]:
        """Instructions and micro-ops."""

    def script(self) -> str | None:
        """The TIR that instructions are written from, as a program that overlaps has it; None where
        they are written without."""

    def pack(self, operands: Sequence[Array]) -> list[Array]:
        """Operands -> the tiles of every grid, integers (*shape, rows, columns)."""

    def unpack(self, tiles: Array, operands: Sequence[Array]) -> Array:
        """int32 (*result_shape, BATCH, BLOCK) and the same operands -> what the op gives."""

    def unpack_sums(self, tiles: Array, operands: Sequence[Array]) -> Array:
        """int32 (tiles, BATCH, BLOCK) and the same operands -> int64 sums of channels."""


class ProductForm:
    """What products have in common: their correlation says all but how operands become tiles,
    whose reduced axis lies as `reduction` says."""

    def __init__(self, hardware: Hardware, correlation: Correlation, reduction: Reduction) -> None:
        self.hardware = hardware
        self.correlation = correlation
        self.reduction = reduction
        self.inp, self.wgt = reduction.digits
        self.groups = reduction.groups
        self.grids = (
            Grid("inp", Memory.INP, correlation.inp_shape),
            Grid("wgt", Memory.WGT, correlation.wgt_shape),
        )
        self.result_shape = correlation.result_shape
        self.result_bits, self.carry, self.signed = correlation.totals

    @property
    def operations(self) -> float:
        """`Reduction.cost` of all results: two forms of a product compare by it."""
        return prod(self.result_shape) * self.reduction.cost

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

    def sum_tiles(self, overlap: bool) -> int:
        """Of all chunks, as they are tiled."""
        of = self.correlation
        if not of.most_summed:
            return 0
        chunks = 1 + max(sum_chunks(of, places(of, self.tiling(overlap))))
        return prod(of.sums_shape(chunks)) * of.sum_slices(self.hardware.width(Memory.OUT))

    @property
    def most_sum_tiles(self) -> int:
        """No tiling has more: two chunks beside each other have more results than one may have."""
        of = self.correlation
        if not of.most_summed:
            return 0
        results = of.images * of.rows.results * of.columns.results
        chunks = 1 + 2 * ((results - 1) // of.most_summed)
        return prod(of.sums_shape(chunks)) * of.sum_slices(self.hardware.width(Memory.OUT))

    def unpack_sums(self, tiles: Array, operands: Sequence[Array]) -> Array:
        """int64 (groups, padded channels): the sums of what was multiplied."""
        of = self.correlation
        lanes = tiles.reshape(of.groups, of.outputs, -1, *tiles.shape[1:])
        return lanes.sum((2, 3), dtype=np.int64).reshape(of.groups, -1)


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


def stored(
    most: int, segments: Sequence[Segment], hardware: Hardware, spec: GemmSpec | ConvSpec
) -> Totals:
    """What a program stores of sums between -most and most."""
    left, width = sum(segment.shift for segment in segments), hardware.width(Memory.OUT)
    if spec.relu:
        return positive(most)
    sums = isinstance(spec, ConvSpec) and spec.sums
    return (summed if sums else totals)(most, left, width)


def check_epilogue(spec: GemmSpec | ConvSpec, *operands: Digits) -> None:
    """Raise UsageError for an epilogue that the program cannot have."""
    if spec.relu and any(digits.offset for digits in operands):
        raise UsageError("no ReLU of it: its operands have offsets, which the host makes good")
    if isinstance(spec, ConvSpec) and spec.sums and (spec.relu or spec.kind != "fprop"):
        raise UsageError("sums are those of an fprop without ReLU")


def most_summed(most: int) -> int:
    """Integers between -most and most that add up without leaving 32 bits."""
    return ((1 << ACC_BITS - 1) - 1) // max(1, most)
