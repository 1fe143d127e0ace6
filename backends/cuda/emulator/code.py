"""How operands are read and results are written in C++."""

from dataclasses import dataclass, field

from sqcompile.backends.cuda.emulator.faults import PtxError
from sqcompile.backends.cuda.emulator.program import (
    BYTES,
    Address,
    Float,
    Instruction,
    Integer,
    Negated,
    Nowhere,
    Operand,
    Register,
    Special,
    Symbol,
)
from sqcompile.backends.cuda.emulator.specials import SPECIALS


class OperandError(PtxError):
    """An operand that does not fit its instruction."""


def cpp_type(kind: str) -> str:
    """The C++ type of a PTX type: u32 for b32 too, bool for pred."""
    return "bool" if kind == "pred" else kind.replace("b", "u")


@dataclass
class Code:
    """One kernel being translated.

    places: where each variable is, "(space, address in C++)"; labels: the number of every label
    in the body; at: the number of the current instruction.
    """

    places: dict[str, tuple[str, str]]
    parameter_bytes: int
    targets: dict[str, tuple[str, ...]]
    labels: dict[str, int]
    at: int = 0
    collectives: list[str] = field(default_factory=list)

    def expect(self, one: Instruction, *counts: int) -> None:
        """The instruction has one of these numbers of operands."""
        if len(one.operands) not in counts:
            raise OperandError(f"{len(one.operands)} operands")

    def read(self, operand: Operand, kind: str, wide: bool = False) -> str:
        """A C++ value of type `kind`; `wide`: the register may be wider than that."""
        cpp = cpp_type(kind)
        if kind == "pred":
            return self.predicate(operand)
        if isinstance(operand, Register):
            self._check(operand, kind, wide)
            return f"get<{cpp}>({operand.name})"
        if isinstance(operand, Special):
            return f"({cpp}){SPECIALS[operand.name]}"
        if isinstance(operand, Integer):
            return self._integer(operand.value, kind)
        if isinstance(operand, Float):
            return self._float(operand, kind)
        if isinstance(operand, Symbol):
            return f"({cpp})({self.place(operand)[1]} + {operand.offset})"
        raise OperandError(f"an operand of type .{kind} is expected")

    def _integer(self, value: int, kind: str) -> str:
        if kind[0] == "f":
            raise OperandError(f"{value} is no constant of type .{kind}")
        return f"({cpp_type(kind)}){value % (1 << 64):#x}ull"

    def _float(self, operand: Float, kind: str) -> str:
        if BYTES[kind] != operand.bytes:
            raise OperandError(f"a float constant of {operand.bytes} bytes for .{kind}")
        return f"bits_as<{cpp_type(kind)}>((u{8 * operand.bytes}){operand.bits:#x}ull)"

    def is_predicate(self, operand: Operand) -> bool:
        """Whether an operand is a predicate register, negated or not."""
        inner = operand.operand if isinstance(operand, Negated) else operand
        return isinstance(inner, Register) and inner.type == "pred"

    def predicate(self, operand: Operand) -> str:
        """A C++ truth value."""
        if isinstance(operand, Negated):
            return f"!{self.predicate(operand.operand)}"
        if isinstance(operand, Register) and operand.type == "pred":
            return operand.name
        if isinstance(operand, Integer) and operand.value in (0, 1, -1):
            return "true" if operand.value else "false"
        raise OperandError("a predicate is expected")

    def write(self, operand: Operand, kind: str, value: str, wide: bool = False) -> str:
        """A statement that stores a C++ value of type `kind`."""
        if isinstance(operand, Nowhere):
            return f"(void)({value});"
        if not isinstance(operand, Register):
            raise OperandError("a register for the result is expected")
        if kind == "pred":
            if operand.type != "pred":
                raise OperandError("a predicate for the result is expected")
            return f"{operand.name} = {value};"
        self._check(operand, kind, wide)
        return f"{operand.name} = put<u{8 * BYTES[operand.type]}>(({cpp_type(kind)})({value}));"

    def _check(self, register: Register, kind: str, wide: bool) -> None:
        if register.type == "pred":
            raise OperandError(f"a predicate where .{kind} is expected")
        held, needed = BYTES[register.type], BYTES[kind]
        if held < needed or (held > needed and not wide):
            raise OperandError(f"a register of type .{register.type} where .{kind} is expected")

    def bits(self, kind: str) -> int:
        """The width of a type."""
        return 8 * BYTES[kind]

    def constant(self, operand: Operand, largest: int) -> int:
        """The value of an operand that must be a constant."""
        if not isinstance(operand, Integer) or not 0 <= operand.value <= largest:
            raise OperandError(f"a constant from 0 to {largest} is expected")
        return operand.value

    def place(self, symbol: Symbol) -> tuple[str, str]:
        """The state space of a variable and its address in that space, in C++."""
        if symbol.name not in self.places:
            raise OperandError(f"{symbol.name} is not declared here")
        return self.places[symbol.name]

    def address(self, operand: Operand, space: str) -> str:
        """The address of [base + offset] in the space, in C++; addresses of 32 bits wrap."""
        if not isinstance(operand, Address):
            raise OperandError("an address in brackets is expected")
        base, offset = operand.base, operand.offset
        if isinstance(base, Register):
            if base.type == "pred" or BYTES[base.type] < 4:
                raise OperandError("an address of 32 or 64 bits is expected")
            width = 8 * BYTES[base.type]
            return f"(u64)(u{width})({base.name} + (u{width}){offset}ll)"
        if isinstance(base, Symbol):
            where, place = self.place(base)
            windows = {"shared": "SHARED_WINDOW", "local": "LOCAL_WINDOW"}
            if where == space or {where, space} <= {"global", "const", ""}:
                return f"(u64)({place} + {offset + base.offset}ll)"
            if space == "" and where in windows:
                return f"({windows[where]} + {place} + {offset + base.offset}ll)"
            raise OperandError(f"{base.name} is in .{where}, not in .{space}")
        if isinstance(base, Integer):
            return f"(u64){(base.value + offset) % (1 << 64):#x}ull"
        raise OperandError("this address is not supported")

    def jump(self, label: str, line: int) -> str:
        """Go to a label; backwards through the check against endless loops."""
        back = f"back(t, {line}); " if self.labels[label] <= self.at else ""
        return f"{back}goto {label};"

    def collective(self, fields: str) -> str:
        """The name of a constant that describes a collective instruction."""
        if fields not in self.collectives:
            self.collectives.append(fields)
        return f"&collective_{self.collectives.index(fields)}"
