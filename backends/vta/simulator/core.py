"""What one instruction does to scratchpads and DRAM, exact; the order is somebody else's."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqcompile.backends.vta import isa, uops
from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.isa import AluOp, Module
from sqcompile.backends.vta.simulator import elements
from sqcompile.backends.vta.simulator.hazards import rounds
from sqcompile.backends.vta.simulator.products import accumulate
from sqcompile.backends.vta.simulator.schedule import Clock
from sqcompile.backends.vta.simulator.scratchpad import Indices, Scratchpad, Users
from sqcompile.errors import IllegalAccessError

NULL_PAGE = 4096
"""Upstream's driver never hands out the first page: an address in it is a mistake."""

_CHUNK = 1 << 15
"""Tile operations computed at a time: bounds what numpy takes."""

_USERS = {
    Memory.UOP: Users(Module.COMPUTE, Module.COMPUTE),
    Memory.WGT: Users(Module.LOAD, Module.COMPUTE),
    Memory.INP: Users(Module.LOAD, Module.COMPUTE),
    Memory.ACC: Users(Module.COMPUTE, Module.COMPUTE),
    Memory.OUT: Users(Module.COMPUTE, Module.STORE),
}


@dataclass
class Profile:
    """What upstream's simulator counts: bytes between DRAM and scratchpads without padding, tile
    operations without resets. ACC_8BIT counts as bytes of ACC, as there."""

    inp_load_nbytes: int = 0
    wgt_load_nbytes: int = 0
    acc_load_nbytes: int = 0
    uop_load_nbytes: int = 0
    out_store_nbytes: int = 0
    gemm_counter: int = 0
    alu_counter: int = 0

    def as_json(self) -> dict[str, int]:
        """The counters by upstream's names."""
        return asdict(self)


