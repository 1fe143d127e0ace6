"""Checks that a program keeps to what all of upstream's implementations agree on.

Its functional simulator, HLS core and Chisel core differ in places; docs/vta.md lists them. What
passes here means the same on all three.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from sqcompile.backends.vta import isa, tokens
from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.isa import AluOp
from sqcompile.backends.vta.nests import MOST_LEFT, MOST_RIGHT, PORTABLE_UOPS
from sqcompile.backends.vta.uops import destinations, uops_of
from sqcompile.errors import PortabilityError


def check(hardware: Hardware, program: Sequence[isa.Instruction], dram: bytes) -> None:
    """Raise PortabilityError for the first instruction that implementations take differently;
    `dram` holds the micro-ops."""
    state = _State(hardware, dram)
    for number, instruction in enumerate(program):
        for problem in state.problems(instruction):
            raise PortabilityError(f"instruction {number} ({instruction.opcode.name}): {problem}")


def check_stores(
    hardware: Hardware, program: Sequence[isa.Instruction], graph: tokens.Graph
) -> None:
    """Raise PortabilityError for a LOAD of ACC that does not wait for every STORE of its tiles: the
    functional simulator's STORE reads ACC, the others' OUT. `graph` is that of tokens.check."""
    stored = np.zeros(hardware.depth(Memory.ACC), np.int64)
    stores = 0
    for number, one in enumerate(program):
        if isinstance(one, isa.Store):
            stores += 1
            stored[one.sram_base : one.sram_base + one.y_size * one.x_size] = stores
        elif isinstance(one, isa.Load) and one.memory is Memory.ACC and one.x_size:
            last = stored[one.sram_base : one.sram_base + _tiles(one)].max(initial=0)
            if last > graph.before[number, isa.Module.STORE]:
                raise PortabilityError(
                    f"instruction {number} (LOAD): loads ACC without waiting for a STORE of its "
                    "tiles, which the functional simulator takes from ACC"
                )


def _tiles(one: isa.Load) -> int:
    """Tiles that a load writes, those of padding included."""
    top, bottom, left, right = one.pads
    return (top + one.y_size + bottom) * (left + one.x_size + right)


class _State:
    """Micro-ops in the buffer, and whether ACC and OUT hold the same in a tile."""

    def __init__(self, hardware: Hardware, dram: bytes) -> None:
        self.hardware, self.dram = hardware, dram
        self.uops = np.zeros((hardware.depth(Memory.UOP), 3), np.int64)
        self.same = np.zeros(hardware.depth(Memory.ACC), bool)

    def problems(self, one: isa.Instruction) -> Iterator[str]:
        if isinstance(one, isa.Load):
            yield from self._load(one)
        elif isinstance(one, isa.Store):
            first = one.sram_base
            if not self.same[first : first + one.y_size * one.x_size].all():
                yield "stores a tile that a reset or a LOAD wrote last, not a GEMM or ALU operation"
        elif isinstance(one, isa.Nest):
            if one.uop_end > PORTABLE_UOPS:
                yield f"uses micro-op {one.uop_end - 1}; the Chisel core has {PORTABLE_UOPS}"
            if isinstance(one, isa.Alu):
                yield from self._alu(one)
            reset = isinstance(one, isa.Gemm) and one.reset
            self.same[destinations(one, self.uops)] = not reset

    def _load(self, one: isa.Load) -> Iterator[str]:
        padded = any(one.pads)
        if one.memory is Memory.ACC_8BIT:
            yield "loads ACC_8BIT, which only the functional simulator has"
        if one.memory is Memory.WGT and padded:
            yield "pads WGT, which HLS does not"
        if one.memory is Memory.UOP:
            if padded or one.y_size != 1:
                yield "loads micro-ops in two dimensions; HLS has one"
            for place, uop in uops_of(self.hardware, one, self.dram):
                self.uops[place] = uop
        if one.memory is Memory.ACC and one.x_size:
            self.same[one.sram_base : one.sram_base + _tiles(one)] = False

    def _alu(self, one: isa.Alu) -> Iterator[str]:
        if one.alu_opcode is AluOp.MUL:
            yield "multiplies, which only the functional simulator does"
        if not one.use_imm:
            if one.alu_opcode is AluOp.SHR:
                yield "shifts by a register: implementations read different bits of it"
            if one.imm:
                yield f"has immediate {one.imm} beside a register"
            places = destinations(one, self.uops)
            if (places[1:] == places[:-1]).any():
                yield "adds to a tile that it has just written; the Chisel core reads the old one"
            return
        if one.alu_opcode is AluOp.SHR and not -MOST_LEFT <= one.imm <= MOST_RIGHT:
            yield f"shifts by {one.imm}; all agree on {-MOST_LEFT}..{MOST_RIGHT}"
        used = self.uops[one.uop_bgn : one.uop_end]
        steps = (one.dst_out - one.src_out, one.dst_in - one.src_in)
        moves = [
            step
            for step, count in zip(steps, (one.iter_out, one.iter_in), strict=True)
            if count > 1 and step
        ]
        if moves or (used[:, 0] != used[:, 1]).any():
            yield "has an immediate and src other than dst; the Chisel core reads src"
