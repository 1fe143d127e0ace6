"""Nodes of an ONNX graph or function as they are written, one after the other.

Every shape is static and every value knows its shape and dtype, so that an emitter writes ops with
their results in the way it would in PyTorch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto, helper
from torch import Tensor

from sqcompile.onnx.dtypes import ONNX_TYPES

OPSET = 26
"""The first with BitCast, which exp, log and the quantisers' comparisons are made of."""
DOMAIN = "sqcompile"
"""Of the model's own functions."""
_FEW = 1 << 12
"""Elements of a constant that is written out even when they are all equal."""


@dataclass(frozen=True)
class Value:
    """A tensor in an ONNX graph. largest: a bound of its integers' magnitudes, where one is
    known."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    largest: int | None = None


@dataclass
class Store:
    """What all bodies of one model share: names that are taken, and functions by name; `written`
    has a function's name and results by what it was written for."""

    names: dict[str, int] = field(default_factory=dict)
    functions: dict[str, FunctionProto] = field(default_factory=dict)
    written: "dict[str, tuple[str, tuple[Value, ...]]]" = field(default_factory=dict)

    def function_name(self, wanted: str) -> str:
        """`wanted`, with a number behind it when a function has it already."""
        return self.name(f"{DOMAIN}.{wanted}").partition(".")[2]

    def name(self, wanted: str) -> str:
        """`wanted`, with a number behind it when it is taken."""
        count = self.names.get(wanted, 0)
        self.names[wanted] = count + 1
        if not count:
            return wanted
        return self.name(f"{wanted}_{count}")


class Body:
    """The nodes and constants of one graph, subgraph or function.

    inline: constants are nodes, as functions and subgraphs want them, not initialisers.
    """

    def __init__(self, store: Store, *, inline: bool = False, prefix: str = "") -> None:
        self.store = store
        self.inline = inline
        self.prefix = prefix
        self.place = ""
        self.properties: dict[str, str] = {}
        self.nodes: list[NodeProto] = []
        self.constants: list[NodeProto] = []
        self.initialisers: list[TensorProto] = []
        self.accumulators: dict[str, Value] = {}
        self.values: dict[str, Value] = {}
        self._constants: dict[Any, Value] = {}

    def call(
        self,
        op: str,
        *inputs: Value | None,
        dtype: torch.dtype | None = None,
        shape: Sequence[int] | None = None,
        largest: int | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> Value:
        """One node with one output; by default of the first input's dtype, and of the shape to
        which the inputs broadcast."""
        given = [value for value in inputs if value is not None]
        sizes = torch.broadcast_shapes(*(v.shape for v in given)) if shape is None else shape
        made = Value(
            self.store.name(self._local(op)),
            given[0].dtype if dtype is None else dtype,
            tuple(sizes),
            largest,
        )
        self.several(op, inputs, [made], domain=domain, **attributes)
        return made

    def several(
        self,
        op: str,
        inputs: Sequence[Value | None],
        outputs: Sequence[Value],
        *,
        domain: str = "",
        **attributes: Any,
    ) -> None:
        """One node with these outputs."""
        node = helper.make_node(
            op,
            ["" if value is None else value.name for value in inputs],
            [value.name for value in outputs],
            name=outputs[0].name,
            doc_string=self.place,
            domain=domain,
            **attributes,
        )
        self.values |= {value.name: value for value in outputs}
        for key, text in self.properties.items():
            entry = node.metadata_props.add()
            entry.key, entry.value = key, text
        self.nodes.append(node)

    def fresh(self, name: str, like: Value) -> Value:
        """A value of `like`'s shape and dtype under a name of its own."""
        return replace(like, name=self.store.name(self._local(name)))

    def constant(self, tensor: Tensor | float | int, dtype: torch.dtype | None = None) -> Value:
        """A constant tensor, or a number as one of `dtype`; equal ones are one."""
        if not isinstance(tensor, Tensor):
            tensor = torch.tensor(tensor, dtype=dtype)
        tensor = tensor.detach().contiguous()
        if tensor.numel() > _FEW and bool((tensor == tensor.flatten()[0]).all()):
            return self.filled(tensor.flatten()[0].item(), tensor.dtype, tensor.shape)
        key = (tensor.dtype, tuple(tensor.shape), tensor.numpy().tobytes())
        if key not in self._constants:
            self._constants[key] = self._constant(tensor)
        return self._constants[key]

    def filled(self, number: float, dtype: torch.dtype, shape: Sequence[int]) -> Value:
        """A tensor of one number."""
        return self.call(
            "ConstantOfShape",
            self.numbers(shape),
            dtype=dtype,
            shape=shape,
            value=helper.make_tensor("value", ONNX_TYPES[dtype], [1], [number]),
        )

    def numbers(self, values: Sequence[int]) -> Value:
        """Integers as ONNX takes axes, sizes and places: an int64 vector."""
        return self.constant(torch.tensor(list(values), dtype=torch.int64))

    def _constant(self, tensor: Tensor) -> Value:
        name = self.store.name(self._local("constant"))
        value = Value(name, tensor.dtype, tuple(tensor.shape), largest_of(tensor))
        proto = tensor_proto(tensor, "value" if self.inline else name)
        if self.inline:
            self.constants.append(helper.make_node("Constant", [], [name], name=name, value=proto))
        else:
            self.initialisers.append(proto)
        return value

    def _local(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def rename(self, value: Value, name: str, since: int) -> Value:
        """Give a value that was made by the nodes from number `since` on another name; one that
        is older keeps its own."""
        made = [node for node in self.nodes[since:] if value.name in node.output]
        if not made or name in self.store.names:
            return value
        self.store.name(name)
        for node in self.nodes[since:]:
            _renamed(node, value.name, name)
        self.values[name] = replace(self.values.pop(value.name), name=name)
        for key, accumulator in self.accumulators.items():
            if accumulator.name == value.name:
                self.accumulators[key] = replace(accumulator, name=name)
        return replace(value, name=name)

    def part(self, prefix: str) -> "Body":
        """A body for a subgraph of a node, like a loop's."""
        return Body(self.store, inline=True, prefix=self._local(prefix))

    def graph(self, name: str, inputs: Sequence[Value], outputs: Sequence[Value]) -> GraphProto:
        """This body as a graph."""
        return helper.make_graph(
            [*self.constants, *self.nodes],
            name,
            [described(value) for value in inputs],
            [described(value) for value in outputs],
            self.initialisers,
        )


def _renamed(node: NodeProto, old: str, new: str) -> None:
    for names in (node.input, node.output):
        for position, name in enumerate(names):
            if name == old:
                names[position] = new
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            for inner in attribute.g.node:
                _renamed(inner, old, new)


def described(value: Value) -> Any:
    """A value's name, dtype and shape, as a graph lists its inputs and outputs."""
    return helper.make_tensor_value_info(value.name, ONNX_TYPES[value.dtype], value.shape)


def tensor_proto(tensor: Tensor, name: str) -> TensorProto:
    """A tensor's bytes as an initialiser."""
    tensor = tensor.detach().contiguous()
    return helper.make_tensor(
        name, ONNX_TYPES[tensor.dtype], tensor.shape, tensor.numpy().tobytes(), raw=True
    )


def largest_of(tensor: Tensor) -> int | None:
    """The largest magnitude of bytes."""
    if tensor.dtype not in (torch.int8, torch.uint8) or not tensor.numel():
        return None
    return max(abs(int(tensor.min())), abs(int(tensor.max())))
