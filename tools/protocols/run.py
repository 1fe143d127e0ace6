"""One training run of a protocol, in integers or in fp32, that goes on where it was interrupted.

After every epoch the state is written aside and renamed: parameters, buffers, the optimiser's
state, and for integers the clock of stochastic rounding. Batches depend on (seed, epoch) alone, so
an interrupted run that goes on gives the bits of one that never stopped.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import process_time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sqcompile
from protocols.protocol import Batch, Data, Protocol, Schedule
from sqcompile.recipe import Recipe
from sqcompile.report.saved import saved_by_layer
from sqcompile.runtime.step import CompiledStep

FP32 = "fp32"


def _sgd(groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)


def _adamw(groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=lr)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": _sgd, "adamw": _adamw}


@dataclass
class Progress:
    """What a run has behind it; `seconds` is the CPU time of training: with one
    thread, the wall time that it takes on a core of its own."""

    epochs: int = 0
    seconds: float = 0.0
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Score:
    """Over a split: the share of right predictions, and the mean cross-entropy in nats."""

    accuracy: float
    loss: float


def made(protocol: Protocol, recipe: Recipe | None, seed: int, first: Batch) -> nn.Module:
    """The protocol's network with the initial weights of `seed`; compiled unless recipe is None."""
    torch.manual_seed(seed)
    model = protocol.make_model()
    if recipe is None:
        return model
    return sqcompile.compile(model, (first[0],), recipe=recipe, seed=seed)


def train(
    protocol: Protocol,
    recipe: Recipe | None,
    seed: int,
    data: Data,
    checkpoint: Path,
    stop_after: int | None = None,
) -> tuple[nn.Module, dict[str, Any] | None]:
    """Train to the schedule's end -> the model and its result; None in place of the result when
    `stop_after` epochs of this call came first. `checkpoint` is read if it is there. A run whose
    weights are no longer finite ends with that epoch."""
    first = next(data.train(0))
    model = made(protocol, recipe, seed, first)
    optimizer = _optimizer(model, protocol.schedule)
    progress = Progress()
    if checkpoint.exists():
        progress = _restore(model, optimizer, checkpoint)
    begun = progress.epochs
    while progress.epochs < protocol.schedule.epochs and not _diverged(model, progress):
        if stop_after is not None and progress.epochs - begun >= stop_after:
            return model, None
        start = process_time()
        loss = _epoch(model, optimizer, protocol.schedule, data, seed, progress.epochs)
        progress.seconds += process_time() - start
        progress.losses += (loss,)
        progress.epochs += 1
        _keep(model, optimizer, progress, checkpoint)
    saved = sum(saved_by_layer(model.train(), (first[0],)).values())
    result = {
        "validation": asdict(scored(model, data.validation)),
        "test": asdict(scored(model, data.test)),
        "losses": list(progress.losses),
        "seconds": progress.seconds,
        "saved_bytes": saved,
    }
    return model, result


def _diverged(model: nn.Module, progress: Progress) -> bool:
    """Whether no further epoch can change what a run gives: weights that are not finite stay so,
    and so does the loss."""
    ended = bool(progress.losses) and not math.isfinite(progress.losses[-1])
    return ended and not all(bool(p.isfinite().all()) for p in model.parameters())


def _optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": schedule.decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[schedule.optimizer](groups, schedule.lr)


def rate(schedule: Schedule, step: int, steps: int) -> float:
    """The learning rate of a step of `steps`: up along a line, down along a cosine."""
    done, up = (step + 1) / steps, schedule.warmup
    if done < up:
        return schedule.lr * done / up
    return schedule.lr * 0.5 * (1 + math.cos(math.pi * (done - up) / (1 - up)))


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Over classes in the last axis; of the mean of all predictions."""
    return F.cross_entropy(output.flatten(0, -2), target.flatten())


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    data: Data,
    seed: int,
    number: int,
) -> float:
    model.train()
    losses = []
    for index, (x, target) in enumerate(data.train(seed * 1000 + number)):
        lr = rate(schedule, number * data.steps + index, schedule.epochs * data.steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        loss = cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


@torch.no_grad()
def scored(model: nn.Module, batches: Sequence[Batch]) -> Score:
    """Accuracy and loss in eval mode."""
    model.eval()
    right, loss, count = 0, 0.0, 0
    for x, target in batches:
        output = model(x)
        right += int((output.argmax(-1) == target).sum())
        loss += float(cross_entropy(output, target)) * target.numel()
        count += target.numel()
    return Score(right / count, loss / count)


def _keep(
    model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, path: Path
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "clock": model.training_state() if isinstance(model, CompiledStep) else {},
        "progress": json.dumps(asdict(progress)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    torch.save(state, aside)
    aside.replace(path)


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> Progress:
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if isinstance(model, CompiledStep):
        model.load_training_state(state["clock"])
    values = json.loads(state["progress"])
    return Progress(values["epochs"], values["seconds"], tuple(values["losses"]))
