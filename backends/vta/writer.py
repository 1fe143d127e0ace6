"""What all programs are written with: loads, operations on accumulators, results in slices.

A result is stored in as many slices as OUT is narrower than it is, and a slice is stored before
the next one may be shifted into its place. So that COMPUTE does not wait for STORE then, a block's
later slices come one by one after the work on the blocks behind it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sqcompile.backends.vta import isa
from sqcompile.backends.vta.boxes import Rectangle, rectangles
from sqcompile.backends.vta.cuts import parts
from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.isa import AluOp
from sqcompile.backends.vta.nests import (
    MOST_ITERATIONS,
    MOST_LEFT,
    MOST_RIGHT,
    Loop,
    Nest,
    Uops,
    nest,
)
from sqcompile.backends.vta.stream import Stream, Tiles
from sqcompile.backends.vta.uops import encode_uops


def blocks_at_once(slices: int) -> int:
    """Blocks that ACC should hold: one is computed while each of those before it stores a slice.
    More than 8 would leave more tokens than every implementation's queues hold."""
    return min(slices + 1, 8)


@dataclass
class _Unfinished:
    """A block with `stored` of its `count` slices in DRAM."""

    tiles: Tiles
    count: int
    store: Callable[[int], None]
    stored: int = 1


class Slots:
    """Equal parts of a scratchpad that take turns; each remembers what it holds."""

    def __init__(self, size: int, count: int) -> None:
        self.size = size
        self.held: dict[Any, int] = {}
        self.free = list(range(count))

    def take(self, key: Any) -> tuple[int, bool]:
        """(first tile, whether it already holds `key`); else the one used longest ago is given."""
        there = key in self.held
        if there:
            slot = self.held.pop(key)
        elif self.free:
            slot = self.free.pop(0)
        else:
            slot = self.held.pop(next(iter(self.held)))
        self.held[key] = slot
        return slot * self.size, there


