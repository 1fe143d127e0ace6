"""compile and examine: from a model and its inputs to a step that trains in integers."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import tvm
from torch import nn
from torch.utils import _pytree as pytree

from sqcompile import support, variant_cache
from sqcompile.backends import targets as known
from sqcompile.backends.lower import lower
from sqcompile.backends.targets import Target
from sqcompile.capture import Capture, Traced, capture, differentiate, trace
from sqcompile.errors import CaptureError, UsageError
from sqcompile.examination import ModelOp, examined, mark_origins
from sqcompile.index_limits import given_limits, limits
from sqcompile.passes.expose_absmax import expose_absmax
from sqcompile.passes.expose_index_ranges import expose_index_ranges
from sqcompile.passes.listing import listing
from sqcompile.passes.partition import Partition, partition
from sqcompile.passes.pipeline import Stage, integer_training, run
from sqcompile.passes.plain_products import plain_products
from sqcompile.recipe import Recipe
from sqcompile.runtime import cache
from sqcompile.runtime.executable import Binary, Executable
from sqcompile.runtime.machines import device_type
from sqcompile.runtime.signature import CallKey, Signature
from sqcompile.runtime.step import CompiledStep
from sqcompile.runtime.variant import Graphs, Variant


def compile(  # noqa: A001 - the name that users of compilers look for
    model: nn.Module,
    example_inputs: Sequence[Any],
    *,
    target: str | Target = "cpu",
    recipe: str | Recipe | Mapping[str, Any] = "w4a4g4",
    seed: int = 0,
    check_finite: bool = False,
) -> CompiledStep:
    """Compile a model's training step to integers.

    model: float32 parameters on the CPU; example_inputs: its positional arguments, which fix the
    first shapes compiled for; recipe: a name, a Recipe, a mapping or the path of a JSON file;
    seed: of the stochastic rounding; check_finite: raise InputError at the graph node where a NaN
    or an infinity first appears. Returns a module that is called and trained like the model.

    Raises UsageError (wrong argument), CaptureError (the model cannot be traced),
    UnsupportedOpError (all ops without a kernel), TargetUnavailableError.
    """
    chosen = known.get(target) if isinstance(target, str) else target
    rules = Recipe.load(recipe)
    _check_model(model, example_inputs, chosen)

    compiler = partial(
        build,
        target=chosen,
        recipe=rules,
        check_finite=check_finite or rules.check_finite,
    )

    step = CompiledStep(model, compiler, recipe=rules, target=chosen.name, seed=seed)
    step.prepare(*example_inputs)
    return step


def _check_model(model: object, example_inputs: object, target: Target) -> None:
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is a {type(model).__name__}, not a torch.nn.Module")
    if not isinstance(example_inputs, (tuple, list)):
        raise UsageError(
            f"example_inputs is a {type(example_inputs).__name__}; give a tuple of arguments, "
            "(x,) for one"
        )
    for name, parameter in model.named_parameters():
        devices = {"cpu", device_type(target.name)}
        if parameter.dtype != torch.float32 or parameter.device.type not in devices:
            raise UsageError(
                f"parameter {name} is {parameter.dtype} on {parameter.device}; a compiled step "
                "keeps float32 master weights on the cpu: call model.float().cpu()"
            )


@dataclass(frozen=True)
class Rewritten:
    """A model's step after all passes, before lowering."""

    captured: Capture
    parts: Partition
    stages: list[Stage]


def rewrite(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    recipe: Recipe,
    *,
    gradients: bool = True,
) -> Rewritten:
    """Capture one call and run every pass; without `gradients` only forward is kept."""
    return rewrite_captured(capture(model, args, kwargs), recipe, gradients=gradients)


def rewrite_captured(captured: Capture, recipe: Recipe, *, gradients: bool = True) -> Rewritten:
    """Run every pass over a captured call; without `gradients` only forward is kept."""
    graph, stages = run(captured.graph, integer_training(recipe))
    parts = partition(graph, captured.outputs, inference=not gradients)
    stages.append(Stage("forward", listing(parts.forward, "forward")))
    if parts.backward is not None:
        stages.append(Stage("backward", listing(parts.backward, "backward")))
    return Rewritten(captured, parts, stages)


