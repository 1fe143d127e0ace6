"""From fx graphs to one Relax module: one call per node, one kernel per spec, nothing guessed.

The translation is an allow-list: a node whose op has no kernel is an error, and `unsupported`
tells all of them before anything is lowered. Tensors are contiguous in their logical shape, so
ops that only rename axes cost nothing, and those that reorder elements are copies.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import getitem
from typing import Any, NamedTuple

import numpy as np
import torch
import tvm
from torch import fx
from tvm import relax

from sqcompile.backends.kernels import (
    Kernel,
    KernelSpec,
    TensorSpec,
    node_outputs,
    op_name,
    spec_of,
    tensor_spec,
)
from sqcompile.backends.targets import Target

_VIEWS = {
    "aten::view.default",
    "aten::reshape.default",
    "aten::_unsafe_view.default",
    "aten::unsqueeze.default",
    "aten::squeeze.default",
    "aten::squeeze.dim",
    "aten::squeeze.dims",
    "aten::detach.default",
    "aten::alias.default",
    "aten::clone.default",
    "aten::lift_fresh_copy.default",
}
"""Ops whose result has the elements of their argument in the same order."""
_REORDERED = {"aten::permute.default": "dims", "aten::transpose.int": "", "aten::t.default": ""}
_SAME_WHEN_FULL = {"aten::expand.default", "aten::slice.Tensor", "aten::_to_copy.default"}
_MAYBE_VIEWS = _VIEWS | set(_REORDERED) | _SAME_WHEN_FULL
_COPY = "aten::clone.default"


@dataclass(frozen=True)
class Unsupported:
    """A node that the target cannot run, and where it comes from."""

    op: str
    node: str
    reason: str
    stack_trace: str
    module: str


@dataclass
class KernelRecord:
    """A kernel of a lowered module and the nodes ("forward/mm_1") that call it."""

    name: str
    op: str
    spec: KernelSpec
    nodes: list[str] = field(default_factory=list)


class Lowered(NamedTuple):
    """A Relax module and what is known of its kernels."""

    module: tvm.IRModule
    kernels: list[KernelRecord]


def unsupported(graph: fx.GraphModule, target: Target) -> list[Unsupported]:
    """Every node of `graph` that `target` has no kernel for, in graph order."""
    return [
        Unsupported(
            op_name(node.target),
            node.name,
            reason,
            node.meta.get("stack_trace") or "",
            node.meta.get("module") or "",
        )
        for node in graph.graph.nodes
        if node.op == "call_function" and (reason := _refusal(node, target))
    ]


def _refusal(node: fx.Node, target: Target) -> str:
    """Why a node cannot be lowered; "" when it can."""
    if node.target is getitem:
        return ""
    name = op_name(node.target)
    if not isinstance(node.target, torch._ops.OpOverload):
        return "not an operator call"
    if name not in target.kernels and name not in _MAYBE_VIEWS:
        return f"no kernel for target '{target.name}'"
    spec, _ = spec_of(node)
    if _is_view(spec):
        return ""
    if name not in target.kernels:
        return f"no kernel for target '{target.name}'"
    return target.kernels[name].limit(spec)


def _is_view(spec: KernelSpec) -> bool:
    """Whether the result is the argument under another shape."""
    if spec.op in _VIEWS:
        return True
    if spec.op not in _REORDERED and spec.op not in _SAME_WHEN_FULL:
        return False
    source, result = spec.tensor("self"), spec.outputs[0]
    if spec.op in _SAME_WHEN_FULL:
        return bool(source == result)
    return _order(spec, source.shape) == [d for d, n in enumerate(source.shape) if n != 1]


def _order(spec: KernelSpec, shape: tuple[int, ...]) -> list[int]:
    """The axes longer than 1 in the order in which a permutation leaves them."""
    rank = len(shape)
    axes = list(range(rank))
    if spec.op == "aten::permute.default":
        axes = [d % rank for d in spec["dims"]]
    elif spec.op == "aten::t.default":
        axes.reverse()
    elif rank:
        a, b = spec["dim0"] % rank, spec["dim1"] % rank
        axes[a], axes[b] = axes[b], axes[a]
    return [axis for axis in axes if shape[axis] != 1]


def lower(graphs: Mapping[str, fx.GraphModule], target: Target) -> Lowered:
    """One Relax function per graph, returning a tuple of all tensors that the graph returns.

    Outputs share no memory with inputs or with each other: an output that is an input, a view of
    one, or returned twice, is copied. Graphs must have passed `unsupported`; None among the
    outputs is left out.
    """
    lowering = _Lowering(target)
    with target.compiled_for():
        for name, graph in graphs.items():
            lowering.function(name, graph)
    return Lowered(lowering.builder.get(), lowering.records)


class _Lowering:
    """The state of one call of `lower`: the module so far and its kernels by spec."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.builder = relax.BlockBuilder()
        self.records: list[KernelRecord] = []
        self._by_spec: dict[KernelSpec, tuple[Any, KernelRecord]] = {}
        self._names: Counter[str] = Counter()

    def kernel(self, spec: KernelSpec, kernel: Kernel, user: str) -> Any:
        """The global variable of the kernel for `spec`, generated at its first use."""
        if spec not in self._by_spec:
            index = self._names[spec.short_name]
            self._names[spec.short_name] += 1
            name = f"{spec.short_name}_{index}" if index else spec.short_name
            function = kernel.generate(spec).with_attr("global_symbol", name)
            record = KernelRecord(name, spec.op, spec)
            self.records.append(record)
            self._by_spec[spec] = self.builder.add_func(function, name), record
        variable, record = self._by_spec[spec]
        record.nodes.append(user)
        return variable

    def call(self, spec: KernelSpec, arguments: list[Any], user: str) -> Any:
        """Emit a call of the kernel for `spec`."""
        kernel = self.target.kernels[spec.op]
        arguments = list(arguments)
        if kernel.run_time:
            values = np.array([spec[name] for name in kernel.run_time], dtype=np.int64)
            arguments.append(relax.const(values, "int64"))
        variable = self.kernel(spec.without(kernel.run_time), kernel, user)
        types = [_type(one) for one in spec.outputs]
        result = types if len(types) > 1 else types[0]
        return self.builder.emit(relax.call_tir(variable, relax.Tuple(arguments), result))

    def function(self, name: str, graph: fx.GraphModule) -> None:
        """Add the Relax function of one graph."""
        body = _Body(self, name, graph)
        parameters = [
            relax.Var(node.name, _type(tensor_spec(node.meta["val"])))
            for node in graph.graph.nodes
            if node.op == "placeholder"
        ]
        with self.builder.function(name, parameters):
            with self.builder.dataflow():
                body.translate(parameters)
                outputs = self.builder.emit_output(relax.Tuple(body.outputs()))
            self.builder.emit_func_output(outputs)


