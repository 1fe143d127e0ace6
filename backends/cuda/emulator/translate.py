"""From a parsed kernel to a C++ function, one statement after the other."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from sqcompile.backends.cuda.emulator import accesses, arithmetic, control, table
from sqcompile.backends.cuda.emulator.code import Code, OperandError
from sqcompile.backends.cuda.emulator.faults import PtxError
from sqcompile.backends.cuda.emulator.program import (
    BYTES,
    Instruction,
    Kernel,
    Label,
    Program,
    Variable,
)

_ENTRIES_ARE_IN = (accesses, arithmetic, control)

INCLUDE = '#include "ptx.h"\n'

REFUSED = {
    r"(ex2|lg2|rcp|rsqrt|sqrt|sin|cos|tanh)\..*": "hardware functions have no specified bits",
    r"div\.(approx|full).*": "approximate division has no specified bits",
    r"call.*": "calls are not supported; mark the function __forceinline__",
    r"mma\..*satfinite.*": "where partial sums saturate is not specified",
}
"""Why some opcodes will not get an entry; others only have none yet."""


@dataclass
class Translation:
    """A kernel as C++, with what a launch must know.

    body: of the function, in braces; blocks: the opcodes of each counted stretch of code.
    """

    body: str
    parameters: list[tuple[Variable, int]]
    parameter_bytes: int
    shared_bytes: int
    dynamic_shared: bool
    symbols: list[str]
    stack_bytes: int
    blocks: list[list[str]] = field(default_factory=list)

    def function(self, name: str = "ptx_kernel") -> str:
        """The C++ function, to be compiled after INCLUDE."""
        export = 'extern "C" __attribute__((visibility("default")))'
        return f"{export} void {name}(ptx::Thread* thread, const ptx::u8* params) {self.body}"


def translate(program: Program, kernel: Kernel, counted: bool = False) -> Translation:
    """The C++ of a kernel. Raises PtxError that lists everything unsupported in it."""
    return _Translator(program, kernel, counted).translation()


def unsupported(program: Program) -> list[str]:
    """A line for each instruction of the program that has no entry or does not fit it."""
    found: list[str] = []
    for kernel in program.kernels.values():
        translator = _Translator(program, kernel, False)
        translator.statements()
        found += translator.wrong
    return found


def contractible(program: Program) -> list[str]:
    """Float products and sums without a rounding mode: an assembler may fuse them, so that their
    bits are not settled by the text."""
    pattern = re.compile(r"(add|sub|mul)(\.ftz)?(\.sat)?\.f(32|64)")
    return [
        f"line {one.line}: {one.text}"
        for kernel in program.kernels.values()
        for one in kernel.body
        if isinstance(one, Instruction) and pattern.fullmatch(one.opcode)
    ]


def _aligned(offset: int, align: int) -> int:
    return -(-offset // align) * align


def _laid_out(variables: Iterable[Variable]) -> tuple[list[tuple[Variable, int]], int]:
    """Each variable with its offset, and the size of all."""
    placed, end = [], 0
    for variable in variables:
        at = _aligned(end, variable.align)
        placed.append((variable, at))
        end = at + (variable.size or 0)
    return placed, end


class _Translator:
    def __init__(self, program: Program, kernel: Kernel, counted: bool) -> None:
        self.kernel, self.counted = kernel, counted
        self.wrong: list[str] = []
        everything = [*program.variables, *kernel.variables]
        mentioned = {word for one in kernel.body if isinstance(one, Instruction)
                     for word in re.findall(r"[\w$]+", one.text)}  # fmt: skip
        used = [variable for variable in everything if variable.name in mentioned]
        self.parameters, self.parameter_bytes = _laid_out(kernel.parameters)
        shared = [v for v in used if v.space == "shared"]
        static, end = _laid_out(v for v in shared if v.size is not None)
        dynamic = [v for v in shared if v.size is None]
        self.shared_bytes = _aligned(end, max((v.align for v in dynamic), default=1))
        self.dynamic_shared = bool(dynamic)
        local, self.local_bytes = _laid_out(v for v in used if v.space == "local")
        self.symbols = [v.name for v in used if v.space in ("global", "const")]
        places = {v.name: ("param", str(at)) for v, at in self.parameters}
        places |= {v.name: ("shared", f"{at}u") for v, at in static}
        places |= {v.name: ("shared", f"{self.shared_bytes}u") for v in dynamic}
        places |= {v.name: ("local", f"{at}u") for v, at in local}
        spaces = {v.name: v.space for v in used}
        for number, name in enumerate(self.symbols):
            places[name] = (spaces[name], f"t.symbols[{number}]")
        labels = {one.name: n for n, one in enumerate(kernel.body) if isinstance(one, Label)}
        self.code = Code(places, self.parameter_bytes, kernel.targets, labels)
        self.blocks: list[list[str]] = []

    def translation(self) -> Translation:
        lines = self.statements()
        if self.wrong:
            raise PtxError("unsupported PTX:\n" + "\n".join(self.wrong))
        used = set(re.findall(r"\bv_\w+", "\n".join(lines)))
        registers = [
            _declaration(name, kind) for name, kind in self.kernel.registers.items() if name in used
        ]
        return Translation(
            body="\n".join(["{", *self._head(), *registers, *lines, "}", ""]),
            parameters=self.parameters,
            parameter_bytes=self.parameter_bytes,
            shared_bytes=self.shared_bytes,
            dynamic_shared=self.dynamic_shared,
            symbols=self.symbols,
            stack_bytes=_stack(len(registers), self.local_bytes),
            blocks=self.blocks,
        )

    def _head(self) -> list[str]:
        constants = [
            f"  static constexpr Collective collective_{n} = {fields};"
            for n, fields in enumerate(self.code.collectives)
        ]
        local = [
            f"  alignas(16) u8 local[{self.local_bytes}];",
            "  memset(local, 0xA5, sizeof local);",
            f"  t.local = local; t.local_size = {self.local_bytes};",
        ]
        start = ["  using namespace ptx;", "  Thread& t = *thread;"]
        return [*start, *constants, *(local if self.local_bytes else [])]

    def statements(self) -> list[str]:
        """The body in C++; what is unsupported goes into `wrong`."""
        lines, fresh = [], True
        for number, one in enumerate(self.kernel.body):
            self.code.at = number
            if isinstance(one, Label):
                lines.append(f" {one.name}:;")
                fresh = True
                continue
            if self.counted:
                if fresh:
                    lines.append(f"  ++t.counts[{len(self.blocks)}];")
                    self.blocks.append([])
                self.blocks[-1].append(one.opcode)
                fresh = one.opcode.startswith(("bra", "brx", "ret", "exit"))
            lines.append(self._statement(one))
        return lines

    def _statement(self, one: Instruction) -> str:
        entry = table.find(one.opcode)
        if entry is None:
            reasons = (why for pattern, why in REFUSED.items() if re.fullmatch(pattern, one.opcode))
            why = next(reasons, "no such instruction in the table")
            self.wrong.append(f"line {one.line}: {one.text}: {why}")
            return ""
        if one.unknown:
            what = ", ".join(one.unknown)
            self.wrong.append(f"line {one.line}: {one.text}: {what}: not declared or no value here")
            return ""
        try:
            body = entry[0].emit(self.code, one, entry[1])
            guard = f"if ({self.code.predicate(one.guard)}) " if one.guard else ""
        except OperandError as error:
            self.wrong.append(f"line {one.line}: {one.text}: {error}")
            return ""
        return f"  {guard}{{ {body} }}"


_JUNK = {1: "0", 2: "0xA5A5", 4: "0xA5A5A5A5u", 8: "0xA5A5A5A5A5A5A5A5ull"}
"""What registers hold before they are written: the same in every run, and never a plausible 0."""


def _declaration(name: str, kind: str) -> str:
    bits = "bool" if kind == "pred" else f"u{8 * BYTES[kind]}"
    return f"  {bits} {name} = {_JUNK[BYTES[kind]]};"


def _stack(registers: int, local_bytes: int) -> int:
    """A generous bound of a thread's stack: unoptimised, every register has a place of its own."""
    return _aligned(32768 + 32 * registers + 2 * local_bytes, 4096)
