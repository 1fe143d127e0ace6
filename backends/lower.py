"""From fx graphs to one Relax module: one call per node, one kernel per spec, nothing guessed.

The translation is an allow-list: a node whose op has no kernel is an error, and `unsupported`
tells all of them before anything is lowered. Tensors are contiguous in their logical shape, so
ops that only rename axes cost nothing, and those that reorder elements are copies. Elementwise
ops that hang together become one kernel (`sqcompile.backends.fusion`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import getitem
from typing import Any, NamedTuple

import numpy as np
import torch
import tvm
from torch import fx
from tvm import relax

from sqcompile.backends import views
from sqcompile.backends.fusion import Group, Plan
from sqcompile.backends.kernels import (
    Kernel,
    KernelSpec,
    TensorSpec,
    node_outputs,
    op_name,
    spec_of,
    tensor_spec,
)
from sqcompile.backends.parts import Part, parts_of
from sqcompile.backends.targets import Target

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
    if name not in target.kernels and name not in views.ALWAYS | views.SOMETIMES:
        return f"no kernel for target '{target.name}'"
    spec, _ = spec_of(node)
    if why := target.kernels.limit(spec):
        return why
    if views.is_view(spec):
        return ""
    if name not in target.kernels:
        return f"no kernel for target '{target.name}'"
    return target.kernels[name].limit(spec)


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

    def call(self, spec: KernelSpec, arguments: list[Any], user: str, into: Any = None) -> Any:
        """Emit a call of the kernel for `spec`, which writes into the value `into` if there is
        one."""
        kernel = self.target.kernels[spec.op]
        arguments = list(arguments)
        if kernel.run_time:
            values = np.array([spec[name] for name in kernel.run_time], dtype=np.int64)
            arguments.append(relax.const(values, "int64"))
        variable = self.kernel(spec.without(kernel.run_time), kernel, user)
        types = [_type(one) for one in spec.outputs]
        result = types if len(types) > 1 else types[0]
        if into is not None:
            place, arguments = len(arguments), [*arguments, into]
            call = relax.op.call_tir_inplace(variable, relax.Tuple(arguments), place, result)
            return self.builder.emit(call)
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
    """The translation of one graph: the Relax value of each node. Views are made when they are
    read: groups of nodes read what is behind them."""

    def __init__(self, lowering: _Lowering, name: str, graph: fx.GraphModule) -> None:
        self.lowering, self.name, self.graph = lowering, name, graph
        self.plan = Plan(graph.graph, lowering.target.kernels)
        self.parts = parts_of(self.plan, lowering.target.kernels)
        self.wholes = {part.whole for part in self.parts.values()}
        self.values: dict[fx.Node, Any] = {}

    def translate(self, parameters: list[Any]) -> None:
        """Translate every step."""
        left = iter(parameters)
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = next(left)
            elif node.op == "get_attr":
                constant = getattr(self.graph, str(node.target)).detach().contiguous()
                self.values[node] = relax.const(constant.numpy(), str(constant.dtype)[6:])
        for step in self.plan.steps:
            if isinstance(step, Group):
                self._group(step)
            elif step in self.parts:
                self._part(step, self.parts[step])
            elif step not in self.wholes:
                spec, nodes = self.plan.specs[step]
                self.values[step] = self._call(spec, nodes, step.name)

    def _group(self, group: Group) -> None:
        label = "+".join(node.name for node in group.nodes)
        value = self._call(group.spec, group.inputs, label)
        several = len(group.results) > 1
        for index, node in enumerate(group.results):
            self.values[node] = self._item(value, index) if several else value

    def _part(self, node: fx.Node, part: Part) -> None:
        """A call that writes its part of a value: the first one makes it, the others write into
        what it made, and when all did the value is whole."""
        nodes = self.plan.specs[node][1]
        arguments = [self.value(one) for one in nodes]
        label, begun = f"{self.name}/{node.name}", self.values.get(part.whole)
        self.values[part.whole] = self.lowering.call(part.spec, arguments, label, begun)

    def _call(self, spec: KernelSpec, nodes: Sequence[fx.Node], label: str) -> Any:
        arguments = [self.value(one) for one in nodes]
        return self.lowering.call(spec, arguments, f"{self.name}/{label}")

    def _item(self, value: Any, index: Any) -> Any:
        return self.lowering.builder.emit(relax.TupleGetItem(value, index))

    def value(self, node: fx.Node) -> Any:
        """The Relax value of a node; a view or an item is emitted when it is first read."""
        if node not in self.values:
            if node.target is getitem:
                source, index = node.args
                assert isinstance(source, fx.Node)
                self.values[node] = self._item(self.value(source), index)
            else:
                spec, nodes = self.plan.specs[node]
                value = self.value(nodes[0])
                if spec.tensor("self").shape != spec.outputs[0].shape:
                    shape = relax.ShapeExpr(spec.outputs[0].shape)
                    value = self.lowering.builder.emit(relax.op.reshape(value, shape))
                self.values[node] = value
        return self.values[node]

    def _root(self, node: fx.Node) -> Any:
        """What two values of one memory have in common."""
        root = self.plan.memory[node]
        return root.args if root.target is getitem else root

    def outputs(self) -> list[Any]:
        """The returned values, copied where they would share memory."""
        taken = {node for node in self.graph.graph.nodes if node.op in ("placeholder", "get_attr")}
        (output,) = self.graph.graph.find_nodes(op="output")
        returned = []
        for node in _flat(output.args[0]):
            value, root = self.value(node), self._root(node)
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
