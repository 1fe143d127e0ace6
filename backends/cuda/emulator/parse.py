"""From PTX text to a Program.

The parser knows PTX's form and no instruction: what an opcode means, and whether it is known at
all, is asked later (see table.py). A construct that it does not know is an error with its line.
"""

import re
from collections.abc import Callable

from sqcompile.backends.cuda.emulator.lexer import END, Cursor, Token
from sqcompile.backends.cuda.emulator.program import (
    BYTES,
    Address,
    Float,
    Instruction,
    Integer,
    Kernel,
    Label,
    Negated,
    Nowhere,
    Operand,
    Pair,
    Program,
    Register,
    Special,
    Symbol,
    Variable,
    Vector,
)
from sqcompile.backends.cuda.emulator.specials import SPECIALS

_LINKING = {".visible", ".extern", ".weak", ".common"}
_CLOSING = {"{": "}", "(": ")"}
_SPACES = {".global", ".const", ".shared", ".local"}


def parse(text: str) -> Program:
    """The program of a PTX text. Raises PtxError for what is not understood."""
    return _Parser(text).program()


class _Parser(Cursor):
    """Reads the tokens from first to last; every method takes what its name says."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.result = Program()
        self.scopes: list[dict[str, Register | str]] = []
        self.unique = 0
        self.unknown: list[str] = []

    # The module

    def program(self) -> Program:
        while self.next is not END:
            self.module_statement()
        return self.result

    def module_statement(self) -> None:
        token = self.take()
        handlers: dict[str, Callable[[], object]] = {
            ".version": self.version,
            ".target": self.target,
            ".address_size": self.address_size,
            ".file": self.file,
            ".entry": lambda: self.kernel(token.line),
            ".func": self.function,
        }
        if token.text in _LINKING:
            return
        if token.text in _SPACES:
            self.result.variables += self.variables(token.text[1:])
        elif token.text in handlers:
            handlers[token.text]()
        else:
            raise self.error(f"{token.text!r} at module level is not supported", token)

    def version(self) -> None:
        """9.0, which are two tokens here."""
        self.take()
        self.take()

    def target(self) -> None:
        self.result.target = self.take().text
        while self.accept(","):
            self.take()

    def address_size(self) -> None:
        if self.integer() != 64:
            raise self.error("only .address_size 64 is supported")

    def file(self) -> None:
        self.integer()
        self.take()
        while self.accept(","):
            self.integer()

    def function(self) -> None:
        """A function is declared or defined; a call to it is what is not supported."""
        if self.next.text == "(":
            self.skip_past(")")
        self.result.functions.add(self.take().text)
        while self.next.text not in (";", "{"):
            self.take()
        if self.take().text == "{":
            depth = 1
            while depth:
                depth += {"{": 1, "}": -1}.get(self.take().text, 0)

    # Variables

    def variables(self, space: str) -> list[Variable]:
        """The declarations after .global, .const, .shared, .local or .param, up to the ;"""
        found = [self.variable(space)]
        while self.accept(","):
            found.append(self.variable(space, found[0]))
        self.take(";")
        return found

    def variable(self, space: str, like: Variable | None = None) -> Variable:
        align, kind, count = (like.align, like.type, 1) if like else (0, "", 1)
        while self.next.text.startswith("."):
            token = self.take()
            word = token.text[1:]
            if word == "align":
                align = max(align, self.integer())
            elif word in ("v2", "v4"):
                count = int(word[1:])
            elif word in BYTES:
                kind = word
            elif word == "ptr":
                self.pointer_attributes()
            elif word not in ("attribute",):
                raise self.error(f"{token.text} in a declaration is not supported", token)
        name = self.take()
        if not kind:
            raise self.error(f"{name.text} has no type", name)
        size: int | None = BYTES[kind] * count
        while self.accept("["):
            if self.accept("]"):
                size = None
                continue
            size = None if size is None else size * self.integer()
            self.take("]")
        content, addresses = self.initial(kind, size or 0) if self.accept("=") else (b"", ())
        align = max(align, BYTES[kind] * count)
        return Variable(name.text, space, kind, align, size, content, tuple(addresses))

    def pointer_attributes(self) -> None:
        """.ptr .global .align 1: what a parameter points to, which nobody checks."""
        while self.next.text in (".global", ".const", ".shared", ".local", ".align"):
            if self.take().text == ".align":
                self.integer()

    def initial(self, kind: str, size: int) -> tuple[bytes, list[tuple[int, Symbol]]]:
        """The bytes of an initialiser, zeros to the end, and the addresses in it."""
        width = BYTES[kind]
        content = bytearray()
        addresses: list[tuple[int, Symbol]] = []
        depth = 0
        while True:
            if self.accept("{"):
                depth += 1
                continue
            if self.accept("}"):
                depth -= 1
            elif not self.accept(","):
                value = self.operand()
                if isinstance(value, Symbol):
                    addresses.append((len(content), value))
                    content += bytes(width)
                elif isinstance(value, Integer):
                    content += (value.value % (1 << 8 * width)).to_bytes(width, "little")
                elif isinstance(value, Float) and value.bytes == width:
                    content += value.bits.to_bytes(width, "little")
                else:
                    raise self.error("this initialiser is not supported")
            if depth == 0:
                break
        if len(content) > size:
            raise self.error("an initialiser is longer than its variable")
        return bytes(content.ljust(size, b"\0")), addresses

    # Kernels

    def kernel(self, line: int) -> None:
        kernel = Kernel(self.take().text, line)
        if self.accept("("):
            while not self.accept(")"):
                self.take(".param")
                kernel.parameters.append(self.variable("param"))
                self.accept(",")
        while self.next.text.startswith("."):
            self.performance_directive(kernel)
        self.result.kernels[kernel.name] = kernel
        self.scope(kernel)

    def performance_directive(self, kernel: Kernel) -> None:
        token = self.take()
        if token.text not in (".maxntid", ".reqntid", ".minnctapersm", ".maxnreg", ".pragma"):
            raise self.error(f"{token.text} of a kernel is not supported", token)
        if token.text == ".pragma":
            self.skip_past(";")
            return
        product = self.integer()
        while self.accept(","):
            product *= self.integer()
        if token.text in (".maxntid", ".reqntid"):
            kernel.max_threads = product

    def scope(self, kernel: Kernel) -> None:
        """{ ... }: a body, or a block of its own names in one."""
        self.take("{")
        self.scopes.append({})
        self.collect_labels()
        while not self.accept("}"):
            self.statement(kernel)
        self.scopes.pop()

    def collect_labels(self) -> None:
        """The labels of this scope, so that a branch forward finds its own."""
        depth, at = 0, self.at
        while at + 1 < len(self.tokens) and depth >= 0:
            token, after = self.tokens[at], self.tokens[at + 1]
            depth += {"{": 1, "}": -1}.get(token.text, 0)
            if depth == 0 and after.text == ":" and re.match(r"[$_A-Za-z]", token.text):
                self.scopes[-1][token.text] = self.unique_name("l", token.text)
            at += 1

    def unique_name(self, kind: str, name: str) -> str:
        """A name for C++: v_ of a register, l_ of a label; those of inner scopes get a number."""
        plain = f"{kind}_" + re.sub(r"\W", "_", name.lstrip("%"))
        if len(self.scopes) == 1:
            return plain
        self.unique += 1
        return f"{plain}_{self.unique}"

    def statement(self, kernel: Kernel) -> None:
        token = self.next
        if token.text == "{":
            self.scope(kernel)
        elif token.text.startswith("."):
            self.directive(kernel)
        elif self.at + 1 < len(self.tokens) and self.tokens[self.at + 1].text == ":":
            self.label(kernel)
        elif token.text != ";":
            kernel.body.append(self.instruction())
        else:
            self.take()

    def label(self, kernel: Kernel) -> None:
        name = str(self.scopes[-1][self.take().text])
        self.take(":")
        if self.accept(".branchtargets"):
            places = [self.label_name(self.take())]
            while self.accept(","):
                places.append(self.label_name(self.take()))
            self.take(";")
            kernel.targets[name] = tuple(places)
        else:
            kernel.body.append(Label(name))

    def label_name(self, token: Token) -> str:
        for scope in reversed(self.scopes):
            if isinstance(name := scope.get(token.text), str):
                return name
        raise self.error(f"there is no label {token.text}", token)

    def directive(self, kernel: Kernel) -> None:
        token = self.take()
        if token.text in (".loc", ".pragma"):
            line = token.line
            while self.next.line == line and self.next is not END:
                self.take()
        elif token.text == ".reg":
            self.registers(kernel)
        elif token.text in (".shared", ".local", ".global", ".const"):
            kernel.variables += self.variables(token.text[1:])
        elif token.text == ".param":  # of a call, which has no entry
            self.variables("param")
        elif token.text not in _LINKING:
            raise self.error(f"{token.text} in a kernel is not supported", token)

    def registers(self, kernel: Kernel) -> None:
        token = self.take()
        kind = token.text[1:]
        if kind not in BYTES or BYTES[kind] > 8:
            raise self.error(f"registers of type {token.text} are not supported", token)
        while True:
            name = self.take().text
            names = [name]
            if self.accept("<"):
                names = [f"{name}{n}" for n in range(self.integer())]
                self.take(">")
            for one in names:
                self.scopes[-1][one] = Register(self.unique_name("v", one), kind)
                kernel.registers[self.scopes[-1][one].name] = kind  # type: ignore[union-attr]
            if not self.accept(","):
                break
        self.take(";")

    # Instructions

    def instruction(self) -> Instruction:
        first, self.unknown = self.next, []
        guard: Register | Negated | None = None
        if self.accept("@"):
            operand = self.operand()
            if isinstance(operand, Register | Negated):
                guard = operand
            elif not self.unknown:
                raise self.error("a guard is a predicate", first)
        opcode = self.take()
        operands: list[Operand] = []
        while self.next.text != ";":
            operands.append(self.operand())
            if not self.accept(","):
                break
        end = self.take(";")
        source = " ".join(self.text[first.start : end.start].split())
        unknown = tuple(self.unknown)
        return Instruction(opcode.text, tuple(operands), guard, first.line, source, unknown)

    def operand(self) -> Operand:
        value = self.single()
        return Pair(value, self.single()) if self.accept("|") else value

    def single(self) -> Operand:
        token = self.next
        if token.text in _CLOSING:
            return self.listed(_CLOSING[self.take().text])
        if self.accept("["):
            base = self.single()
            offset = self.offset()
            while self.accept(","):  # of textures, which have no entry
                self.operand()
                self.unknown.append("an address of several parts")
            self.take("]")
            return Address(base, offset)
        if self.accept("!"):
            register = self.single()
            if self.unknown:
                return register
            if not isinstance(register, Register):
                raise self.error("! is followed by a predicate", token)
            return Negated(register)
        if re.match(r"0[fFdD]", token.text):
            self.take()
            return Float(int(token.text[2:], 16), 4 if token.text[1] in "fF" else 8)
        if token.text == "-" or token.text[0].isdecimal():
            return Integer(self.integer())
        return self.named()

    def listed(self, end: str) -> Vector:
        """{a, b} of registers; (a, b) of a call, which has no entry."""
        items = []
        while not self.accept(end):
            items.append(self.operand())
            self.accept(",")
        return Vector(tuple(items))

    def offset(self) -> int:
        if self.accept("+"):
            return self.integer()
        return self.integer() if self.next.text == "-" else 0

    def named(self) -> Operand:
        token = self.take()
        for scope in reversed(self.scopes):
            if token.text in scope:
                known = scope[token.text]
                return known if isinstance(known, Register) else Symbol(known)
        if token.text in SPECIALS:
            return Special(token.text)
        if token.text == "_":
            return Nowhere()
        if token.text == "WARP_SZ":
            return Integer(32)
        if token.text == "generic" and self.accept("("):
            name = self.take().text
            self.take(")")
            return Symbol(name, self.offset())
        if token.text[0] == "%":
            self.unknown.append(token.text)
            return Nowhere()
        if not re.match(r"[$_A-Za-z]", token.text):
            raise self.error(f"an operand is expected, not {token.text!r}", token)
        return Symbol(token.text, self.offset())
