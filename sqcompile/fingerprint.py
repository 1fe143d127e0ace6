"""A traced call as text: two calls with one text compile to one variant.

Dynamo's graph is taken anew every time, so that whatever Python decided while the model ran is in
it. The text tells all that the rest of compilation reads: nodes with arguments, source lines and
modules; what every placeholder is, with shape, strides and whether it wants a gradient; the
contents of tensors that become constants; the structure of the result. Where something's text
would not tell all (a function or operator that is not torch's or ours), there is no text, and the
call is compiled.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from sqcompile import _torch_compat as compat
from sqcompile.capture import Traced
from sqcompile.ops.table import find

_NAMESPACES = ("aten", "prims")
_LITERALS = (type(None), bool, int, float, complex, str, bytes)
_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format)


class _Unknown(Exception):
    """Something whose text does not tell what it does."""


def fingerprint(traced: Traced) -> str | None:
    """The text of a traced call, None when no text tells all."""
    state = compat.tracing_state()
    if state is None:
        return None
    try:
        return "\n".join([state, *_values(traced), *_nodes(traced.graph), _result(traced)])
    except _Unknown:
        return None


def _values(traced: Traced) -> Iterator[str]:
    """One line a placeholder: where its value comes from, and what tracing sees of it."""
    names = _names(traced.graph)
    for index, leaf in enumerate(compat.tree_flatten((traced.args, traced.kwargs))[0]):
        names[id(leaf)].append(f"input {index}")
    storages: dict[int, int] = {}
    for value in compat.graph_inputs(traced.graph, traced.args, traced.kwargs):
        if not isinstance(value, Tensor):
            yield _argument(value)
            continue
        if value.layout != torch.strided:
            raise _Unknown
        place = storages.setdefault(value.untyped_storage().data_ptr(), len(storages))
        yield f"{_named(value, names)}: {_metadata(value)} in storage {place}"


def _names(graph: GraphModule) -> defaultdict[int, list[str]]:
    """All names of parameters and buffers of a graph, whose values are no constants, by identity:
    tied ones have several."""
    names: defaultdict[int, list[str]] = defaultdict(list)
    for name, parameter in graph.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(f"param {name}")
    for name, buffer in graph.named_buffers(remove_duplicate=False):
        names[id(buffer)].append(f"buffer {name}")
    return names


def _named(value: Tensor, names: Mapping[int, list[str]]) -> str:
    return ", ".join(names[id(value)]) if id(value) in names else _content(value)


def _metadata(value: Tensor) -> str:
    kind = type(value).__name__
    place = f"{value.stride()} at {value.storage_offset()} on {value.device}"
    return f"{kind} {value.dtype} {tuple(value.shape)} {place} {value.requires_grad}"


def _content(value: Tensor) -> str:
    """A constant: the hash of its bytes."""
    if value.device.type != "cpu" or value.layout != torch.strided:
        raise _Unknown
    plain = value.detach().resolve_neg().resolve_conj().contiguous().reshape(-1)
    digest = hashlib.sha256(plain.view(torch.uint8).numpy().tobytes())
    return f"constant {digest.hexdigest()} {_metadata(value)}"


def _nodes(module: GraphModule) -> Iterator[str]:
    """One line a node, with the graphs that a node applies inside."""
    graph: Graph = module.graph
    names = _names(module)
    for node in graph.nodes:
        if node.op == "get_attr":
            yield f"{node.name} = {_attribute(module, str(node.target), names)}"
        else:
            arguments = _argument((node.args, node.kwargs))
            yield f"{node.name} = {node.op} {_target(node)} {arguments} {_origin(node)}"


def _attribute(module: GraphModule, target: str, names: Mapping[int, list[str]]) -> str:
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    if isinstance(value, GraphModule):
        return "{\n" + "\n".join(_nodes(value)) + "\n}"
    if isinstance(value, Tensor):
        return _named(value, names)
    return _argument(value)


def _target(node: Node) -> str:
    target = node.target
    if isinstance(target, str):
        if node.op == "call_module":
            raise _Unknown
        return target
    if isinstance(target, torch._ops.OpOverload):
        entry = find(target)
        own = entry is not None and entry.reference.__module__.startswith("sqcompile.")
        if not own and target.namespace not in _NAMESPACES:
            raise _Unknown
        return str(target)
    name = compat.function_name(target)
    if name is None:
        raise _Unknown
    return name


def _origin(node: Node) -> str:
    """The user's lines and modules behind a node: recipes name modules, reports show both."""
    stack = (node.meta.get("nn_module_stack") or {}).values()
    return f"{[str(path) for path, _ in stack]} {node.meta.get('stack_trace')!r}"


def _argument(value: Any) -> str:
    if isinstance(value, Node):
        return f"%{value.name}"
    if type(value) in _LITERALS or isinstance(value, _TORCH):
        return repr(value)
    if isinstance(value, Tensor):
        return _content(value)
    if isinstance(value, slice):
        return f"slice{_argument((value.start, value.stop, value.step))}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_argument, value))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_argument(one)}' for key, one in value.items())}}}"
    if value is Ellipsis:
        return "..."
    raise _Unknown


def _result(traced: Traced) -> str:
    """The structure of what the model returns, with its constants and which tensor stands where."""
    graph = traced.graph
    (given,) = graph.graph.output_node().args
    assert isinstance(given, Sequence)
    outputs = [_fake(value) for value in given]
    names = {id(value): f"output {index}" for index, value in enumerate(outputs)}
    result = compat.graph_result(graph, outputs, traced.args, traced.kwargs)
    leaves, structure = compat.tree_flatten(result)
    texts = [names.get(id(leaf)) or _constant(leaf) for leaf in leaves]
    return f"{texts} {structure}"


def _fake(value: Any) -> Any:
    """What Dynamo took an output of its graph to be."""
    if not isinstance(value, Node):
        return value
    if "example_value" not in value.meta:
        raise _Unknown
    return value.meta["example_value"]


def _constant(leaf: Any) -> str:
    """A plain value of the result; a tensor that is no output of the graph has no text."""
    if type(leaf) not in _LITERALS:
        raise _Unknown
    return repr(leaf)
