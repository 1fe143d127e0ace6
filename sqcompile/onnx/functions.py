"""Graphs of PyTorch ops as ONNX nodes, and ops of the table as ONNX functions.

An op's Python reference is its definition. Where the table of emitters has nothing better, the
reference is traced into the ATen ops and other entries that it calls, and these are written as a
function of the model (domain `sqcompile`), one for every op, shape and set of attributes. Engines
inline such functions; viewers open them.
"""

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from onnx import helper
from torch import Tensor
from torch.func import functionalize
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from sqcompile.onnx.body import DOMAIN, OPSET, Body, Value
from sqcompile.onnx.table import EMITTERS, Call, Emitted, NoForm
from sqcompile.ops import OPS
from sqcompile.ops.quantize import limits
from sqcompile.ops.table import Op, find
from sqcompile.passes.editing import arguments
from sqcompile.passes.printing import op_name, source_line

RUN_TIME = "stream"
"""The attribute that a function takes as an input, so that quantisers that differ only in their
draws share one."""


@dataclass(frozen=True)
class Refused:
    """A node without an ONNX form: the op, why, and the user's module and line."""

    op: str
    why: str
    module: str
    line: str


def emit_graph(
    body: Body,
    module: GraphModule,
    values: dict[Node, Emitted],
    refused: list[Refused],
    *,
    named: bool = False,
) -> tuple[Value, ...]:
    """Write every node of a graph -> the values that it returns. `values` holds those of its
    placeholders, and of other nodes that are known; nodes that read what is refused are left. With
    `named` results have the names of their nodes, and nodes tell module and source line."""
    for node in module.graph.nodes:
        if node in values or node.op == "placeholder":
            continue
        if node.op == "output":
            results = pytree.tree_leaves(node.args[0])
            return () if refused else tuple(_one(values[n]) for n in results if n is not None)
        if node.op == "get_attr":
            values[node] = body.constant(_attribute(module, str(node.target)))
            continue
        if any(source not in values for source in node.all_input_nodes):
            continue
        try:
            values[node] = (_emit_named if named else _emit)(body, node, values)
        except NoForm as reason:
            place = source_line(node)
            refused.append(Refused(op_name(node), str(reason), node.meta.get("module", ""), place))
    raise AssertionError("a graph without an output")


def _emit_named(body: Body, node: Node, values: Mapping[Node, Emitted]) -> Emitted:
    since, line, module = len(body.nodes), source_line(node), node.meta.get("module", "")
    body.prefix = node.name
    body.place = ", ".join(part for part in (module, line) if part)
    properties = {"op": op_name(node), "role": node.meta.get("role", "")}
    properties |= {"module": module, "line": line.partition("  ")[0]}
    body.properties = {f"{DOMAIN}.{key}": text for key, text in properties.items() if text}
    result = _emit(body, node, values)
    body.prefix, body.place, body.properties = "", "", {}
    if not isinstance(result, Value):
        return result
    bits = node.meta.get("bits")
    if bits is not None:
        result = replace(result, largest=limits(bits, node.meta.get("signed", True))[1])
    return body.rename(result, node.name, since)


def _one(value: Emitted) -> Value:
    assert isinstance(value, Value)
    return value


def _attribute(module: GraphModule, path: str) -> Tensor:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    assert isinstance(value, Tensor)
    return value


def _emit(body: Body, node: Node, values: Mapping[Node, Emitted]) -> Emitted:
    def known(argument: Any) -> Any:
        return map_arg(argument, lambda node: values[node])  # type: ignore[arg-type,return-value]

    if node.target is operator.getitem:
        return values[node.args[0]][node.args[1]]  # type: ignore[index]
    given = {name: known(value) for name, value in arguments(node).items()}
    entry = find(node.target)
    if entry is not None:
        return _written(body, entry, given, node)
    if node.target not in EMITTERS:
        raise NoForm("no exact ONNX form is known")
    return EMITTERS[node.target](Call(body, node, given))


