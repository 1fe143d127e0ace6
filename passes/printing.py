"""A graph as readable Python: short op names, shapes, dtypes, bits and the user's lines."""

import operator
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule, Node

_DTYPES = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "bool",
}

_TORCH = str(Path(torch.__file__).parent)
"""Where torch's own functions stand, whose lines are not the user's."""


def text(module: GraphModule, name: str = "step") -> str:
    """One line a node, `name: dtype[shape] = op(arguments)  # bits, module`, with a comment line
    wherever the user's source line changes."""
    placeholders = module.graph.find_nodes(op="placeholder")
    lines = [f"def {name}("]
    lines += [f"    {node.name}: {annotation(node)}," for node in placeholders]
    lines.append("):")
    source = ""
    for node in module.graph.nodes:
        if node.op == "placeholder":
            continue
        place = source_line(node)
        if node.op == "call_function" and place and place != source:
            lines.append(f"    # {place}")
            source = place
        lines.append(f"    {_statement(node)}")
    return "\n".join(lines) + "\n"


def annotation(node: Node) -> str:
    """`f32[8, 16]` of a node's value; a tuple of them for several outputs."""
    value = node.meta.get("val")
    if isinstance(value, (tuple, list)):
        return f"({', '.join(_described(v) for v in value)})"
    return _described(value)


def _described(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return f"{_DTYPES.get(value.dtype, str(value.dtype))}[{', '.join(map(str, value.shape))}]"


def source_line(node: Node) -> str:
    """`model.py:12  x = self.conv(x)`: the user's innermost line behind a node, or ""."""
    trace = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    frames = [at for at, line in enumerate(trace) if line.startswith('File "')]
    own = [at for at in frames if not trace[at].startswith(f'File "{_TORCH}')]
    for position in (own or frames)[-1:]:
        path, line = trace[position].split('"')[1], trace[position].split("line ")[1]
        code = trace[position + 1] if position + 1 < len(trace) else ""
        return f"{path.rpartition('/')[2]}:{line.split(',')[0]}  {code}"
    return ""


def op_name(node: Node) -> str:
    """`sq.quantize`, `aten.add`: the op without overload."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}.{target._schema.name.split('::')[1]}"
    return getattr(target, "__name__", str(target))


def _statement(node: Node) -> str:
    if node.op == "output":
        return f"return {_written(node.args[0])}"
    if node.op == "get_attr":
        call = f"self.{node.target}"
    elif node.target is operator.getitem:
        call = f"{_written(node.args[0])}[{node.args[1]}]"
    else:
        parts = [_written(argument) for argument in node.args]
        parts += [f"{key}={_written(v)}" for key, v in node.kwargs.items()]
        call = f"{op_name(node)}({', '.join(parts)})"
    notes = [f"{node.meta['bits']} bit" if "bits" in node.meta else "", node.meta.get("role", "")]
    notes.append(node.meta.get("module", ""))
    comment = " ".join(note for note in notes if note)
    return f"{node.name}: {annotation(node)} = {call}" + (f"  # {comment}" if comment else "")


def _written(argument: Any) -> str:
    if isinstance(argument, Node):
        return argument.name
    if isinstance(argument, (list, tuple)):
        return f"[{', '.join(_written(a) for a in argument)}]"
    return repr(argument)
