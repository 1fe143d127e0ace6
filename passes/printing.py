"""How nodes are told: short names of ops and dtypes, and the user's lines."""

from functools import lru_cache
from pathlib import Path

import torch
from torch.fx import Node

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


def dtype_name(dtype: torch.dtype) -> str:
    """`f32`, `i8`, `bool`; torch's own name for those that no step has."""
    return _DTYPES.get(dtype, str(dtype).removeprefix("torch."))


def source_line(node: Node) -> str:
    """`model.py:12  x = self.conv(x)`: the user's innermost line behind a node, or ""."""
    return _own_line(node.meta.get("stack_trace") or "")


@lru_cache(maxsize=4096)
def _own_line(stack_trace: str) -> str:
    trace = [line.strip() for line in stack_trace.splitlines()]
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