def write_call(body: Body, entry: Op, given: Mapping[str, Any]) -> Value:
    """A call of an op of the table with one output, for emitters."""
    graph = Graph()
    node = graph.call_function(entry.target)
    shape, dtype = entry.outputs(*map_values(given))[0]
    node.meta["val"] = torch.empty(shape, dtype=dtype, device="meta")
    return _one(_written(body, entry, given, node))


def map_values(given: Mapping[str, Any]) -> list[Any]:
    """Arguments with an empty tensor for every value; a lifted RUN_TIME is a number."""
    return [
        _stand_in(value, is_stream=name == RUN_TIME and isinstance(value, Value))
        for name, value in given.items()
    ]


def _written(body: Body, entry: Op, given: Mapping[str, Any], node: Node) -> Emitted:
    """An op of the table, by its emitter or by its reference: a product with what surrounds it
    stands in the graph itself, all else is a function."""
    call = _arguments(given)
    if _multiplies(entry):
        return _defined(body, entry, call, call.leaves, node)
    return _function_call(body, entry, call, node)


def _defined(body: Body, entry: Op, call: "_Arguments", leaves: Any, node: Node) -> Emitted:
    emitter = EMITTERS.get(entry.target)
    if emitter is None:
        return _traced(body, entry, call, leaves)
    values = pytree.tree_unflatten(list(leaves), call.spec)
    return emitter(Call(body, node, dict(zip(call.names, values, strict=True))))


