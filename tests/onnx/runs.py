"""ONNX models of single ops and of steps, run by onnxruntime, which shares no code with us."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper
from torch import Tensor
from torch.fx import Graph, GraphModule
from torch.utils import _pytree as pytree

from sqcompile.onnx.body import DOMAIN, OPSET, Body, Store, Value
from sqcompile.onnx.emitters import FAMILIES
from sqcompile.onnx.functions import emit_graph


def session(model: onnx.ModelProto, level: str = "ORT_DISABLE_ALL") -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(
    model: onnx.ModelProto, feeds: dict[str, Tensor], level: str = "ORT_DISABLE_ALL"
) -> dict[str, Tensor]:
    """Every output by name."""
    one = session(model, level)
    names = [output.name for output in one.get_outputs()]
    wanted = {i.name for i in one.get_inputs()}
    results = one.run(names, {k: v.detach().numpy() for k, v in feeds.items() if k in wanted})
    return {name: torch.from_numpy(np.array(r)) for name, r in zip(names, results, strict=True)}


def bits(value: Tensor) -> Tensor:
    value = value.contiguous()
    return value.view(torch.int32) if value.dtype == torch.float32 else value


def same(actual: Tensor, expected: Tensor) -> bool:
    """Shape, dtype and every bit, but for the payload of a NaN."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return False
    equal = bits(actual) == bits(expected)
    if actual.dtype.is_floating_point:
        equal |= actual.isnan() & expected.isnan()
    return bool(equal.all())


def one_call(target: Any, arguments: list[Any]) -> onnx.ModelProto:
    """A model of one call: its inputs are the tensors among the arguments, x0, x1, ..."""
    leaves, spec = pytree.tree_flatten(arguments)
    graph, values, inputs, filled = Graph(), {}, [], []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            node = graph.placeholder(f"x{len(inputs)}")
            node.meta["val"] = leaf
            values[node] = Value(node.name, leaf.dtype, tuple(leaf.shape))
            inputs.append(values[node])
            leaf = node
        filled.append(leaf)
    call = graph.call_function(target, tuple(pytree.tree_unflatten(filled, spec)))
    result = target(*arguments)
    call.meta["val"] = result
    several = not isinstance(result, Tensor)
    assert FAMILIES
    body, refused = Body(Store()), []
    returned = [call]
    if several:
        import operator

        returned = [graph.call_function(operator.getitem, (call, i)) for i in range(len(result))]
    graph.output(tuple(returned))
    outputs = emit_graph(body, GraphModule({}, graph), values, refused)
    assert not refused, refused
    named = [body.call("Identity", value) for value in outputs]
    proto = body.graph("one", inputs, named)
    model = helper.make_model(
        proto,
        functions=list(body.store.functions.values()),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        ir_version=13,
    )
    onnx.checker.check_model(model, full_check=True)
    return model
