"""VTA's instructions: their fields, their bits on one hardware, what is legal.

An instruction is 128 bits: two little-endian words of 64, fields from the lowest bit up, none
across both (include/vta/hw_spec.h). `layout` is the only place that knows where a field lies.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any, ClassVar, NamedTuple

from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.errors import EncodingError

INSTRUCTION_BYTES = 16


class Opcode(IntEnum):
    """The lowest three bits."""

    LOAD = 0
    STORE = 1
    GEMM = 2
    FINISH = 3
    ALU = 4


class AluOp(IntEnum):
    """x = op(x, y), int32; SHR by a negative y shifts left."""

    MIN = 0
    MAX = 1
    ADD = 2
    SHR = 3
    MUL = 4


class Module(IntEnum):
    """The three units that run at the same time, each its instructions in order."""

    LOAD = 0
    COMPUTE = 1
    STORE = 2


TOKENS = ("pop_prev", "pop_next", "push_prev", "push_next")

QUEUES: dict[Module, dict[str, str]] = {
    Module.LOAD: {"pop_next": "g2l", "push_next": "l2g"},
    Module.COMPUTE: {
        "pop_prev": "l2g",
        "pop_next": "s2g",
        "push_prev": "g2l",
        "push_next": "g2s",
    },
    Module.STORE: {"pop_prev": "g2s", "push_prev": "s2g"},
}
"""The queue behind each token flag; a flag that a module does not have has no queue."""


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """What all instructions have: the tokens they wait for and those they leave."""

    opcode: ClassVar[Opcode]
    pop_prev: bool = False
    pop_next: bool = False
    push_prev: bool = False
    push_next: bool = False

    @property
    def module(self) -> Module:
        """The unit that runs it."""
        return Module.COMPUTE

    def queues(self, action: str) -> list[str]:
        """The queues that it pops ("pop") or pushes ("push")."""
        return [
            queue
            for flag, queue in QUEUES[self.module].items()
            if flag.startswith(action) and getattr(self, flag)
        ]


@dataclass(frozen=True, kw_only=True)
class Transfer(Instruction):
    """y_size rows of x_size tiles; a row starts x_stride tiles after the one before, in DRAM.

    In the scratchpad they are dense. x_size 0 moves nothing: only the tokens count.
    """

    memory: Memory
    sram_base: int
    dram_base: int
    y_size: int
    x_size: int
    x_stride: int
    y_pad_0: int = 0
    y_pad_1: int = 0
    x_pad_0: int = 0
    x_pad_1: int = 0

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """Tiles of zeros around: rows above, rows below, columns left, columns right."""
        return self.y_pad_0, self.y_pad_1, self.x_pad_0, self.x_pad_1


class Load(Transfer):
    """DRAM to scratchpad, with zeros around."""

    opcode = Opcode.LOAD

    @property
    def module(self) -> Module:
        """LOAD for INP and WGT; micro-ops and accumulators are loaded by COMPUTE."""
        fetched = self.memory in (Memory.INP, Memory.WGT)
        return Module.LOAD if fetched else Module.COMPUTE


class Store(Transfer):
    """OUT to DRAM."""

    opcode = Opcode.STORE

    @property
    def module(self) -> Module:
        """STORE."""
        return Module.STORE


@dataclass(frozen=True, kw_only=True)
class Nest(Instruction):
    """Micro-ops uop_bgn to uop_end (exclusive) in two loops; an index is the micro-op's plus
    outer * *_out + inner * *_in."""

    uop_bgn: int
    uop_end: int
    iter_out: int
    iter_in: int
    dst_out: int
    dst_in: int
    src_out: int
    src_in: int

    @property
    def count(self) -> int:
        """Tiles that it computes."""
        return self.iter_out * self.iter_in * (self.uop_end - self.uop_bgn)


@dataclass(frozen=True, kw_only=True)
class Gemm(Nest):
    """ACC[dst] += INP[src] @ WGT[wgt].T, or ACC[dst] = 0 with reset."""

    opcode = Opcode.GEMM
    wgt_out: int = 0
    wgt_in: int = 0
    reset: bool = False


@dataclass(frozen=True, kw_only=True)
class Alu(Nest):
    """ACC[dst] = op(ACC[dst], imm if use_imm else ACC[src])."""

    opcode = Opcode.ALU
    alu_opcode: AluOp
    use_imm: bool = False
    imm: int = 0


class Finish(Instruction):
    """Raises the done flag: the last instruction of any module."""

    opcode = Opcode.FINISH


class Field(NamedTuple):
    """`width` bits from bit `low` of the 128."""

    name: str
    low: int
    width: int
    signed: bool = False

    @property
    def range(self) -> tuple[int, int]:
        """The smallest and largest value."""
        if self.signed:
            return -(1 << self.width - 1), (1 << self.width - 1) - 1
        return 0, (1 << self.width) - 1


CLASSES: dict[Opcode, type[Instruction]] = {
    one.opcode: one for one in (Load, Store, Gemm, Finish, Alu)
}
_TYPES: dict[str, type] = {
    **dict.fromkeys((*TOKENS, "reset", "use_imm"), bool),
    "memory": Memory,
    "alu_opcode": AluOp,
}
_SIGNED = {"imm"}


@cache
def layout(hardware: Hardware, opcode: Opcode) -> tuple[Field, ...]:
    """The fields of an instruction on `hardware`, but for the opcode itself."""
    acc, inp, wgt, uop = (
        hardware.log_depth(memory) for memory in (Memory.ACC, Memory.INP, Memory.WGT, Memory.UOP)
    )
    tokens = [(name, 1) for name in TOKENS]
    loops = [("uop_bgn", uop), ("uop_end", uop + 1), ("iter_out", 14), ("iter_in", 14)]
    transfer = (
        [("memory", 3), ("sram_base", 16), ("dram_base", 32)],
        [
            *((name, 16) for name in ("y_size", "x_size", "x_stride")),
            *((name, 4) for name in ("y_pad_0", "y_pad_1", "x_pad_0", "x_pad_1")),
        ],
    )
    steps = [("dst_out", acc), ("dst_in", acc)]
    words: dict[Opcode, tuple[list[tuple[str, int]], list[tuple[str, int]]]] = {
        Opcode.LOAD: transfer,
        Opcode.STORE: transfer,
        Opcode.GEMM: (
            [("reset", 1), *loops],
            [*steps, ("src_out", inp), ("src_in", inp), ("wgt_out", wgt), ("wgt_in", wgt)],
        ),
        Opcode.ALU: (
            [("", 1), *loops],
            [
                *steps,
                *(("src_out", acc), ("src_in", acc)),
                *(("alu_opcode", 3), ("use_imm", 1), ("imm", 16)),
            ],
        ),
        Opcode.FINISH: ([], []),
    }
    first, second = words[opcode]
    return (*placed(3, [*tokens, *first]), *placed(64, second))


def placed(low: int, widths: Iterable[tuple[str, int]]) -> list[Field]:
    """Fields one after the other; one without a name is a gap."""
    found = []
    for name, width in widths:
        if name:
            found.append(Field(name, low, width, name in _SIGNED))
        low += width
    return found


def encode(hardware: Hardware, instruction: Instruction) -> bytes:
    """Its 16 bytes; raises EncodingError for a field that does not fit or is not legal."""
    bits = int(instruction.opcode)
    for field in layout(hardware, instruction.opcode):
        value = int(getattr(instruction, field.name))
        low, high = field.range
        if not low <= value <= high:
            raise EncodingError(
                f"{instruction.opcode.name} {field.name} = {value} is not in {low}..{high} "
                f"on {hardware.name}"
            )
        bits |= (value & ((1 << field.width) - 1)) << field.low
    check(hardware, instruction)
    return bits.to_bytes(INSTRUCTION_BYTES, "little")


def decode(hardware: Hardware, data: bytes) -> Instruction:
    """The instruction in 16 bytes; raises EncodingError for bits that are none."""
    if len(data) != INSTRUCTION_BYTES:
        raise EncodingError(f"an instruction has {INSTRUCTION_BYTES} bytes, not {len(data)}")
    bits = int.from_bytes(data, "little")
    number = bits & 7
    if number not in CLASSES:
        raise EncodingError(f"there is no opcode {number}")
    opcode = Opcode(number)
    used = 7
    values: dict[str, Any] = {}
    for field in layout(hardware, opcode):
        mask = (1 << field.width) - 1
        used |= mask << field.low
        values[field.name] = _typed(field, bits >> field.low & mask)
    if bits & ~used:
        stray = [place for place in range(128) if (bits & ~used) >> place & 1]
        raise EncodingError(f"{opcode.name} has unused bits that are set: {stray}")
    instruction = CLASSES[opcode](**values)
    check(hardware, instruction)
    return instruction


def _typed(field: Field, value: int) -> Any:
    if field.signed and value > field.range[1]:
        value -= 1 << field.width
    try:
        return _TYPES.get(field.name, int)(value)
    except ValueError:
        raise EncodingError(f"there is no {field.name} {value}") from None


def check(hardware: Hardware, instruction: Instruction) -> None:
    """Raise EncodingError unless the values of the fields go together on this hardware."""
    name = instruction.opcode.name
    for flag in TOKENS:
        if getattr(instruction, flag) and flag not in QUEUES[instruction.module]:
            raise EncodingError(f"{name} runs in {instruction.module.name}, which has no {flag}")
    if isinstance(instruction, Transfer):
        _check_transfer(hardware, instruction)
    if isinstance(instruction, Nest):
        if instruction.iter_out < 1 or instruction.iter_in < 1:
            raise EncodingError(f"{name} has a loop of no iteration")
        if instruction.uop_bgn >= instruction.uop_end:
            raise EncodingError(f"{name} has no micro-op: {instruction.uop_bgn} is its end")
        if instruction.uop_end > hardware.depth(Memory.UOP):
            raise EncodingError(f"{name} ends at micro-op {instruction.uop_end}, past the buffer")


def _check_transfer(hardware: Hardware, instruction: Transfer) -> None:
    name, memory = instruction.opcode.name, instruction.memory
    stores = isinstance(instruction, Store)
    if stores != (memory is Memory.OUT):
        raise EncodingError(f"{name} cannot name {memory.name}: OUT is stored, the others loaded")
    if stores and any(instruction.pads):
        raise EncodingError("STORE has no padding")
    if memory is Memory.ACC_8BIT and not hardware.widens:
        raise EncodingError("LOAD of ACC_8BIT needs 8-bit inputs and 32-bit accumulators")


def encode_program(hardware: Hardware, program: Iterable[Instruction]) -> bytes:
    """The bytes of a program; an EncodingError tells which instruction it is about."""
    return b"".join(
        _numbered(number, encode, hardware, instruction)
        for number, instruction in enumerate(program)
    )


def decode_program(hardware: Hardware, data: bytes) -> list[Instruction]:
    """The instructions of a program; an EncodingError tells which one it is about."""
    if len(data) % INSTRUCTION_BYTES:
        raise EncodingError(
            f"{len(data)} bytes are no whole number of {INSTRUCTION_BYTES}-byte instructions"
        )
    starts = range(0, len(data), INSTRUCTION_BYTES)
    return [
        _numbered(number, decode, hardware, data[start : start + INSTRUCTION_BYTES])
        for number, start in enumerate(starts)
    ]


def _numbered(number: int, function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except EncodingError as error:
        raise EncodingError(f"instruction {number}: {error}") from None