@dataclass(frozen=True)
class _Arguments:
    """Arguments of a call apart: tensors, the value of RUN_TIME, and the rest as a structure."""

    names: tuple[str, ...]
    leaves: tuple[Any, ...]
    spec: Any

    @property
    def tensors(self) -> list[Value]:
        """What a function takes: RUN_TIME is among it, when it is a value."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Value)]

    def values(self) -> list[Any]:
        """The arguments as they were given."""
        values: list[Any] = pytree.tree_unflatten(list(self.leaves), self.spec)
        return values

    def leaf_names(self) -> list[str]:
        """Of every leaf, the argument that it is or is part of."""
        counts = [pytree.tree_structure(value).num_leaves for value in self.values()]
        return [name for name, count in zip(self.names, counts, strict=True) for _ in range(count)]

    def key(self) -> str:
        """All that decides a function: shapes, dtypes, bounds and attributes."""
        return repr([replace(v, name="") if isinstance(v, Value) else v for v in self.leaves])


def _arguments(given: Mapping[str, Any]) -> _Arguments:
    leaves, spec = pytree.tree_flatten(list(given.values()))
    return _Arguments(tuple(given), tuple(leaves), spec)


def _multiplies(entry: Op) -> bool:
    return any(part in entry.name for part in ("matmul", "conv_"))


def _function_call(body: Body, entry: Op, call: _Arguments, node: Node) -> Emitted:
    """A call of the function for these arguments, which is written when it is first called."""
    leaves = list(call.leaves)
    if RUN_TIME in call.names:
        at = call.leaf_names().index(RUN_TIME)
        if not isinstance(leaves[at], Value):
            leaves[at] = body.constant(leaves[at], torch.int64)
    call = replace(call, leaves=tuple(leaves))
    key = f"{entry.name} {call.key()}"
    if key not in _functions(body):
        _functions(body)[key] = _function(body, entry, call, node)
    name, outputs = _functions(body)[key]
    made = [body.fresh(f"{name}", value) for value in outputs]
    body.several(name, call.tensors, made, domain=DOMAIN)
    return tuple(made) if entry.several else made[0]


def _functions(body: Body) -> dict[str, tuple[str, tuple[Value, ...]]]:
    return body.store.written


def _function(body: Body, entry: Op, call: _Arguments, node: Node) -> tuple[str, tuple[Value, ...]]:
    name = body.store.function_name(entry.name.partition("::")[2])
    inner = Body(body.store, inline=True, prefix=name)
    formal, leaves = [], []
    for argument, leaf in zip(call.leaf_names(), call.leaves, strict=True):
        if isinstance(leaf, Value):
            leaf = inner.fresh(argument, leaf)
            formal.append(leaf)
        leaves.append(leaf)
    results = _defined(inner, entry, call, leaves, node)
    outputs = results if isinstance(results, tuple) else (results,)
    # An output that is an input, or twice the same, needs a node of its own.
    distinct = [inner.call("Identity", value, largest=value.largest) for value in outputs]
    documentation = f"{entry.doc}\n\n{entry.reference.__doc__ or ''}"
    body.store.functions[name] = helper.make_function(
        DOMAIN,
        name,
        [value.name for value in formal],
        [value.name for value in distinct],
        [*inner.constants, *inner.nodes],
        [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        doc_string=documentation,
    )
    return name, tuple(distinct)


def _traced(body: Body, entry: Op, call: _Arguments, leaves: Any) -> Emitted:
    """Write what the reference of `entry` computes of these arguments, values for tensors."""
    run_time = dict(zip(call.names, pytree.tree_unflatten(list(leaves), call.spec), strict=True))
    stream = run_time.get(RUN_TIME)
    lifted = isinstance(stream, Value)
    module = _definition(entry, [_stand_in(v, lifted and v is stream) for v in leaves], call.spec)
    sources = [leaf for leaf in leaves if isinstance(leaf, Value) and leaf is not stream]
    placeholders = module.graph.find_nodes(op="placeholder")
    if isinstance(stream, Value):
        sources.insert(0, stream)
    values: dict[Node, Emitted] = dict(zip(placeholders, sources, strict=True))
    refused: list[Refused] = []
    results = emit_graph(body, module, values, refused)
    if refused:
        raise NoForm("; ".join(f"{one.op}: {one.why}" for one in refused))
    return results if entry.several else results[0]


_SENTINEL = 0x5EED
"""What stands for RUN_TIME while a reference is traced."""


def _stand_in(leaf: Any, is_stream: bool) -> Any:
    if is_stream:
        return _SENTINEL
    if isinstance(leaf, Value):
        return torch.empty(leaf.shape, dtype=leaf.dtype, device="meta")
    return leaf


_DEFINITIONS: dict[str, GraphModule] = {}
"""Traced references by entry, shapes, dtypes and attributes: tracing takes longest."""


def _definition(entry: Op, leaves: Sequence[Any], spec: Any) -> GraphModule:
    """What an entry's reference computes of arguments like these, as a graph of ATen ops and other
    entries; where the stand-in of RUN_TIME is among them, its first placeholder is that."""
    text = [f"{v.dtype}{tuple(v.shape)}" if isinstance(v, Tensor) else repr(v) for v in leaves]
    key = f"{entry.name} {text} {spec}"
    if key in _DEFINITIONS:
        return _DEFINITIONS[key]
    definition = entry.reference

    def reference(*given: Tensor) -> Any:
        rest = iter(given)
        filled = [next(rest) if isinstance(one, Tensor) else one for one in leaves]
        return definition(*pytree.tree_unflatten(filled, spec))

    tensors = [torch.empty(v.shape, dtype=v.dtype) for v in leaves if isinstance(v, Tensor)]
    with _whole_entries(entry), torch.no_grad():
        module = make_fx(functionalize(reference), tracing_mode="fake")(*tensors)
    if any(type(one) is int and one == _SENTINEL for one in leaves):
        _lift(module)
    _DEFINITIONS[key] = module
    return module


def _lift(module: GraphModule) -> None:
    """Make RUN_TIME a placeholder, the first, which inner calls of entries read."""
    first = next(iter(module.graph.nodes))
    with module.graph.inserting_before(first):
        placeholder = module.graph.placeholder(RUN_TIME)
    for node in module.graph.nodes:
        given = {} if find(node.target) is None else arguments(node)
        if given.get(RUN_TIME) == _SENTINEL:
            given[RUN_TIME] = placeholder
            node.args, node.kwargs = tuple(given.values()), {}


@contextmanager
def _whole_entries(traced: Op) -> Iterator[None]:
    """While `traced` is traced, the references that it calls are nodes, not what they compute."""
    kept = {entry: entry.reference for entry in OPS.values() if entry is not traced}
    try:
        for entry in kept:
            entry.reference = entry.__call__
        yield
    finally:
        for entry, reference in kept.items():
            entry.reference = reference
