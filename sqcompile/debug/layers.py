"""What two runs of a model's step are compared by: the values of its layers, found by the names of
modules and parameters, whatever the graph calls its nodes.

A layer's output is what its product gives before anything else is done; where a batch norm reads
the accumulators themselves, they are multiplied by their scale here. Images are channels first, as
the model has them.
"""

import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sqcompile import _torch_compat as compat
from sqcompile.capture import Capture
from sqcompile.debug.observe import Observed, handed_on, walk
from sqcompile.passes.partition import partition
from sqcompile.passes.pipeline import Pass, integer_training
from sqcompile.passes.pipeline import run as run_passes
from sqcompile.recipe import Recipe

OUTPUT, INPUT_GRADIENT, GRADIENT, RESULT = "output", "input gradient", "gradient", "result"
_LAST_FLOAT, _LAST_PLAIN = "fold_derived", "share_quantized"
_LATER = ("save_slopes",)
"""Passes behind the last plain one that quantise; the others only fuse, and change no bit."""
_PRODUCTS = {"fprop": OUTPUT, "dgrad": INPUT_GRADIENT}
_GIVES = ("sq.matmul", "sq.conv", "sq.conv_input_grad", "sq.dequantize")
_NORMS = ("sq.batch_norm", "sq.layer_norm", "sq.l1_batch_norm", "sq.l1_layer_norm")

Objective = Callable[[Any], Tensor]
"""From what the model returns to a scalar."""


@dataclass(frozen=True)
class Point:
    """A value that every run of a model has. kind: "output" of a layer, its "input gradient", the
    "gradient" of a parameter, or a "result" of the model; name: a module's or parameter's path, or
    the result's position; turn: which of the module's calls."""

    kind: str
    name: str
    turn: int = 0

    def __str__(self) -> str:
        return f"{self.kind} of {self.name or '(model)'}" + (
            f", call {self.turn + 1}" * (self.turn > 0)
        )


@dataclass
class Values:
    """One run: values by point, in the order in which they were computed; the user's lines of
    those that are known; the loss, None without one."""

    points: dict[Point, Tensor] = field(default_factory=dict)
    lines: dict[Point, str] = field(default_factory=dict)
    loss: float | None = None

    def add(self, kind: str, name: str, value: Tensor, line: str = "") -> None:
        """Keep a value under the next turn of its name."""
        turn = 0
        while (point := Point(kind, name, turn)) in self.points:
            turn += 1
        self.points[point] = value.detach().clone()
        self.lines[point] = line


@dataclass(frozen=True)
class Call:
    """What is run: a call's arguments, the values of parameters and buffers by name, the draws'
    state, and the objective, None for drawn gradients of the outputs."""

    args: tuple[Any, ...]
    state: dict[str, Tensor]
    rng: Tensor
    objective: Objective | None


def until(passes: list[Pass], last: str) -> list[Pass]:
    """The passes up to the one called `last`."""
    names = [one.name for one in passes]
    return passes[: names.index(last) + 1]


def prepared(captured: Capture) -> Capture:
    """A captured call with the passes that no recipe changes: the step in float, with L1 norms."""
    graph, _ = run_passes(captured.graph, until(integer_training(Recipe()), _LAST_FLOAT))
    return replace(captured, graph=graph)


def quantising(recipe: Recipe) -> list[Pass]:
    """The passes that decide values, for a prepared call."""
    passes = integer_training(recipe)
    first = len(until(passes, _LAST_FLOAT))
    plain = until(passes, _LAST_PLAIN)[first:]
    return plain + [one for one in passes if one.name in _LATER]