class _Body:
    """The translation of one graph: the Relax value of each node and the memory it stands on."""

    def __init__(self, lowering: _Lowering, name: str, graph: fx.GraphModule) -> None:
        self.lowering, self.name, self.graph = lowering, name, graph
        self.values: dict[fx.Node, Any] = {}
        self.roots: dict[fx.Node, Any] = {}

    def translate(self, parameters: list[Any]) -> None:
        """Translate every node but the output."""
        left = iter(parameters)
        for node in self.graph.graph.nodes:
            self.roots[node] = node
            if node.op == "placeholder":
                self.values[node] = next(left)
            elif node.op == "get_attr":
                constant = getattr(self.graph, str(node.target)).detach().contiguous()
                self.values[node] = relax.const(constant.numpy(), str(constant.dtype)[6:])
            elif node.op == "call_function":
                self.values[node] = self._call(node)

    def _call(self, node: fx.Node) -> Any:
        if node.target is getitem:
            source, index = node.args
            assert isinstance(source, fx.Node)
            self.roots[node] = (source, index)
            return self.lowering.builder.emit(relax.TupleGetItem(self.values[source], index))
        spec, nodes = spec_of(node)
        if _is_view(spec):
            self.roots[node] = self.roots[nodes[0]]
            value = self.values[nodes[0]]
            if spec.tensor("self").shape == spec.outputs[0].shape:
                return value
            shape = relax.ShapeExpr(spec.outputs[0].shape)
            return self.lowering.builder.emit(relax.op.reshape(value, shape))
        arguments = [self.values[one] for one in nodes]
        return self.lowering.call(spec, arguments, f"{self.name}/{node.name}")

    def outputs(self) -> list[Any]:
        """The returned values, copied where they would share memory."""
        taken = {node for node in self.graph.graph.nodes if node.op in ("placeholder", "get_attr")}
        (output,) = self.graph.graph.find_nodes(op="output")
        returned = []
        for node in _flat(output.args[0]):
            value, root = self.values[node], self.roots[node]
            if root in taken:
                (fake,) = node_outputs(node)
                one = tensor_spec(fake)
                spec = KernelSpec(_COPY, (("self", one),), (("memory_format", None),), (one,))
                value = self.lowering.call(spec, [value], f"{self.name}/output")
            taken.add(root)
            returned.append(value)
        return returned


def _flat(outputs: Any) -> list[fx.Node]:
    """The nodes among a graph's outputs, in order."""
    if isinstance(outputs, fx.Node):
        return [outputs]
    if isinstance(outputs, (list, tuple)):
        return [node for one in outputs for node in _flat(one)]
    return []


def _type(one: TensorSpec) -> Any:
    return relax.TensorType(one.shape, one.dtype)
