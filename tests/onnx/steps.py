"""Whole graphs in onnxruntime, in eager PyTorch and in compiled kernels, side by side."""

from collections.abc import Mapping
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from sqcompile import api
from sqcompile.onnx import model as models
from sqcompile.onnx.source import Source
from sqcompile.ops import OPS
from sqcompile.ops.quantize import limits
from sqcompile.passes.editing import arguments
from sqcompile.recipe import Recipe
from tests.onnx.runs import run, same

PRODUCTS = {"shift_matmul": "a", "conv_fprop": "x", "conv_dgrad": "g", "conv_wgrad": "g"}
"""Integer products; every fused op begins with the arguments of one of them."""


def sources(model: nn.Module, inputs: tuple[Any, ...], recipe: str) -> dict[str, Source]:
    """The three graphs of a model, without compiling it."""
    found = {}
    for kinds, training in ((("eval",), False), (("forward", "backward"), True)):
        model.train(training)
        parts = api.rewrite(model, inputs, {}, Recipe.load(recipe), gradients=training).parts
        ports = {f"{port.kind}:{port.name}" for port in parts.inputs}
        saved = tuple(name for name in parts.saved if name not in ports)
        weights = {
            name: tensor.detach()
            for name, tensor in [
                *model.named_parameters(remove_duplicate=False),
                *model.named_buffers(remove_duplicate=False),
            ]
        }
        for kind in kinds:
            graph = parts.backward if kind == "backward" else parts.forward
            results = (*parts.outputs, *saved) if kind != "backward" else tuple(parts.gradients)
            about = {"sqcompile": "0", "recipe": {}}
            found[kind] = Source(kind, graph, results, weights, about)
    return found


def drawn(node: Node, source: Source, inputs: tuple[Any, ...], seed: torch.Generator) -> Tensor:
    """A value for a placeholder: what the step has, or integers of the bits that it says."""
    value, port = node.meta["val"], node.meta.get("port")
    if node.name == "rng":
        return torch.tensor([5, 3, 1, 0])
    if port is not None and port.kind in ("param", "buffer"):
        return source.weights[port.name]
    if port is not None and port.kind == "input":
        return pytree.tree_leaves(inputs)[int(port.name)]
    if value.dtype == torch.float32:
        return torch.randn(value.shape, generator=seed)
    low, high = limits(node.meta.get("bits", 2), node.meta.get("signed", False))
    return torch.randint(low, high + 1, value.shape, generator=seed).to(value.dtype)


def eager(graph: GraphModule, given: list[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """(results, the integer sums of every product by node) of the references."""
    sums: dict[str, Tensor] = {}

    class Watching(Interpreter):
        def run_node(self, node: Node) -> Any:
            result = super().run_node(node)
            name = getattr(node.target, "_schema", None)
            kind = next((p for p in PRODUCTS if name is not None and f"sq::{p}" in name.name), None)
            if kind is not None:
                args, _ = self.fetch_args_kwargs_from_env(node)
                named = dict(zip(arguments(node), args, strict=False))
                op = OPS[f"sq::{kind}"]
                wanted = [argument.name for argument in op.target._schema.arguments]
                rest = {"exponent": None, "shift_groups": 1}
                sums[node.name] = op.reference(*({**rest, **named}[one] for one in wanted))
            return result

    with torch.no_grad():
        return list(Watching(graph).run(*given)), sums


def feeds(graph: GraphModule, given: list[Tensor]) -> dict[str, Tensor]:
    placeholders = graph.graph.find_nodes(op="placeholder")
    return {
        models.input_name(node): value.contiguous()
        for node, value in zip(placeholders, given, strict=True)
    }


def compare(source: Source, inputs: tuple[Any, ...]) -> int:
    """Run a graph in both: all results and all accumulators must agree -> number of products."""
    model, refused = models.model(source, accumulators=True)
    assert not refused, refused
    onnx.checker.check_model(model, full_check=True)
    seed = torch.Generator().manual_seed(3)
    placeholders = source.graph.graph.find_nodes(op="placeholder")
    given = [drawn(node, source, inputs, seed) for node in placeholders]
    results, sums = eager(source.graph, given)
    got = run(model, feeds(source.graph, given))
    check_equal(got, results, sums)
    return len(sums)


def check_equal(got: Mapping[str, Tensor], results: list[Tensor], sums: dict[str, Tensor]) -> None:
    accumulators = {name: value for name, value in got.items() if name.endswith(".accumulator")}
    rest = [value for name, value in got.items() if name not in accumulators]
    for actual, expected in zip(rest, results, strict=True):
        assert same(actual, expected)
    assert {f"{name}.accumulator" for name in sums} == set(accumulators)
    for name, expected in sums.items():
        assert same(accumulators[f"{name}.accumulator"], expected), name
