"""Programs as text: one instruction a line, which reads well and assembles to the same bits.

    0: load.acc  sram 10 <- dram 100  size 1x6 stride 6  push g2l
    1: load.inp  sram 23 <- dram 328  size 3x2 stride 8 pad 1,0,0,1  pop g2l
    2: gemm      uop 0..2 loop 2x1 dst 2,0 src 2,0 wgt 1,0  pop l2g push g2l
    3: alu.shr   uop 2..3 loop 6x1 dst 1,0 src 1,0 imm 5  push g2s
    4: store.out dram 432 <- sram 10  size 1x6 stride 12  pop g2s push s2g
    5: finish    pop s2g

A size is rows x columns in tiles, as are all addresses; a pad is above, below, left, right; a pair
is the index's step in the outer and the inner loop. Tokens are named by their queue. What follows
";" is a remark.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqcompile.backends.vta import isa
from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.isa import AluOp
from sqcompile.errors import EncodingError

Remarks = Callable[[isa.Instruction], Iterable[str]]
"""Lines that explain an instruction, below it."""


def listing(
    hardware: Hardware, program: Sequence[isa.Instruction], remarks: Remarks | None = None
) -> str:
    """The text of a program; `parse` makes the same instructions of it."""
    width = len(str(max(0, len(program) - 1)))
    lines = [
        f"; VTA: {len(program)} instructions, addresses in tiles",
        *(f";   {key} = {value}" for key, value in hardware.parameters().items()),
    ]
    for number, instruction in enumerate(program):
        line = f"{number:>{width}}: {line_of(instruction)}"
        place = _bytes_in_dram(hardware, instruction)
        lines.append(f"{line}  ; {place}" if place else line)
        lines += [f"{'':{width}};   {text}" for text in (remarks or _no_remarks)(instruction)]
    return "\n".join(lines) + "\n"


def line_of(instruction: isa.Instruction) -> str:
    """One instruction as text."""
    mnemonic, operands = _WRITTEN[instruction.opcode](instruction)
    tokens = [
        f"{action} {queue}" for action in ("pop", "push") for queue in instruction.queues(action)
    ]
    parts = [part for part in (operands, " ".join(tokens)) if part]
    return f"{mnemonic:<11} {'  '.join(parts)}".rstrip()


def parse(text: str) -> list[isa.Instruction]:
    """The instructions of a listing. Raises EncodingError with the line that is none."""
    program = []
    for number, line in enumerate(text.splitlines(), start=1):
        code = line.split(";")[0].strip()
        if not code:
            continue
        try:
            program.append(_parsed(re.sub(r"^\d+:\s*", "", code)))
        except EncodingError as error:
            raise EncodingError(f"line {number}: {error}") from None
    return program


def _no_remarks(instruction: isa.Instruction) -> Iterable[str]:
    return ()


def _bytes_in_dram(hardware: Hardware, instruction: isa.Instruction) -> str:
    """Where a transfer begins and how much it moves, in bytes."""
    if not isinstance(instruction, isa.Transfer) or not instruction.x_size:
        return ""
    unit = hardware.element_bytes(instruction.memory)
    size = instruction.x_size * instruction.y_size * unit
    return f"{instruction.dram_base * unit:#x}, {size} bytes"


def _transfer(one: Any) -> tuple[str, str]:
    sram, dram = f"sram {one.sram_base}", f"dram {one.dram_base}"
    if isinstance(one, isa.Load):
        mnemonic, places = f"load.{one.memory.name.lower()}", f"{sram} <- {dram}"
    else:
        mnemonic, places = f"store.{one.memory.name.lower()}", f"{dram} <- {sram}"
    pad = f" pad {','.join(map(str, one.pads))}" if any(one.pads) else ""
    return mnemonic, f"{places}  size {one.y_size}x{one.x_size} stride {one.x_stride}{pad}"


def _nest(one: Any) -> str:
    return (
        f"uop {one.uop_bgn}..{one.uop_end} loop {one.iter_out}x{one.iter_in} "
        f"dst {one.dst_out},{one.dst_in} src {one.src_out},{one.src_in}"
    )


def _gemm(one: Any) -> tuple[str, str]:
    mnemonic = "gemm.reset" if one.reset else "gemm"
    return mnemonic, f"{_nest(one)} wgt {one.wgt_out},{one.wgt_in}"


def _alu(one: Any) -> tuple[str, str]:
    # An immediate that is not used is a field all the same, and written where it is not 0.
    unused = f" unused {one.imm}" if one.imm else ""
    operand = f" imm {one.imm}" if one.use_imm else unused
    return f"alu.{one.alu_opcode.name.lower()}", f"{_nest(one)}{operand}"


_WRITTEN: dict[isa.Opcode, Callable[[Any], tuple[str, str]]] = {
    isa.Opcode.LOAD: _transfer,
    isa.Opcode.STORE: _transfer,
    isa.Opcode.GEMM: _gemm,
    isa.Opcode.ALU: _alu,
    isa.Opcode.FINISH: lambda one: ("finish", ""),
}

_SIZE = (
    r"size (?P<y_size>\d+)x(?P<x_size>\d+) stride (?P<x_stride>\d+)"
    r"( pad (?P<y_pad_0>\d+),(?P<y_pad_1>\d+),(?P<x_pad_0>\d+),(?P<x_pad_1>\d+))?"
)
_LOOPS = (
    r"uop (?P<uop_bgn>\d+)\.\.(?P<uop_end>\d+) loop (?P<iter_out>\d+)x(?P<iter_in>\d+) "
    r"dst (?P<dst_out>\d+),(?P<dst_in>\d+) src (?P<src_out>\d+),(?P<src_in>\d+)"
)
_SRAM, _DRAM = r"sram (?P<sram_base>\d+)", r"dram (?P<dram_base>\d+)"
_TOKENS = r"(?P<tokens>( ?(pop|push) \w+)*)"
_GRAMMAR: list[tuple[re.Pattern[str], type[isa.Instruction]]] = [
    (re.compile(pattern + _TOKENS), made)
    for pattern, made in (
        (rf"load\.(?P<memory>\w+) {_SRAM} <- {_DRAM} {_SIZE}", isa.Load),
        (rf"store\.(?P<memory>\w+) {_DRAM} <- {_SRAM} {_SIZE}", isa.Store),
        (rf"gemm(?P<reset>\.reset)? {_LOOPS} wgt (?P<wgt_out>\d+),(?P<wgt_in>\d+)", isa.Gemm),
        (
            rf"alu\.(?P<alu_opcode>\w+) {_LOOPS}"
            r"( (?P<use_imm>imm) (?P<imm>-?\d+)| unused (?P<unused>-?\d+))?",
            isa.Alu,
        ),
        (r"finish", isa.Finish),
    )
]


def _parsed(code: str) -> isa.Instruction:
    words = " ".join(code.split())
    for pattern, made in _GRAMMAR:
        match = pattern.fullmatch(words)
        if match:
            found = match.groupdict()
            tokens = found.pop("tokens")
            if "unused" in found:
                found["imm"] = found["imm"] or found["unused"]
                del found["unused"]
            instruction = made(**{key: _value(key, text) for key, text in found.items() if text})
            return _with_tokens(made, instruction, tokens.split())
    raise EncodingError(f"{code!r} is no instruction of the assembler")


def _value(key: str, text: str) -> Any:
    names: dict[str, Any] = {"memory": Memory, "alu_opcode": AluOp}
    if key in names:
        known = {one.name.lower(): one for one in names[key]}
        if text not in known:
            raise EncodingError(f"there is no {key} {text!r}; there are {', '.join(known)}")
        return known[text]
    return True if key in ("reset", "use_imm") else int(text)


def _with_tokens(
    made: type[isa.Instruction], instruction: isa.Instruction, words: Sequence[str]
) -> isa.Instruction:
    """`instruction` with the flags of "pop g2l push l2g"."""
    flags = {
        (flag.split("_")[0], queue): flag for flag, queue in isa.QUEUES[instruction.module].items()
    }
    set_flags = {}
    for action, queue in zip(words[::2], words[1::2], strict=True):
        if (action, queue) not in flags:
            raise EncodingError(f"{instruction.module.name} cannot {action} {queue}")
        set_flags[flags[action, queue]] = True
    return made(**{**vars(instruction), **set_flags})
