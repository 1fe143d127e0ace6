"""PTX text as data: a module, its variables, its kernels, their instructions."""

from dataclasses import dataclass, field

BYTES = {"pred": 1} | {
    f"{kind}{bits}": bits // 8
    for kind, widths in {
        "b": (8, 16, 32, 64, 128),
        "u": (8, 16, 32, 64),
        "s": (8, 16, 32, 64),
        "f": (16, 32, 64),
    }.items()
    for bits in widths
}
"""Bytes of a value of each type."""


@dataclass(frozen=True)
class Register:
    """A register, by its name in C++ (unique within a kernel)."""

    name: str
    type: str


@dataclass(frozen=True)
class Special:
    """A special register: %tid.x, %laneid, ..."""

    name: str


@dataclass(frozen=True)
class Integer:
    """An integer constant, of 64 bits."""

    value: int


@dataclass(frozen=True)
class Float:
    """A float constant as bits: 0f3F800000 (4 bytes) or 0d3FF0000000000000 (8 bytes)."""

    bits: int
    bytes: int


@dataclass(frozen=True)
class Symbol:
    """The address of a variable or a parameter, plus bytes."""

    name: str
    offset: int = 0


@dataclass(frozen=True)
class Vector:
    """{a, b, ...}."""

    items: tuple["Operand", ...]


@dataclass(frozen=True)
class Address:
    """[base + offset]."""

    base: "Operand"
    offset: int


@dataclass(frozen=True)
class Pair:
    """a|b: two results."""

    first: "Operand"
    second: "Operand"


@dataclass(frozen=True)
class Negated:
    """!p."""

    operand: Register


@dataclass(frozen=True)
class Nowhere:
    """_: a result that is not wanted."""


Operand = (
    Register | Special | Integer | Float | Symbol | Vector | Address | Pair | Negated | Nowhere
)


@dataclass(frozen=True)
class Instruction:
    """One instruction: `@guard opcode operands;` on a line of the PTX text.

    unknown: operands that are not declared and no special register that has a value here.
    """

    opcode: str
    operands: tuple[Operand, ...]
    guard: Register | Negated | None
    line: int
    text: str
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Label:
    """A place to branch to."""

    name: str


@dataclass(frozen=True)
class Variable:
    """A variable or parameter: `size` bytes at a multiple of `align`; None: dynamic shared memory.

    `content` holds the initial bytes, `addresses` those that are addresses of other variables:
    (byte, symbol).
    """

    name: str
    space: str
    type: str
    align: int
    size: int | None
    content: bytes = b""
    addresses: tuple[tuple[int, Symbol], ...] = ()


@dataclass
class Kernel:
    """An .entry: parameters, own variables, registers and body."""

    name: str
    line: int
    parameters: list[Variable] = field(default_factory=list)
    variables: list[Variable] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)
    targets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    body: list[Instruction | Label] = field(default_factory=list)
    max_threads: int | None = None


@dataclass
class Program:
    """A whole PTX text."""

    target: str = ""
    variables: list[Variable] = field(default_factory=list)
    kernels: dict[str, Kernel] = field(default_factory=dict)
    functions: set[str] = field(default_factory=set)
