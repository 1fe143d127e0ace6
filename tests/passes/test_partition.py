"""Cutting the joint graph: what crosses, what is taken again, and that nothing changes."""

import pytest
import torch

from sqcompile.capture import capture
from sqcompile.passes.partition import partition
from sqcompile.passes.pipeline import integer_training, run
from sqcompile.recipe import RECIPES
from tests.models import make


def _step(name, recipe="w4a4g4"):
    model, inputs = make(name)
    captured = capture(model, inputs, {})
    graph, _ = run(captured.graph, integer_training(RECIPES[recipe]))
    sources = {
        "param": dict(model.named_parameters()),
        "buffer": dict(model.named_buffers()),
        "input": {str(i): x for i, x in enumerate(inputs)},
    }
    return captured, graph, sources


@pytest.mark.parametrize("name", ["mlp", "resnet", "odd"])
def test_forward_then_backward_is_the_joint_graph(name):
    captured, graph, sources = _step(name)
    parts = partition(graph, captured.outputs)
    rng = torch.tensor([7, 1, 0, 0])
    tangents = [
        torch.randn(node.meta["val"].shape)
        for node in graph.graph.find_nodes(op="placeholder")
        if node.name.startswith("g_")
    ]
    values = [sources[port.kind][port.name] for port in parts.inputs]
    with torch.no_grad():
        expected = graph(*values, *tangents, rng)
        results = parts.forward(*values, rng)
        outputs, computed = results[: len(parts.outputs)], iter(results[len(parts.outputs) :])
        named = {f"{p.kind}:{p.name}": v for p, v in zip(parts.inputs, values, strict=True)}
        saved = [named[key] if key in named else next(computed) for key in parts.saved]
        gradients = parts.backward(*saved, rng, *tangents)
    both = dict(zip(captured.outputs, expected, strict=True))
    for port, value in zip([*parts.outputs, *parts.gradients], [*outputs, *gradients], strict=True):
        assert torch.equal(value, both[port]), port


def test_only_packed_values_scales_and_parameters_cross():
    captured, graph, _ = _step("resnet")
    parts = partition(graph, captured.outputs)
    crossing = {
        node.name: node.meta["val"]
        for node in parts.backward.graph.find_nodes(op="placeholder")
        if node.name in parts.saved
    }
    large_floats = [n for n, v in crossing.items() if v.dtype == torch.float32 and v.numel() > 64]
    assert not large_floats
    eight_bit = [n for n, v in crossing.items() if v.dtype == torch.int8]
    assert len(eight_bit) == 2, "only the first layer's input and the last layer's weight"


def test_inference_saves_nothing():
    captured, graph, _ = _step("mlp")
    parts = partition(graph, captured.outputs, inference=True)
    assert parts.backward is None and not parts.saved
    outputs = parts.forward.graph.output_node().args[0]
    assert len(outputs) == len(parts.outputs)
