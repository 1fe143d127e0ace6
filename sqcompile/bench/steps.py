"""PyTorch's own training steps, to be timed beside a compiled one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sqcompile.bench.environment import compiler
from sqcompile.errors import first_line
from sqcompile.report.timing import Sample, eager_sample

FP32, BF16, COMPILED = "fp32 PyTorch", "bf16 PyTorch", "torch.compile"
FORMS = {"fp32": FP32, "bf16": BF16, "compiled": COMPILED}
"""Peers by the word that `--peers` takes: fp32 and bf16 autocast as they are, and fp32 by
inductor. All read the model file's own layout."""

Made = Callable[[], nn.Module]


def peers(
    wanted: list[str], make: Made, inputs: tuple[Any, ...], device: str
) -> tuple[dict[str, Sample], dict[str, str]]:
    """(a sample of each wanted peer that runs here, why each other one does not). Every peer has
    a model of its own and takes one step now: that is when it fails, and when it is compiled."""
    samples: dict[str, Sample] = {}
    skipped: dict[str, str] = {}
    for word in wanted:
        reason = _missing(word, device)
        if not reason:
            try:
                sample = _SAMPLES[word](make(), inputs, device)
                sample()
                samples[FORMS[word]] = sample
            except Exception as error:  # whatever inductor and autocast raise is the reason
                if word == "fp32":
                    raise
                reason = f"{type(error).__name__}: {first_line(error)}"
        if reason:
            skipped[FORMS[word]] = reason
    return samples, skipped


def _missing(word: str, device: str) -> str:
    if word == "compiled" and device == "cpu" and compiler() is None:
        return "inductor needs a C++ compiler (g++), which is not installed"
    return ""


def _bf16(model: nn.Module, inputs: tuple[Any, ...], device: str) -> Sample:
    class Autocast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *args: Any) -> Any:
            with torch.autocast(device, torch.bfloat16):
                return self.model(*args)

    return eager_sample(Autocast(), inputs, device)


def _compiled(model: nn.Module, inputs: tuple[Any, ...], device: str) -> Sample:
    compiled: Any = torch.compile(model, dynamic=False)
    return eager_sample(compiled, inputs, device)


_SAMPLES: dict[str, Callable[[nn.Module, tuple[Any, ...], str], Sample]] = {
    "fp32": eager_sample,
    "bf16": _bf16,
    "compiled": _compiled,
}
