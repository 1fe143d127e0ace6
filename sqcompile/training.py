"""Training a model file's model, in integers or in float, over the same batches in one order."""

import math
import random
import traceback
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from numbers import Real
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sqcompile.errors import CaptureError, UsageError
from sqcompile.modelfile import ModelFile, blame
from sqcompile.runtime import binding

Batch = tuple[tuple[Any, ...], Tensor]
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters, lr, decay: torch.optim.SGD(
        parameters, lr=lr, momentum=0.9, weight_decay=decay
    ),
    "adamw": lambda parameters, lr, decay: torch.optim.AdamW(parameters, lr=lr, weight_decay=decay),
}


@dataclass(frozen=True)
class Settings:
    """How to train. The learning rate falls from `lr` along a cosine, once an epoch; `seed` fixes
    the order of batches. A model file's optimizer(parameters) stands in for `optimizer`."""

    epochs: int
    optimizer: str = "sgd"
    lr: float = 0.05
    weight_decay: float = 5e-4
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """Mean loss of one epoch's steps, and the accuracy after it (0..1), None when unknown."""

    loss: float
    accuracy: float | None


@dataclass
class Run:
    """A training run; step_ms holds every step's time: forward, loss, backward and optimiser;
    unjudged: why no accuracy is known and what to do, "" when it is."""

    epochs: list[Epoch] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    unjudged: str = ""

    @property
    def accuracy(self) -> float | None:
        """After the last epoch."""
        return self.epochs[-1].accuracy

    def to_json(self) -> dict[str, Any]:
        """The run as JSON-able data; the step time is the median."""
        return {
            "epochs": [vars(epoch) for epoch in self.epochs],
            "accuracy": self.accuracy,
            "unjudged": self.unjudged,
            "steps": len(self.step_ms),
            "step_ms": median(self.step_ms),
        }


def check(file: ModelFile) -> None:
    """Raise UsageError unless the model file says what to train on and how to judge it."""
    missing = [name for name in ("data", "loss") if not file.has(name)]
    if missing:
        raise UsageError(
            f"{file.path} does not define {' and '.join(missing)}, which training needs\n"
            "  data() returns an iterable of (input, target) batches and is called once an epoch;\n"
            "  loss(output, target) returns a scalar tensor."
        )


def trained_parameters(model: nn.Module, file: ModelFile) -> list[nn.Parameter]:
    """The parameters that want a gradient; raises UsageError when there are none."""
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        why = (
            f"all {len(parameters)} parameters of the model are frozen (requires_grad=False)"
            if parameters
            else "the model has no parameters"
        )
        raise UsageError(
            f"{file.path}: {why}: there is nothing to train\n"
            "  leave requires_grad on in what shall be trained; `sqcompile compile` compiles the "
            "model as it is."
        )
    return trained


def fit(
    model: nn.Module,
    file: ModelFile,
    settings: Settings,
    on_epoch: Callable[[int, Epoch], None] = lambda number, epoch: None,
) -> Run:
    """Train `model` (a CompiledStep or the plain model) on the file's data().

    Accuracy is measured on eval_data() when the file has it, else over the epoch's own batches.
    The same settings give the same batches in the same order, whatever the model draws. Raises
    UsageError when no parameter wants a gradient, CaptureError when the file's functions or the
    backward of its loss fail, or the loss is no longer finite.
    """
    check(file)
    optimizer = _optimizer(model, file, settings)
    first = [group["lr"] for group in optimizer.param_groups]
    run = Run()
    for number in range(settings.epochs):
        factor = 0.5 * (1 + math.cos(math.pi * number / settings.epochs))
        for group, lr in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = lr * factor
        loss, counted = _epoch(model, file, optimizer, settings.seed + number, run)
        if file.has("eval_data"):
            counted = evaluate(model, file)
        run.unjudged = counted.unjudged
        epoch = Epoch(loss, counted.share)
        run.epochs.append(epoch)
        on_epoch(number, epoch)
    return run


def _optimizer(model: nn.Module, file: ModelFile, settings: Settings) -> torch.optim.Optimizer:
    parameters = trained_parameters(model, file)
    if not file.has("optimizer"):
        return OPTIMIZERS[settings.optimizer](parameters, settings.lr, settings.weight_decay)
    optimizer = file.call("optimizer", parameters)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise CaptureError(
            f"{file.path}: optimizer() returned {type(optimizer).__name__}, not a torch optimizer"
        )
    return optimizer


def _epoch(
    model: nn.Module, file: ModelFile, optimizer: torch.optim.Optimizer, seed: int, run: Run
) -> "tuple[float, Counted]":
    """Mean loss of the epoch's steps, and how often they were right where no eval_data() is."""
    model.train()
    losses: list[float] = []
    right = Counted()
    device = _device(model)
    for batch in shuffled(file, seed):
        inputs, target = _moved(batch, device)
        start = perf_counter()
        optimizer.zero_grad(set_to_none=True)
        output = model(*inputs)
        loss = _scalar(file, file.call("loss", output, target))
        _backward(file, loss)
        with blame(file.path, "the optimiser's step"):
            optimizer.step()
        run.step_ms.append((perf_counter() - start) * 1e3)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise CaptureError(
                f"{file.path}: the loss is {losses[-1]} at step {len(run.step_ms)}\n"
                "  lower the learning rate; --check-finite tells where it appears."
            )
        if not file.has("eval_data"):
            right.add(file, output.detach() if isinstance(output, Tensor) else output, target)
    if not losses:
        raise CaptureError(f"{file.path}: data() gave no batch in an epoch")
    return sum(losses) / len(losses), right


