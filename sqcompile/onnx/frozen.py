"""What a graph of evaluation computes from weights alone, computed when it is exported."""

from collections.abc import Mapping
from typing import Any

import torch
from onnx import TensorProto, helper
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from sqcompile.onnx.body import Body, Value, largest_of, tensor_proto
from sqcompile.onnx.dtypes import ONNX_TYPES
from sqcompile.ops.pack import pack_int4

_NIBBLES = {torch.int8: (TensorProto.INT4, 7), torch.uint8: (TensorProto.UINT4, 15)}
"""The 4-bit type for bytes of a dtype, and the largest magnitude that it has on both sides."""


def frozen(module: GraphModule, weights: Mapping[Node, Tensor]) -> dict[Node, Tensor]:
    """Tensors of every node that depends on `weights` and constants alone, and that a node which
    does not, or the output, reads."""
    known: dict[Node, Any] = dict(weights)
    for node in module.graph.nodes:
        if node.op == "get_attr":
            known[node] = getattr(module, str(node.target))
        elif node.op == "call_function" and all(n in known for n in node.all_input_nodes):
            args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
            with torch.no_grad():
                known[node] = node.target(*args, **kwargs)
    return {
        node: value
        for node, value in known.items()
        if isinstance(value, Tensor) and any(user not in known for user in node.users)
    }


def initialiser(body: Body, name: str, tensor: Tensor) -> Value:
    """A tensor as an initialiser: bytes that fit 4 bits are stored so, and cast to bytes."""
    name = body.store.name(name)
    kind, most = _NIBBLES.get(tensor.dtype, (None, 0))
    largest = largest_of(tensor)
    value = Value(name, tensor.dtype, tuple(tensor.shape), largest)
    if kind is None or largest is None or largest > most:
        body.initialisers.append(tensor_proto(tensor, name))
        return value
    nibbles = pack_int4.reference(tensor).numpy().tobytes()
    stored = body.store.name(f"{name}.4bit")
    body.initialisers.append(helper.make_tensor(stored, kind, tensor.shape, nibbles, raw=True))
    as_read = Value(stored, tensor.dtype, value.shape)
    body.several("Cast", [as_read], [value], to=ONNX_TYPES[tensor.dtype])
    return value
