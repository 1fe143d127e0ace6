"""What is exported: a graph of a step with its ports and weights, from memory or a run folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from sqcompile import __version__
from sqcompile._torch_compat import Port
from sqcompile.errors import UsageError
from sqcompile.recipe import Recipe
from sqcompile.runtime import artifact, graph_file
from sqcompile.runtime.signature import CallKey, Signature
from sqcompile.runtime.step import CompiledStep

MODES = {"eval": "eval", "forward": "train", "backward": "train"}
"""The mode of the step that each graph belongs to."""


@dataclass(frozen=True)
class Source:
    """One graph. results: a port for every output, or the name of a value saved for backward."""

    kind: str
    graph: GraphModule
    results: tuple[Port | str, ...]
    weights: dict[str, Tensor]
    about: dict[str, Any]


def of_step(step: CompiledStep, kind: str) -> Source:
    """A graph of a step in memory: of its first variant of the mode. Raises UsageError when there
    is none."""
    found = [variant for variant in step.variants if variant.mode == MODES[kind]]
    if not found or found[0].forward is None:
        why = "has no graphs: it was loaded; export its folder" if found else _other_mode(kind)
        raise UsageError(f"the step {why}")
    variant = found[0]
    graphs = {"forward": variant.forward, "backward": variant.backward}
    about = _about(kind, step.recipe, step.target, variant.key)
    return _source(kind, graphs, variant.signature, _tensors(step), about)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name that they have."""
    named = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    return {name: tensor.detach().cpu() for name, tensor in named}


def _other_mode(kind: str) -> str:
    call = "step.eval()" if MODES[kind] == "eval" else "step.train()"
    return f"is not compiled for '{kind}'; call {call} and step.prepare(*inputs) first"


def of_folder(folder: str | Path, kind: str) -> Source:
    """A graph of a run folder; nothing in it is executed. Raises UsageError when the folder is no
    artifact, or has no such graph."""
    path = Path(folder)
    manifest = artifact.read_manifest(path)
    entries = [one for one in manifest["variants"] if one["key"]["mode"] == MODES[kind]]
    if not entries:
        raise UsageError(_lacking(path, kind, manifest))
    graphs: dict[str, GraphModule | None] = dict(graph_file.read(path / entries[0]["folder"]))
    module = artifact.read_module(path, manifest)
    key = entries[0]["key"]
    call = CallKey(key["mode"], key["gradients"], tuple(key["leaves"]), "", ())
    about = _about(kind, Recipe.from_json(manifest["recipe"]), manifest["target"], call)
    signature = Signature.from_json(entries[0]["signature"])
    return _source(kind, graphs, signature, _tensors(module), about)


def _lacking(folder: Path, kind: str, manifest: dict[str, Any]) -> str:
    """That a folder has no such graph, and how to get one without losing trained weights."""
    mode = MODES[kind]
    lines = [f"{folder} has no graph '{kind}': it holds no variant of mode {mode}"]
    if mode == "eval":
        lines.append("  `sqcompile compile` and `train` compile one, without --no-eval;")
    lines.append(f"  in Python: step.{mode}(), then step.prepare(*inputs), before step.save().")
    if manifest["training_state"]["step"]:
        lines += [
            "  Write another folder: the weights here are trained, and this one would lose them.",
            f"  model.load_state_dict(sqcompile.load({str(folder)!r}).state_dict()) gives them to "
            "the model to compile.",
        ]
    return "\n".join(lines)


def _source(
    kind: str,
    graphs: dict[str, GraphModule | None],
    signature: Signature,
    weights: dict[str, Tensor],
    about: dict[str, Any],
) -> Source:
    graph = graphs.get("backward" if kind == "backward" else "forward")
    if graph is None:
        raise UsageError("the step has no backward graph: nothing in it needs a gradient")
    results: tuple[Port | str, ...] = signature.gradients
    if kind != "backward":
        ports = {f"{port.kind}:{port.name}" for port in signature.inputs}
        saved = tuple(name for name in signature.saved if name not in ports)
        results = (*signature.outputs, *saved)
    return Source(kind, graph, results, weights, about)


def _about(kind: str, recipe: Recipe, target: str, key: CallKey) -> dict[str, Any]:
    return {
        "sqcompile": __version__,
        "torch": torch.__version__,
        "graph": kind,
        "recipe": recipe.to_json(),
        "target": target,
        "inputs": list(key.leaves),
    }