class Core:
    """The scratchpads of one accelerator beside a DRAM image.

    INP and WGT are kept as float32, for products.py. OUT is a buffer of its own, as in hardware:
    every GEMM and ALU operation writes its result there too, a LOAD of ACC does not; what a reset
    leaves there differs between implementations and is undefined here.
    """

    def __init__(self, hardware: Hardware, dram: bytes) -> None:
        self.hardware = hardware
        self.dram = np.frombuffer(dram, np.uint8).copy()
        self.profile = Profile()
        # A product of tiles adds up to no more than this power of two; float32 is exact to 2^24.
        power = hardware.log_block + sum(
            hardware.width(memory) - 1 for memory in (Memory.INP, Memory.WGT)
        )
        self.exact = 1 << 24 - power
        batch, block = hardware.batch, hardware.block
        tiles: dict[Memory, tuple[tuple[int, ...], type]] = {
            Memory.UOP: ((3,), np.int64),
            Memory.WGT: ((block, block), np.float32),
            Memory.INP: ((batch, block), np.float32),
            Memory.ACC: ((batch, block), np.int32),
            Memory.OUT: ((batch, block), np.int32),
        }
        self.pads = {
            memory: Scratchpad(memory.name, (hardware.depth(memory), *tile), dtype, _USERS[memory])
            for memory, (tile, dtype) in tiles.items()
        }

    def execute(self, instruction: isa.Instruction, clock: Clock) -> None:
        """Run one instruction that has its tokens; raises IllegalAccessError."""
        _RUN[type(instruction)](self, instruction, clock)

    def load(self, one: isa.Load, clock: Clock) -> None:
        """A padded rectangle of DRAM -> a dense one in a scratchpad."""
        if one.x_size == 0:
            return
        top, bottom, left, right = one.pads
        rows, columns = top + one.y_size + bottom, left + one.x_size + right
        place = Memory.ACC if one.memory is Memory.ACC_8BIT else one.memory
        pad = self.pads[place]
        indices = one.sram_base + np.arange(rows * columns)
        pad.inside(indices)
        image = np.zeros((rows, columns, *pad.data.shape[1:]), pad.data.dtype)
        for y, row in enumerate(self._rows(one)):
            image[top + y, left : left + one.x_size] = self._values(one.memory, self.dram[row])
        pad.writes(indices, clock)
        pad.data[indices] = image.reshape(-1, *pad.data.shape[1:])
        counter = f"{place.name.lower()}_load_nbytes"
        moved = one.x_size * one.y_size * self.hardware.element_bytes(place)
        setattr(self.profile, counter, getattr(self.profile, counter) + moved)

    def store(self, one: isa.Store, clock: Clock) -> None:
        """Dense tiles of OUT -> rows in DRAM, the lowest bits of every value."""
        if one.x_size == 0:
            return
        pad = self.pads[Memory.OUT]
        indices = one.sram_base + np.arange(one.y_size * one.x_size)
        pad.reads(indices, clock)
        values = pad.data[indices].reshape(one.y_size, -1)
        data = elements.packed(values, self.hardware.width(Memory.OUT))
        for row, line in zip(self._rows(one), data, strict=True):
            self.dram[row] = line
        self.profile.out_store_nbytes += data.size

    def gemm(self, one: isa.Gemm, clock: Clock) -> None:
        """ACC[dst] += INP[src] @ WGT[wgt].T, wrapping, or ACC[dst] = 0."""
        acc, out = self.pads[Memory.ACC], self.pads[Memory.OUT]
        for dst, src, wgt in self._nest(one, clock):
            if one.reset:
                acc.writes(dst, clock)
                out.writes(dst, clock)
                acc.data[dst] = 0
                out.defined[dst] = False
                continue
            for memory, indices in ((Memory.ACC, dst), (Memory.INP, src), (Memory.WGT, wgt)):
                self.pads[memory].reads(indices, clock)
            inp, weights = self.pads[Memory.INP].data, self.pads[Memory.WGT].data
            accumulate(acc.data, inp, weights, (dst, src, wgt), self.exact)
            self._results(dst, clock)
        if not one.reset:
            self.profile.gemm_counter += one.count

    def alu(self, one: isa.Alu, clock: Clock) -> None:
        """ACC[dst] = op(ACC[dst], y), one tile after the other."""
        acc = self.pads[Memory.ACC]
        for dst, src, _ in self._nest(one, clock):
            acc.reads(dst, clock)
            if not one.use_imm:
                acc.reads(src, clock)
            for some in rounds(dst, dst if one.use_imm else src, len(acc.data)):
                y = np.int32(one.imm) if one.use_imm else acc.data[src[some]]
                acc.data[dst[some]] = _ALU[one.alu_opcode](acc.data[dst[some]], y)
            self._results(dst, clock)
        self.profile.alu_counter += one.count

    def finish(self, one: isa.Finish, clock: Clock) -> None:
        """Nothing: the end is the machine's matter."""

    def _rows(self, one: isa.Transfer) -> Iterator[slice]:
        """The bytes of every row in DRAM."""
        unit = self.hardware.element_bytes(one.memory)
        for y in range(one.y_size):
            start = (one.dram_base + y * one.x_stride) * unit
            end = start + one.x_size * unit
            if start < NULL_PAGE or end > self.dram.size:
                raise IllegalAccessError(
                    f"DRAM {start:#x}..{end:#x} is outside {NULL_PAGE:#x}..{self.dram.size:#x}"
                )
            yield slice(start, end)

    def _values(self, memory: Memory, row: NDArray[np.uint8]) -> NDArray[Any]:
        """The tiles in the bytes of a row, as the scratchpad keeps them."""
        if memory is Memory.UOP:
            return uops.decode_uops(self.hardware, row.view("<u4"))
        place = Memory.ACC if memory is Memory.ACC_8BIT else memory
        values = elements.unpacked(row, self.hardware.width(memory))
        return values.reshape(-1, *self.pads[place].data.shape[1:])

    def _nest(self, one: isa.Nest, clock: Clock) -> Iterator[tuple[Indices, Indices, Indices]]:
        """dst, src, wgt of the tile operations in order, some thousands at a time."""
        pad = self.pads[Memory.UOP]
        used = np.arange(one.uop_bgn, one.uop_end)
        pad.reads(used, clock)
        steps = [
            (getattr(one, f"{name}_out", 0), getattr(one, f"{name}_in", 0))
            for name in uops.Uop._fields
        ]
        for start in range(0, one.count, _CHUNK):
            operation = np.arange(start, min(start + _CHUNK, one.count))
            loops, number = np.divmod(operation, len(used))
            outer, inner = np.divmod(loops, one.iter_in)
            dst, src, wgt = (
                pad.data[used[number], column] + outer * by_outer + inner * by_inner
                for column, (by_outer, by_inner) in enumerate(steps)
            )
            yield dst, src, wgt

    def _results(self, dst: Indices, clock: Clock) -> None:
        """What GEMM and ALU leave in ACC goes to OUT too."""
        acc, out = self.pads[Memory.ACC], self.pads[Memory.OUT]
        tiles = acc.distinct(dst)
        acc.writes(tiles, clock)
        out.writes(tiles, clock)
        out.data[tiles] = acc.data[tiles]


def _shifted(x: NDArray[np.int32], y: NDArray[np.int32]) -> NDArray[np.int32]:
    """x >> y, or x << -y; by more than 31 is undefined upstream."""
    y = np.asarray(y, np.int32)
    if y.size and int(abs(y.astype(np.int64)).max()) > 31:
        raise IllegalAccessError("shifts by more than 31, which is undefined")
    return np.where(y < 0, x << np.maximum(-y, 0), x >> np.maximum(y, 0))


_ALU: dict[AluOp, Callable[[Any, Any], NDArray[np.int32]]] = {
    AluOp.MIN: np.minimum,
    AluOp.MAX: np.maximum,
    AluOp.ADD: np.add,
    AluOp.SHR: _shifted,
    AluOp.MUL: np.multiply,
}

_RUN: dict[type, Callable[[Core, Any, Clock], None]] = {
    isa.Load: Core.load,
    isa.Store: Core.store,
    isa.Gemm: Core.gemm,
    isa.Alu: Core.alu,
    isa.Finish: Core.finish,
}