def _backward(file: ModelFile, loss: Tensor) -> None:
    """Gradients of the loss. The model file is named when that fails, unless a compiled step's
    own backward is what failed."""
    try:
        loss.backward()
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if any(frame.filename == binding.__file__ for frame in frames):
            raise
        with blame(file.path, "the backward of loss()"):
            raise


def _device(model: nn.Module) -> torch.device:
    """Where the model's parameters are; batches go there, too."""
    return next((one.device for one in model.parameters()), torch.device("cpu"))


def _moved(batch: Batch, device: torch.device) -> Batch:
    """A batch with its tensors on the device."""

    def moved(leaf: Any) -> Any:
        return leaf.to(device) if isinstance(leaf, Tensor) else leaf

    return pytree.tree_map(moved, batch)


def _scalar(file: ModelFile, loss: object) -> Tensor:
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return loss
    raise CaptureError(
        f"{file.path}: loss() returned {_described(loss)}\n"
        "  return a scalar tensor that depends on the output."
    )


def _described(value: object) -> str:
    return f"a tensor of {value.numel()} elements" if isinstance(value, Tensor) else repr(value)


def evaluate(model: nn.Module, file: ModelFile) -> "Counted":
    """How often the model in eval mode is right over the file's eval_data()."""
    model.eval()
    right = Counted()
    with torch.no_grad():
        for batch in file.batches("eval_data"):
            inputs, target = _moved(batch, _device(model))
            right.add(file, model(*inputs), target)
    model.train()
    if not right.batches:
        raise CaptureError(
            f"{file.path}: eval_data() gave no batch\n"
            "  it is called after every epoch: return a list, or batches made anew in every call."
        )
    return right


class Counted:
    """Accuracy over batches: the file's accuracy(output, target), else the share of targets at
    whose index the largest output stands. A target below 0 names no class and does not count.

    unjudged: why one of the batches could not be judged and what to do; "" while all could.
    """

    def __init__(self) -> None:
        self._right = 0.0
        self._rows = 0
        self.batches = 0
        self.unjudged = ""

    def add(self, file: ModelFile, output: Any, target: Any) -> None:
        """Count one batch."""
        self.batches += 1
        if file.has("accuracy"):
            rows = _samples(target)
            self._right += _share(file, file.call("accuracy", output, target)) * rows
            self._rows += rows
        elif why := _no_classes(output, target):
            self.unjudged = f"{why}; define accuracy(output, target) in {file.path}"
        else:
            (axis,) = _class_axes(output.shape, target.shape)
            self._right += int((output.argmax(axis) == target).sum())
            self._rows += int((target >= 0).sum())

    @property
    def share(self) -> float | None:
        """0..1; None without rows, and when some could not be judged: the rest is another set."""
        return self._right / self._rows if self._rows and not self.unjudged else None


def _samples(target: Any) -> int:
    """How many samples a batch's target is of: the length of its first tensor, or its own."""
    first = next((leaf for leaf in pytree.tree_leaves(target) if isinstance(leaf, Tensor)), None)
    if first is not None:
        return len(first) if first.dim() else 1
    return len(target) if isinstance(target, Sized) else 1


def _share(file: ModelFile, found: Any) -> float:
    """What accuracy() returned, as a number."""
    if isinstance(found, Real) or (isinstance(found, Tensor) and found.numel() == 1):
        return float(found)
    raise CaptureError(
        f"{file.path}: accuracy() returned {_described(found)}\n"
        "  return a number, the share of 1 of the batch that is right."
    )


def _class_axes(output: Sequence[int], target: Sequence[int]) -> set[int]:
    """Axes that the shape of an output has and that of its targets lacks: 1 (what cross_entropy
    reads) or the last one. None when they fit on neither; two leave open which it is."""
    last = len(output) - 1
    candidates = {axis for axis in (1, last) if 0 <= axis <= last}
    return {axis for axis in candidates if (*output[:axis], *output[axis + 1 :]) == tuple(target)}


def _no_classes(output: Any, target: Any) -> str:
    """Why targets are not the indices of an output's largest values; "" when they may be."""
    if not isinstance(output, Tensor):
        return f"the output is a {type(output).__name__}, not one tensor"
    if not isinstance(target, Tensor):
        return f"the target is a {type(target).__name__}, not a tensor"
    if target.dtype != torch.int64:
        return f"targets are {target.dtype}, not torch.int64 class indices"
    axes = _class_axes(output.shape, target.shape)
    if len(axes) == 1:
        return ""
    found = "may have classes on axis 1 or on the last one" if axes else "has no class axis"
    return f"an output {list(output.shape)} with targets {list(target.shape)} {found}"


def shuffled(file: ModelFile, seed: int) -> Iterator[Batch]:
    """The batches of data() under random states of their own, seeded with `seed`: what the model
    draws between two batches does not change them."""
    outside = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    batches = file.batches("data")
    while True:
        batch = next(batches, None)
        inside = torch.get_rng_state(), random.getstate(), np.random.get_state()
        _set_states(*outside)
        if batch is None:
            return
        yield batch
        outside = torch.get_rng_state(), random.getstate(), np.random.get_state()
        _set_states(*inside)


def _set_states(of_torch: Tensor, of_python: Any, of_numpy: Any) -> None:
    torch.set_rng_state(of_torch)
    random.setstate(of_python)
    np.random.set_state(of_numpy)
