"""One graph of a step as an ONNX model: its inputs, outputs, weights and what made it."""

import json
from typing import Any

import onnx
from onnx import helper
from torch import Tensor
from torch.fx import Node

from sqcompile._torch_compat import Port
from sqcompile.onnx.body import DOMAIN, OPSET, Body, Store, Value, described, tensor_proto
from sqcompile.onnx.emitters import FAMILIES
from sqcompile.onnx.frozen import frozen, initialiser
from sqcompile.onnx.functions import Refused, emit_graph
from sqcompile.onnx.source import Source
from sqcompile.onnx.table import Emitted
from sqcompile.ops.quantize import limits

_DOCS = {
    "param": "A parameter; its value in the step is the default.",
    "buffer": "A buffer; its value in the step is the default.",
    "input": "An input of the model.",
    "tangent": "The gradient that comes in.",
    "rng": "(seed, step, micro_step, rank) of the random draws; the seed's two words xor-ed.",
    "saved": "What forward saved: its output of this name.",
}
_TEXT = {
    "eval": "The forward of evaluation in integers, with its weights.",
    "forward": "The forward of a training step in integers; what backward needs is among its "
    "outputs.",
    "backward": "The backward of a training step in integers.",
}


def model(source: Source, *, accumulators: bool) -> tuple[Any, list[Refused]]:
    """(the ONNX model, []) or (None, all nodes that have no exact form)."""
    assert FAMILIES
    body = Body(Store())
    placeholders = source.graph.graph.find_nodes(op="placeholder")
    values: dict[Node, Emitted] = {}
    inputs: list[tuple[Value, str]] = []
    weights = {n: source.weights[n.meta["port"].name] for n in placeholders if _is_weight(n)}
    known = _freeze(body, source, weights) if source.kind == "eval" else {}
    values.update(known)
    for node in placeholders:
        if node in known or (source.kind == "eval" and node in weights) or not node.users:
            continue
        name = body.store.name(input_name(node))
        value = Value(name, node.meta["val"].dtype, tuple(node.meta["val"].shape), _largest(node))
        values[node] = value
        inputs.append((value, _DOCS[_kind(node)]))
        if node in weights:
            body.initialisers.append(tensor_proto(weights[node], name))
    refused: list[Refused] = []
    results = emit_graph(body, source.graph, values, refused, named=True)
    if refused:
        return None, refused
    outputs = _outputs(body, source, results)
    if accumulators:
        outputs += [
            body_output(body, f"{name}.accumulator", value)
            for name, value in body.accumulators.items()
        ]
    return _assembled(body, source, inputs, outputs), []


def _freeze(body: Body, source: Source, weights: dict[Node, Tensor]) -> dict[Node, Emitted]:
    found = frozen(source.graph, weights)
    return {node: initialiser(body, _frozen_name(node), value) for node, value in found.items()}


def _frozen_name(node: Node) -> str:
    port = node.meta.get("port")
    if port is not None:
        return str(port.name)
    module = node.meta.get("module", "")
    return f"{module}.{node.name}" if module else node.name


def _is_weight(node: Node) -> bool:
    return _kind(node) in ("param", "buffer")


def _kind(node: Node) -> str:
    if node.name == "rng":
        return "rng"
    port = node.meta.get("port")
    return "saved" if port is None else str(port.kind)


def _largest(node: Node) -> int | None:
    bits = node.meta.get("bits")
    return None if bits is None else limits(bits, node.meta.get("signed", True))[1]


def input_name(node: Node) -> str:
    """The name of a placeholder among the inputs."""
    port = node.meta.get("port")
    if port is None:
        return node.name
    place = f"input_{port.name}" if "input" in (port.kind, port.wrt) else str(port.name)
    if port.kind == "tangent":
        return f"{place}.updated.grad" if port.wrt else f"output_{port.name}.grad"
    return place


def _result_name(port: Port | str) -> str:
    if isinstance(port, str):
        return port
    place = f"input_{port.name}" if port.wrt == "input" else port.name
    names = {
        "output": f"output_{port.name}",
        "mutation": f"{place}.updated",
        "grad": f"{place}.grad",
        "absent": f"{place}.grad",
    }
    return names[port.kind]


def body_output(body: Body, name: str, value: Value) -> Value:
    """A value as an output called `name`."""
    if name == value.name:
        return value
    output = Value(body.store.name(name), value.dtype, value.shape)
    body.several("Identity", [value], [output])
    return output


def _outputs(body: Body, source: Source, results: tuple[Value, ...]) -> list[Value]:
    given = {name.name for name in body.values.values()}
    outputs = []
    for port, value in zip(source.results, results, strict=True):
        name = _result_name(port)
        known = name == value.name and name in given
        outputs.append(value if known else body_output(body, name, value))
    return outputs


def _assembled(
    body: Body, source: Source, inputs: list[tuple[Value, str]], outputs: list[Value]
) -> Any:
    listed = []
    for value, text in inputs:
        info = described(value)
        info.doc_string = text
        listed.append(info)
    ends = {value.name for value in outputs}
    read = ends | {name for node in body.nodes for name in node.input}
    graph = helper.make_graph(
        body.nodes,
        source.kind,
        listed,
        [described(value) for value in outputs],
        [tensor for tensor in body.initialisers if tensor.name in read],
        doc_string=_TEXT[source.kind],
        value_info=[described(v) for name, v in body.values.items() if name not in ends],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    proto = helper.make_model(
        graph,
        functions=list(body.store.functions.values()),
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets[:1]),
        producer_name=DOMAIN,
        producer_version=source.about["sqcompile"],
        doc_string="Bits are those of the step where an engine computes every op of its own, as "
        "onnxruntime does with graph optimisations disabled.",
    )
    helper.set_model_props(
        proto,
        {f"{DOMAIN}.{key}": _text(value) for key, value in source.about.items()}
        | {f"{DOMAIN}.onnx": onnx.__version__},
    )
    return proto


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
