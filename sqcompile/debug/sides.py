"""The two sides of a comparison: what a user names, and how it is run."""

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sqcompile.capture import Capture, capture
from sqcompile.debug.layers import (
    Call,
    Objective,
    Values,
    of_graph,
    of_module,
    prepared,
    quantising,
    until,
)
from sqcompile.errors import UsageError
from sqcompile.modelfile import ModelFile
from sqcompile.recipe import Recipe
from sqcompile.training import shuffled

FP32, FLOAT = "fp32", "float"
"""In place of a recipe: PyTorch itself, and the step's own graph before it is quantised (with L1
norms, like every step here)."""


@dataclass(frozen=True)
class Subject:
    """A model with weights and one call of it: what both sides run."""

    file: ModelFile
    model: nn.Module
    call: Call
    step: Capture

    def run(self, recipe: "str | Recipe") -> Values:
        """One step by a recipe, in float, or in fp32 PyTorch."""
        if recipe == FP32:
            model = deepcopy(self.model)
            model.load_state_dict(self.call.state, strict=False)
            return of_module(model.train(), self.call)
        if recipe == FLOAT:
            return of_graph(self.step, self.call, until(quantising(Recipe()), "assign_precision"))
        return of_graph(self.step, self.call, quantising(Recipe.load(recipe)))


def subject(
    file: ModelFile,
    seed: int,
    state: Mapping[str, Tensor] | None = None,
    rows: int | None = None,
) -> Subject:
    """A model file's model, with weights of a seed or of a state dict, and the first batch of its
    data() with its loss(), else example_inputs() and drawn gradients. rows: of the batch, the first
    so many, None for all."""
    torch.manual_seed(seed)
    model = file.make_model().train()
    if state is not None:
        _load(model, state, file.path)
    args, objective = first_batch(file, seed, rows)
    step = prepared(capture(model, args, {}))
    call = Call(args, _state(model), torch.tensor([seed & 0xFFFFFFFF, 0, 0, 0]), objective)
    return Subject(file, model, call, step)


def with_state(given: Subject, state: Mapping[str, Tensor]) -> Subject:
    """The same call with other weights."""
    model = deepcopy(given.model)
    _load(model, state, given.file.path)
    old = given.call
    return Subject(
        given.file, model, Call(old.args, _state(model), old.rng, old.objective), given.step
    )


def _state(model: nn.Module) -> dict[str, Tensor]:
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return {name: value.detach().clone() for name, value in named}


def _load(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        raise UsageError(
            f"{path}: the run folder's weights are not this model's: {str(error).splitlines()[0]}"
        ) from error


def first_batch(
    file: ModelFile, seed: int, rows: int | None = None
) -> tuple[tuple[Any, ...], Objective | None]:
    """The first batch of a model file's data() as it comes in training with `seed`, and its loss();
    without them example_inputs() and None."""
    args, target = None, None
    if file.has("data") and file.has("loss"):
        args, target = next(shuffled(file, seed), (None, None))
    if args is None:
        return _first_rows(file.example_inputs(), rows), None
    args, target = _first_rows((args, target), rows)
    return args, lambda output: file.call("loss", output, target)


def _first_rows(batch: Any, rows: int | None) -> Any:
    """A batch with the first rows of every tensor that is as long as its first one."""
    if rows is None:
        return batch
    tensors = [
        leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()
    ]
    length = len(tensors[0]) if tensors else 0

    def cut(leaf: Any) -> Any:
        whole = isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == length
        return leaf[:rows].clone() if whole else leaf

    return pytree.tree_map(cut, batch)


@dataclass(frozen=True)
class RunFolder:
    """A run folder's recipe, target, weights, and the model file that it came from."""

    path: Path
    recipe: Recipe
    target: str
    model_file: Path
    state: dict[str, Tensor]


def run_folder(path: str) -> RunFolder:
    """Raises UsageError for a folder that is none, or whose model file is gone or has changed: it
    holds code, but no graphs to follow."""
    from sqcompile.runtime.artifact import load

    step = load(path)
    recorded = json.loads((Path(path) / "manifest.json").read_text())["model_file"]
    if recorded is None:
        raise UsageError(f"{path} was compiled from Python: comparing needs a model file")
    file = Path(recorded["path"])
    if not file.is_file():
        raise UsageError(f"{path}: its model file {file} is no longer there")
    if sha256(file.read_bytes()).hexdigest() != recorded["sha256"]:
        raise UsageError(
            f"{path}: {file} has changed since it was compiled\n  compile it again, or compare the "
            f"file: sqcompile compare {file} --recipes fp32,{step.recipe.name}"
        )
    return RunFolder(Path(path), step.recipe, step.target, file, dict(step.state_dict()))
