"""How long a training step takes: forward and backward through autograd, beside PyTorch."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sqcompile.bench.times import Times

if TYPE_CHECKING:
    from sqcompile.runtime.profile import KernelTime
    from sqcompile.runtime.step import CompiledStep
    from sqcompile.runtime.stopwatch import Stopwatch
    from sqcompile.runtime.variant import Variant

Sample = Callable[[], tuple[float, float]]
"""Runs one step -> seconds of forward and of backward."""


def measure(samples: Mapping[str, Sample], *, warmup: int = 5, runs: int = 30) -> dict[str, Times]:
    """Times of "NAME forward", "NAME backward" and "NAME step" for every sample.

    The samples take turns, so that a busy moment of the machine meets all of them.
    """
    forward: dict[str, list[float]] = {name: [] for name in samples}
    backward: dict[str, list[float]] = {name: [] for name in samples}
    for turn in range(warmup + runs):
        for name, sample in samples.items():
            there, back = sample()
            if turn >= warmup:
                forward[name].append(there)
                backward[name].append(back)
    rows: dict[str, Times] = {}
    for name in samples:
        both = [a + b for a, b in zip(forward[name], backward[name], strict=True)]
        rows[f"{name} forward"] = Times.of(forward[name])
        rows[f"{name} backward"] = Times.of(backward[name])
        rows[f"{name} step"] = Times.of(both)
    return rows


def step_sample(step: "CompiledStep", variant: "Variant", leaves: Sequence[Any]) -> Sample:
    """One training step of a compiled variant on flattened arguments, without the optimiser, where
    its parameters and arguments are."""
    from sqcompile.runtime import machines
    from sqcompile.runtime.binding import StepFunction

    values = step.values_of(variant, leaves, {})
    rng = torch.tensor([0, 0, 0, 0])
    positions = [
        position
        for position, port in enumerate(variant.signature.outputs)
        if port.kind == "output" and port.name in {t.name for t in variant.signature.tangents}
    ]

    def forward() -> list[Tensor]:
        results = StepFunction.apply(variant, rng, *values)
        return [results[position] for position in positions]

    return _sample(forward, list(step.parameters()), machines.stopwatch(variant.executable.device))


def eager_sample(model: nn.Module, args: Sequence[Any], device: str = "cpu") -> Sample:
    """One training step of a plain model on a device, without the optimiser."""
    from sqcompile.runtime import machines

    model.to(device)
    args = on(device, args)

    def forward() -> list[Tensor]:
        leaves = pytree.tree_leaves(model(*args))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]

    return _sample(forward, list(model.parameters()), machines.stopwatch(device))


def on(device: str, args: Sequence[Any]) -> tuple[Any, ...]:
    """Arguments with their tensors on a device, leaves as they were."""
    moved: tuple[Any, ...] = pytree.tree_map(
        lambda leaf: _moved(leaf, device) if isinstance(leaf, Tensor) else leaf, tuple(args)
    )
    return moved


def _moved(leaf: Tensor, device: str) -> Tensor:
    if leaf.device.type == device:
        return leaf
    return leaf.detach().to(device).requires_grad_(leaf.requires_grad)


def _sample(
    forward: Callable[[], list[Tensor]], parameters: Sequence[Tensor], watch: "Stopwatch"
) -> Sample:
    def sample() -> tuple[float, float]:
        for parameter in parameters:
            parameter.grad = None
        start = watch.mark()
        outputs = forward()
        middle = watch.mark()
        gradients = [torch.ones_like(output) for output in outputs]
        before = watch.mark()
        torch.autograd.backward(outputs, gradients)
        end = watch.mark()
        return watch.seconds(start, middle), watch.seconds(before, end)

    return sample


def step_kernels(
    step: "CompiledStep", variant: "Variant", *, warmup: int = 0, runs: int = 5
) -> "list[KernelTime]":
    """The time of every kernel of one training step on drawn inputs, slowest first; the step is on
    its target's device."""
    from sqcompile.runtime.profile import kernel_times

    device = variant.executable.device
    leaves = on(device, drawn(variant))
    values = [value.detach() for value in step.values_of(variant, leaves, {})]
    rng = torch.tensor([0, 0, 0, 0]).to(device)
    outputs, saved = variant.run_forward(values, rng)
    places = {port.name: place for place, port in enumerate(variant.signature.outputs)}
    tangents = [torch.ones_like(outputs[places[port.name]]) for port in variant.signature.tangents]
    binary = variant.executable.binary
    found = kernel_times(binary, "forward", [*values, rng], warmup=warmup, runs=runs)
    given = [*saved, rng, *tangents]
    found += kernel_times(binary, "backward", given, warmup=warmup, runs=runs)
    return sorted(found, key=lambda row: -row.milliseconds)


def drawn(variant: "Variant") -> list[Any]:
    """Arguments of the shapes that a variant was compiled for: normal floats, zeros elsewhere
    (an index stays in range)."""
    generator = torch.Generator().manual_seed(0)
    return [_draw(leaf, generator) for leaf in variant.key.leaves]


def _draw(leaf: str, generator: torch.Generator) -> Any:
    found = re.fullmatch(r"(\w+)\[([\d, ]*)\]('?)", leaf)
    if found is None:
        return None  # a Python constant: compiled in, never read
    dtype = getattr(torch, found[1])
    shape = [int(size) for size in found[2].split(",") if size.strip()]
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_(bool(found[3]))
