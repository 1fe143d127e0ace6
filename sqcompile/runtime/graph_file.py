"""The rewritten graphs of a run folder as data: read again, they are programs that PyTorch runs.

Nodes are JSON, constants safetensors: nothing is unpickled, and a graph names only ops of the op
table and of ATen.
"""

import json
import math
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

import sqcompile.ops  # noqa: F401  (registers sq::)
from sqcompile._torch_compat import Port
from sqcompile.errors import UsageError
from sqcompile.passes.printing import source_line

NODES, CONSTANTS = "graphs.json", "constants.safetensors"
_KEPT = ("module", "role", "bits", "signed")
"""What is kept of a node besides shape, dtype, port and source line."""
_SPACES = ("aten", "sq")


def write(graphs: Mapping[str, GraphModule], folder: Path) -> None:
    """Write graphs by name into `folder`."""
    tensors = {
        f"{name}.{node.target}": _constant(graph, str(node.target))
        for name, graph in graphs.items()
        for node in graph.graph.find_nodes(op="get_attr")
    }
    nodes = {name: [_described(n) for n in graph.graph.nodes] for name, graph in graphs.items()}
    save_file(
        {key: value.contiguous().clone() for key, value in tensors.items()}, folder / CONSTANTS
    )
    (folder / NODES).write_text(json.dumps(nodes, allow_nan=False))


def read(folder: Path) -> dict[str, GraphModule]:
    """The graphs of a folder by name. Raises UsageError when it has none, or a damaged one."""
    try:
        described = json.loads((folder / NODES).read_text())
        tensors = load_file(folder / CONSTANTS)
        return {name: _graph(name, nodes, tensors) for name, nodes in described.items()}
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder} has no {Path(error.filename or NODES).name}: it was saved by an older "
            "version, or from a step that had been loaded\n  compile the model again."
        ) from error
    except (ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"{folder / NODES} is damaged: {error}") from error


def _constant(module: GraphModule, path: str) -> Tensor:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    assert isinstance(value, Tensor)
    return value


def _described(node: Node) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": node.name, "op": node.op, "target": _target_text(node)}
    entry["args"] = [_encoded(argument) for argument in node.args]
    entry["kwargs"] = {key: _encoded(value) for key, value in node.kwargs.items()}
    values = node.meta.get("val")
    if values is not None:
        several = isinstance(values, (tuple, list))
        shapes = [_shape(value) for value in (values if several else [values])]
        entry["values"] = shapes if several else shapes[0]
    entry |= {key: node.meta[key] for key in _KEPT if key in node.meta}
    port = node.meta.get("port")
    if port is not None:
        entry["port"] = [port.kind, port.name, port.wrt]
    line = source_line(node)
    return entry | ({"line": line} if line else {})


def _target_text(node: Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return "getitem" if node.target is operator.getitem else str(node.target)


def _shape(value: Any) -> list[Any]:
    assert isinstance(value, Tensor)
    return [str(value.dtype).removeprefix("torch."), list(value.shape)]


def _encoded(value: Any) -> Any:
    """An argument as JSON: what JSON has is itself, all else (infinities too) an object with one
    key."""
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, (tuple, list)):
        return [_encoded(one) for one in value]
    if isinstance(value, (torch.dtype, torch.memory_format, torch.layout, torch.device)):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def _graph(name: str, described: list[dict[str, Any]], tensors: dict[str, Tensor]) -> GraphModule:
    graph, root = Graph(), torch.nn.Module()
    values: dict[str, Node] = {}
    for entry in described:
        args, kwargs = _decoded(entry["args"], values), _decoded(entry["kwargs"], values)
        if entry["op"] == "get_attr":
            root.register_buffer(entry["target"], tensors[f"{name}.{entry['target']}"])
        target = _target(entry) if entry["op"] == "call_function" else entry["target"]
        node = graph.create_node(entry["op"], target, tuple(args), kwargs, name=entry["name"])
        _remember(node, entry)
        values[entry["name"]] = node
    return GraphModule(root, graph)


def _target(entry: dict[str, Any]) -> Any:
    if entry["target"] == "getitem":
        return operator.getitem
    space, name, overload = entry["target"].split(".")
    if space not in _SPACES:
        raise ValueError(f"an op of {space}")
    return getattr(getattr(getattr(torch.ops, space), name), overload)


def _decoded(value: Any, values: dict[str, Node]) -> Any:
    if isinstance(value, list):
        return [_decoded(one, values) for one in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"node"}:
        return values[value["node"]]
    if set(value) == {"torch"}:
        known = value["torch"]
        return torch.device(known) if known == "cpu" else getattr(torch, known)
    if set(value) == {"float"}:
        return float(value["float"])
    return {key: _decoded(one, values) for key, one in value.items()}


def _remember(node: Node, entry: dict[str, Any]) -> None:
    node.meta |= {key: entry[key] for key in _KEPT if key in entry}
    if "port" in entry:
        node.meta["port"] = Port(*entry["port"])
    if "line" in entry:
        place, _, code = entry["line"].partition("  ")
        file, _, line = place.rpartition(":")
        node.meta["stack_trace"] = f'File "{file}", line {line}, in forward\n{code}'
    if "values" in entry:
        shapes = entry["values"]
        one = bool(shapes) and isinstance(shapes[0], str)
        empty = [_empty(*shape) for shape in ([shapes] if one else shapes)]
        node.meta["val"] = empty[0] if one else tuple(empty)


def _empty(dtype: str, shape: list[int]) -> Tensor:
    return torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