def examine(
    model: nn.Module,
    example_inputs: Sequence[Any],
    *,
    targets: Sequence[str | Target] = ("cpu", "cuda", "vta"),
    recipe: str | Recipe | Mapping[str, Any] = "w4a4g4",
) -> list[ModelOp]:
    """Every op that a model calls, what it becomes and which targets run it, without building
    anything: those first that a target does not run.

    Raises CaptureError when the model cannot be traced.
    """
    chosen = [known.get(one) if isinstance(one, str) else one for one in targets]
    for target in chosen:
        _check_model(model, example_inputs, target)
    traced = trace(model, example_inputs, {})
    captured = differentiate(traced)
    mark_origins(captured)
    parts = rewrite_captured(captured, Recipe.load(recipe)).parts
    graphs = [graph for graph in (parts.forward, parts.backward) if graph is not None]
    return examined(traced, graphs, chosen)


def build(
    model: nn.Module,
    key: CallKey,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    target: Target,
    recipe: Recipe,
    check_finite: bool = False,
) -> Variant:
    """Compile one variant of a step, or find it compiled by an earlier process; see `compile` for
    what is raised."""
    traced = trace(*_on_cpu(model, args, kwargs))
    entry = variant_cache.entry_of(traced, key, target, recipe, check_finite)

    def prepare(call: Traced) -> _Prepared:
        rewritten = rewrite_captured(differentiate(call), recipe, gradients=key.gradients)
        return _prepared(rewritten, target, check_finite)

    found = variant_cache.load(entry)
    if found is not None:
        signature, binary = found
        again = traced.later()
        return Variant(key, signature, Executable(binary), lambda: prepare(again()).graphs)
    prepared = prepare(traced)
    name, binary = cached_build(prepared.modules, target)
    variant_cache.store(entry, prepared.signature, name)
    return Variant(key, prepared.signature, Executable(binary), prepared.graphs)


def _on_cpu(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[nn.Module, Sequence[Any], Mapping[str, Any]]:
    """A call as it is traced: on the CPU, through a copy of a model that is elsewhere."""

    def moved(leaf: Any) -> Any:
        return leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf

    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.device.type != "cpu" for tensor in tensors):
        model = deepcopy(model).cpu()
    return model, pytree.tree_map(moved, args), pytree.tree_map(moved, kwargs)


def build_rewritten(
    rewritten: Rewritten, key: CallKey, *, target: Target, check_finite: bool = False
) -> Variant:
    """Lower and compile a rewritten step. Raises UnsupportedOpError with all ops of it that the
    target has no kernel for."""
    prepared = _prepared(rewritten, target, check_finite)
    _, binary = cached_build(prepared.modules, target)
    return Variant(key, prepared.signature, Executable(binary), prepared.graphs)


def cached_build(modules: Sequence[tvm.IRModule], target: Target) -> tuple[str, Binary]:
    """The name in the cache of the code of lowered modules, and the code."""
    name = binary_key(modules, target)
    return name, cache.cached(name, lambda: target.builder.build(*modules, target=target))


def binary_key(modules: Sequence[tvm.IRModule], target: Target) -> str:
    """That name: it holds all that decides the code."""
    identity = [target.name, target.builder.identity(target)]
    return cache.key_of("\n".join([*identity, *map(tvm.ir.save_json, modules)]))


@dataclass(frozen=True)
class _Prepared:
    """A step that is ready to be built: one lowered module for every machine of the target."""

    modules: list[Any]
    signature: Signature
    graphs: Graphs


def _prepared(rewritten: Rewritten, target: Target, check_finite: bool) -> _Prepared:
    parts = rewritten.parts
    forward, backward = parts.forward, parts.backward
    first: list[str] = []
    second: list[str] = []
    if check_finite:
        forward, first = expose_absmax(forward)
        if backward is not None:
            backward, second = expose_absmax(backward)
    forward, computed = expose_index_ranges(forward)
    if any(port.kind == "mutation" for port in parts.gradients):
        raise CaptureError("the backward pass changes a buffer, which is not supported")
    graphs = {"forward": forward} | ({"backward": backward} if backward is not None else {})
    if target.plain_products:
        graphs = {name: plain_products(graph) for name, graph in graphs.items()}
    support.check(list(graphs.values()), target)
    lowered = [lower(graphs, machine) for machine in target.machines()]
    signature = Signature(
        tuple(parts.inputs),
        tuple(parts.outputs),
        tuple(parts.saved),
        tuple(parts.tangents),
        tuple(parts.gradients),
        rewritten.captured.constants,
        rewritten.captured.out_spec,
        tuple(first),
        tuple(second),
        given_limits(parts.forward),
        limits(computed),
        rewritten.captured.passed,
    )
    kept = Graphs(parts.forward, parts.backward, rewritten.stages, lowered[0].kernels)
    return _Prepared([one.module for one in lowered], signature, kept)
