"""The table of instructions: opcodes as patterns, each with what makes its C++.

A pattern is an opcode with alternatives and options:

    "shf.{way:l|r}.{mode:wrap|clamp}.b32"     groups, by name
    "add[.{r:rn|rz|rm|rp}][.ftz][.sat].f32"   options, in their order

An opcode that no pattern matches whole is unsupported; nothing of an opcode is ever ignored.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from sqcompile.backends.cuda.emulator.code import Code
from sqcompile.backends.cuda.emulator.program import Instruction

Groups = dict[str, str]
"""What a pattern's groups matched; "" for an option that is absent."""
Emit = Callable[[Code, Instruction, Groups], str]
"""C++ statements of one instruction, without its guard."""


@dataclass(frozen=True)
class Entry:
    """A pattern and its emitter."""

    pattern: str
    emit: Emit
    regex: re.Pattern[str] = field(repr=False)


_ENTRIES: dict[str, list[Entry]] = {}
"""By the first word of the opcode."""


def instruction(*patterns: str) -> Callable[[Emit], Emit]:
    """Register a function as what emits the opcodes that match one of the patterns."""

    def register(emit: Emit) -> Emit:
        for pattern in patterns:
            first = re.split(r"[.\[]", pattern)[0]
            _ENTRIES.setdefault(first, []).append(Entry(pattern, emit, _regex(pattern)))
        return emit

    return register


def arithmetic(pattern: str, signature: str, code: str) -> None:
    """Register a pure function of registers.

    `signature` is "results = operands", types by group name or by their own. `code` is the C++
    function, with groups in braces: "shr<{t}>"; one with parentheses is the whole expression.
    """
    results, operands = ([*side.split()] for side in signature.split("="))

    def emit(code_: Code, one: Instruction, groups: Groups) -> str:
        names = groups | {"line": str(one.line)}
        kinds = [groups.get(kind, kind) for kind in operands]
        code_.expect(one, len(results) + len(operands))
        read = [
            code_.read(operand, kind)
            for operand, kind in zip(one.operands[len(results) :], kinds, strict=True)
        ]
        names["args"] = ", ".join(read)
        call = code if "(" in code else code + "({args})"
        (kind,) = results
        return code_.write(one.operands[0], groups.get(kind, kind), call.format(**_cpp(names)))

    instruction(pattern)(emit)


def _cpp(names: Groups) -> Groups:
    """Groups as they stand in C++: b32 is u32 there, an option is 1 or 0."""
    types = {f"b{bits}": f"u{bits}" for bits in (8, 16, 32, 64)}
    return {name: types.get(text, text) for name, text in names.items()}


_WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
_FLAGS = {"ftz", "sat", "NaN"}


def find(opcode: str) -> tuple[Entry, Groups] | None:
    """The entry of an opcode with its groups; None when it is unsupported.

    Besides the pattern's own groups there are w, the type twice as wide as t, flags as "1" and
    "0", R, the C++ name of a rounding mode r (the nearest when absent), half, the type of
    the halves of t, and for products of types a and b the types of their small factors and of
    their sum.
    """
    for entry in _ENTRIES.get(re.split(r"\.", opcode)[0], ()):
        if match := entry.regex.fullmatch(opcode):
            groups = {name: text or "" for name, text in match.groupdict().items()}
            return entry, groups | _derived(groups)
    return None


def _derived(groups: Groups) -> Groups:
    """What follows from a pattern's groups."""
    a, b = groups.get("a", ""), groups.get("b", "")
    return {
        **{name: "1" if groups.get(name) else "0" for name in _FLAGS},
        "w": _WIDER.get(groups.get("t", ""), ""),
        "R": (groups.get("r") or "rn").rstrip("i").upper(),
        "a8": f"{a[:1]}8",
        "a16": f"{a[:1]}16",
        "b8": f"{b[:1]}8",
        "half": groups.get("t", "").removesuffix("x2"),
        "sum": "u32" if (a, b) == ("u32", "u32") else "s32",
    }


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    pieces = []
    for piece in re.findall(r"\[\.\w+\]|\[|\]|\{\w+:[^}]*\}|[^\[\]{}]+", pattern):
        if named := re.fullmatch(r"\[\.(\w+)\]", piece):
            pieces.append(f"(?P<{named[1]}>\\.{named[1]})?")
        elif grouped := re.fullmatch(r"\{(\w+):([^}]*)\}", piece):
            choices = "|".join(map(re.escape, grouped[2].split("|")))
            pieces.append(f"(?P<{grouped[1]}>{choices})")
        else:
            pieces.append({"[": "(?:", "]": ")?"}.get(piece) or re.escape(piece))
    return re.compile("".join(pieces))