class Writer:
    """Instructions and micro-ops of one program; `uops` is where those lie in DRAM."""

    def __init__(self, hardware: Hardware, uops: int) -> None:
        self.hardware = hardware
        self.stream = Stream(hardware)
        self.uops = Uops(hardware)
        self.uop_address = uops
        self.page_loads: list[dict[str, Any]] = []
        self.unfinished: list[_Unfinished] = []

    def finished(self) -> tuple[bytes, bytes]:
        """Instructions and micro-ops."""
        while self.unfinished:
            self._advance()
        place = self.uop_address
        for page, size in zip(self.page_loads, self.uops.sizes(), strict=True):
            page |= {"dram_base": place, "x_size": size, "x_stride": size}
            place += size
        return (
            isa.encode_program(self.hardware, self.stream.finished()),
            encode_uops(self.hardware, self.uops.all()),
        )

    def load(
        self,
        memory: Memory,
        base: int,
        dram: int,
        one: Rectangle,
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> None:
        """A rectangle of the grid at `dram`, with zeros above, below, left and right."""
        top, bottom, left, right = pads
        fields = {"memory": memory, "sram_base": base} | _moved(dram, one)
        fields |= {"y_pad_0": top, "y_pad_1": bottom, "x_pad_0": left, "x_pad_1": right}
        count = (top + one.rows + bottom) * (left + one.columns + right)
        # Upstream's functional simulator stores from ACC itself: for it, a LOAD of ACC writes what
        # a STORE reads.
        written = Memory.OUT if memory is Memory.ACC else memory
        self.stream.add(isa.Load, fields, writes=(Tiles(written, base, count),))

    def compute(
        self,
        kind: type[isa.Nest],
        loops: Nest,
        fields: dict[str, Any],
        results: Sequence[Tiles],
        reads: tuple[Tiles, ...] = (),
    ) -> None:
        """A GEMM or ALU instruction that writes only `results`, tiles of OUT."""
        begin, opened = self.uops.place(loops.uops)
        if opened:
            page = {"memory": Memory.UOP, "sram_base": 0, "dram_base": 0, "y_size": 1}
            page |= {"x_size": 0, "x_stride": 0}
            self.page_loads.append(page)
            self.stream.add(isa.Load, page)
        steps = loops.fields(begin, kind is isa.Gemm)
        self.stream.add(kind, steps | fields, reads, tuple(results))

    def clear(self, results: Tiles) -> None:
        """Accumulators = 0."""
        for first, count in _pieces(results):
            loops = nest([Loop(count, dst=1)], (first, 0, 0))
            self.compute(isa.Gemm, loops, {"reset": True}, [results])

    def alu(self, results: Sequence[Tiles], opcode: AluOp, imm: int) -> None:
        """Accumulators = opcode(accumulators, imm), of as many tiles in every place."""
        fields = {"alu_opcode": opcode, "use_imm": True, "imm": imm}
        for pieces in zip(*map(_pieces, results), strict=True):
            uops = np.array([(first, first, 0) for first, _ in pieces], np.int64)
            loops = Nest(uops, Loop(1), Loop(pieces[0][1], dst=1, src=1))
            self.compute(isa.Alu, loops, fields, results)

    def combine(self, results: Tiles, opcode: AluOp, other: int, step: int) -> None:
        """Accumulators = opcode(accumulators, those from `other` on, `step` apart)."""
        fields = {"alu_opcode": opcode, "use_imm": False, "imm": 0}
        for first, count in _pieces(results):
            source = other + (first - results.first) * step
            loops = nest([Loop(count, dst=1, src=step)], (first, source, 0))
            self.compute(isa.Alu, loops, fields, [results])

    def shift(self, results: Sequence[Tiles], right: int) -> None:
        """To the right, or to the left by a negative number, as far as one instruction can."""
        while right:
            amount = max(-MOST_LEFT, min(right, MOST_RIGHT))
            self.alu(results, AluOp.SHR, amount)
            right -= amount

    def store(
        self, base: int, dram: int, grid: Sequence[int], starts: Sequence[int], sizes: Sequence[int]
    ) -> None:
        """Tiles of OUT to a box of the grid at `dram`."""
        for one in rectangles(grid, starts, sizes):
            fields = {"memory": Memory.OUT, "sram_base": base + one.done} | _moved(dram, one)
            tiles = Tiles(Memory.OUT, base + one.done, one.rows * one.columns)
            self.stream.add(isa.Store, fields, reads=(tiles,))

    def settle(self, results: Tiles) -> None:
        """Store all slices of a block that these tiles still hold."""
        while any(one.tiles.first == results.first for one in self.unfinished):
            self._advance()

    def end_block(
        self, results: Tiles, count: int, store: Callable[[int], None], waiting: int
    ) -> None:
        """Store a block's first slice and another one of each block before it that has any, until
        no more than `waiting` blocks have; `store` stores the slice with a number."""
        store(0)
        self._advance()
        if count > 1:
            self.unfinished.append(_Unfinished(results, count, store))
        while len(self.unfinished) > waiting:
            self._advance()

    def _advance(self) -> None:
        """The next slice of every block that has any; blocks of one size are shifted at once."""
        sizes: dict[int, list[_Unfinished]] = {}
        for one in self.unfinished:
            sizes.setdefault(one.tiles.count, []).append(one)
        at_once = [
            alike[begin:end]
            for alike in sizes.values()
            for begin, end in parts(len(alike), self.uops.capacity)
        ]
        for blocks in at_once:
            self.shift([one.tiles for one in blocks], self.hardware.width(Memory.OUT))
            for one in blocks:
                one.store(one.stored)
                one.stored += 1
        self.unfinished = [one for one in self.unfinished if one.stored < one.count]


def _moved(dram: int, one: Rectangle) -> dict[str, int]:
    return {
        "dram_base": dram + one.first,
        "y_size": one.rows,
        "x_size": one.columns,
        "x_stride": one.stride,
    }


def _pieces(tiles: Tiles) -> Iterator[tuple[int, int]]:
    """(first, count) of as many tiles as one loop counts."""
    for begin, end in parts(tiles.count, MOST_ITERATIONS):
        yield tiles.first + begin, end - begin