def of_graph(float_step: Capture, call: Call, passes: list[Pass]) -> Values:
    """Run a prepared call through `passes` and through its reference graphs."""
    graph, _ = run_passes(float_step.graph, passes)
    parts = partition(graph, float_step.outputs)
    kinds = {"input": {str(place): v for place, v in enumerate(pytree.tree_leaves(call.args))}}
    sources = {"param": call.state, "buffer": call.state, **kinds}
    inputs = [sources[port.kind][port.name] for port in parts.inputs]
    found = Values()
    results = _seen(walk(parts.forward, [*inputs, call.rng]), found)
    for place, port in enumerate(parts.outputs):
        if port.kind == "output":
            found.add(RESULT, port.name, results[place])
    if parts.backward is None:
        return found
    outputs, saved = handed_on(parts, inputs, results)
    found.loss, tangents = tangents_of(outputs, float_step.out_spec, call.objective)
    given = [*saved, call.rng, *tangents]
    gradients = _seen(walk(parts.backward, given, "backward"), found)
    for port, value in zip(parts.gradients, gradients, strict=True):
        found.add(GRADIENT, port.name if port.wrt == "param" else f"input {port.name}", value)
    return found


def _seen(nodes: Generator[Observed, None, list[Tensor]], found: Values) -> list[Tensor]:
    """Keep every layer's value -> the graph's results."""
    while True:
        try:
            one = next(nodes)
        except StopIteration as end:
            results: list[Tensor] = end.value
            return results
        if one.op in _GIVES and one.role in _PRODUCTS:
            found.add(_PRODUCTS[one.role], one.module, _first(one.value), one.line)
        elif one.op in _NORMS:
            _norm(one, found)


def _norm(one: Observed, found: Values) -> None:
    """A norm's output, and that of the product whose accumulators it reads."""
    source = one.node.all_input_nodes[0]
    if one.op == "sq.l1_batch_norm" and one.given["x"].dtype in (torch.int32, torch.int64):
        bias = one.given["bias"]
        y = one.given["x"].to(torch.float32) * one.given["scale"]
        y = y if bias is None else y + bias
        found.add(OUTPUT, str(source.meta.get("module", "")), _first(y), one.line)
    found.add(OUTPUT, compat.module_path(one.node), _first(one.value[0]), one.line)


def _first(value: Tensor) -> Tensor:
    """Images channels first."""
    return value.permute(0, 3, 1, 2) if value.dim() == 4 else value


def tangents_of(
    outputs: Sequence[Tensor], spec: Any, objective: Objective | None
) -> tuple[float | None, list[Tensor]]:
    """The loss and the gradients of the outputs; normal draws where there is no objective."""
    if objective is None or spec.num_leaves != len(outputs):
        return None, _drawn(outputs)
    leaves = [output.detach().requires_grad_() for output in outputs]
    with torch.enable_grad():
        loss = objective(pytree.tree_unflatten(leaves, spec))
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    filled = [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, gradients, strict=True)
    ]
    return float(loss.detach()), filled


def _drawn(outputs: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(output.shape, generator=generator) for output in outputs]


def of_module(model: nn.Module, call: Call) -> Values:
    """Run the model itself in fp32 PyTorch, with its own norms."""
    found = Values()
    handles = []
    for name, module in model.named_modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # hooks cannot follow it
        if not list(module.children()) and list(module.parameters(recurse=False)):
            handles += _hooked(found, name, module)
    outputs = model(*call.args)
    leaves = [one for one in pytree.tree_leaves(outputs) if isinstance(one, Tensor)]
    for place, leaf in enumerate(leaves):
        found.add(RESULT, str(place), leaf)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of hooks on layers that read the input
        if call.objective is not None:
            loss = call.objective(outputs)
            loss.backward()
            found.loss = float(loss.detach())
        else:
            torch.autograd.backward(leaves, _drawn(leaves))
    for handle in handles:
        handle.remove()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found.add(GRADIENT, name, parameter.grad)
    return found


def _hooked(found: Values, name: str, module: nn.Module) -> list[Any]:
    def forward(_module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            found.add(OUTPUT, name, output)

    def backward(_module: nn.Module, gradients: Any, _given: Any) -> None:
        if gradients[0] is not None:
            found.add(INPUT_GRADIENT, name, gradients[0])

    return [module.register_forward_hook(forward), module.register_full_backward_hook(backward)]


def has_norms(float_step: Capture) -> bool:
    """Whether a prepared call has norms, whose bits the whole recipe decides."""
    ops = {str(node.target) for node in float_step.graph.graph.nodes}
    return any(f"sq.{name}.default" in ops for name in ("batch_norm", "layer_norm", "group_norm"))
