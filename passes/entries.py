"""A graph as plain records, one a node: what people and programs read of it. Needs no torch.

    name: type = op(arguments)  # bits, groups, role and module

A record has the node's arguments under their names, so that a reader of `sq.quantize(x, range,
bits=4, signed=False)` need not look the op up.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

PLACEHOLDER, CONSTANT, ITEM, OUTPUT = "placeholder", "constant", "getitem", "output"
"""What `op` says of nodes that call no operator: an input, a tensor that the graph holds, one
output of a call with several, what the graph returns."""
_FEW = 2
"""Up to so many arguments read well without their names."""


class Ref(str):
    """An argument that is another node: its name."""

    __slots__ = ()


class Code(str):
    """An argument as Python writes it, where JSON has no such value: torch.float32, inf."""

    __slots__ = ()


@dataclass(frozen=True)
class Tensor:
    """dtype ("f32", "i8", "bool") and shape of a value; no dtype for a value that is no tensor."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Entry:
    """One node of a graph.

    op: "sq.quantize", "aten.add", or one of the four names above; args: (name, value) in order,
    values made of Ref, Code, lists and JSON's own; outputs: one for each value, `several` when
    they are a tuple; bits: of the integers that the value holds; operands: ("u4", "s4"), sign and
    bits of what a product reads; groups: ShiftQuant groups; role: fprop, dgrad, wgrad; module:
    dotted path; line: the user's source line; part: "forward" or "backward".
    """

    name: str
    op: str
    args: tuple[tuple[str, Any], ...] = ()
    outputs: tuple[Tensor, ...] = ()
    several: bool = False
    bits: int | None = None
    operands: tuple[str, ...] = ()
    groups: int | None = None
    role: str = ""
    module: str = ""
    line: str = ""
    part: str = ""
    _refs: tuple[Ref, ...] | None = field(default=None, compare=False, repr=False)

    @property
    def refs(self) -> tuple[Ref, ...]:
        """The nodes that this one reads, in order of its arguments."""
        if self._refs is None:
            object.__setattr__(self, "_refs", tuple(_refs(value for _, value in self.args)))
        assert self._refs is not None
        return self._refs

    @property
    def type(self) -> str:
        """`f32[8, 16]`; a tuple of them for several outputs."""
        kinds = ", ".join(map(str, self.outputs))
        return f"({kinds})" if self.several else kinds

    @property
    def call(self) -> str:
        """What computes the value, as Python."""
        values = [value for _, value in self.args]
        if self.op == OUTPUT:
            return f"return {written(values[0])}"
        if self.op == CONSTANT:
            return f"self.{values[0]}"
        if self.op == ITEM:
            return f"{values[0]}[{values[1]}]"
        return f"{self.op}({', '.join(_arguments(self.args))})"

    @property
    def note(self) -> str:
        """`4 bit, 3 groups, fprop blocks.0.conv1`: what is known beside the type."""
        parts = [
            f"{self.bits} bit" if self.bits else "",
            " x ".join(self.operands),
            f"{self.groups} groups" if self.groups and self.groups > 1 else "",
            f"{self.role} {self.module}".strip(),
        ]
        return ", ".join(part for part in parts if part)

    @property
    def statement(self) -> str:
        """The node as a line of Python, without indentation."""
        if self.op == OUTPUT:
            return self.call
        if self.op == PLACEHOLDER:
            return f"{self.name}: {self.type},"
        note = f"  # {self.note}" if self.note else ""
        return f"{self.name}: {self.type} = {self.call}{note}"


Listing = Sequence[Entry]


def text(entries: Listing, name: str = "step") -> str:
    """A graph as Python: one line a node, with a comment line wherever the user's source line
    changes."""
    inputs = [entry for entry in entries if entry.op == PLACEHOLDER]
    lines = [f"def {name}(", *(f"    {entry.statement}" for entry in inputs), "):"]
    source = ""
    for entry in entries:
        if entry.op == PLACEHOLDER:
            continue
        if entry.line and entry.line != source:
            source = entry.line
            lines.append(f"    # {source}")
        lines.append(f"    {entry.statement}")
    return "\n".join(lines) + "\n"


def written(value: Any) -> str:
    """An argument as Python."""
    if isinstance(value, Ref | Code):
        return str(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(written, value))}]"
    return repr(value)


def _arguments(args: Sequence[tuple[str, Any]]) -> Iterator[str]:
    """Tensors in front by position, all after them by name."""
    named = False
    for name, value in args:
        named = named or (bool(name) and len(args) > _FEW and not isinstance(value, Ref))
        yield f"{name}={written(value)}" if named else written(value)


def _refs(values: Iterator[Any]) -> Iterator[Ref]:
    for value in values:
        if isinstance(value, Ref):
            yield value
        elif isinstance(value, tuple | list):
            yield from _refs(iter(value))


def to_json(entry: Entry) -> dict[str, Any]:
    """An entry as JSON-able data. `shape` and `dtype` are those of a node with one output, else
    None; a node among the arguments is {"node": name}, what JSON cannot say {"code": text}."""
    one = entry.outputs[0] if len(entry.outputs) == 1 and not entry.several else None
    return {
        "name": entry.name,
        "op": entry.op,
        "args": [{"name": name, "value": _encoded(value)} for name, value in entry.args],
        "shape": None if one is None else list(one.shape),
        "dtype": None if one is None else one.dtype,
        "outputs": [{"dtype": t.dtype, "shape": list(t.shape)} for t in entry.outputs],
        "bits": entry.bits,
        "operands": list(entry.operands),
        "groups": entry.groups,
        "role": entry.role,
        "module": entry.module,
        "line": entry.line,
        "pass": entry.part,
    }


def packed(entry: Entry) -> list[Any]:
    """An entry as a short list, for files; `unpacked` reads it."""
    return [
        entry.name,
        entry.op,
        [[name, _encoded(value)] for name, value in entry.args],
        [[one.dtype, *one.shape] for one in entry.outputs],
        int(entry.several),
        entry.bits,
        list(entry.operands),
        entry.groups,
        entry.role,
        entry.module,
        entry.line,
        entry.part,
    ]


def unpacked(data: Sequence[Any]) -> Entry:
    """The entry that `packed` wrote. Raises ValueError or TypeError for anything else."""
    name, op, args, outputs, several, bits, operands, groups, *place = data
    role, module, line, part = place
    return Entry(
        name,
        op,
        tuple((key, _decoded(value)) for key, value in args),
        tuple(Tensor(dtype, tuple(shape)) for dtype, *shape in outputs),
        bool(several),
        bits,
        tuple(operands),
        groups,
        role,
        module,
        line,
        part,
    )


def _encoded(value: Any) -> Any:
    if isinstance(value, Ref):
        return {"node": str(value)}
    if isinstance(value, Code):
        return {"code": str(value)}
    if isinstance(value, tuple | list):
        return [_encoded(one) for one in value]
    return value


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        return Ref(value["node"]) if "node" in value else Code(value["code"])
    return tuple(_decoded(one) for one in value) if isinstance(value, list) else value
