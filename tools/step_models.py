"""The models of tools/bench_step.py: networks of `examples/` at the sizes that are compared."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from sys import path

import torch
from torch import Tensor, nn

path.insert(0, str(Path(__file__).resolve().parent.parent))


@dataclass(frozen=True)
class StepModel:
    """A network, its recipe, and one batch (input, class indices)."""

    make: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]
    recipe: str
    shape: str
    images: bool = False


def _example(name: str, network: str, **sizes: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        module: nn.Module = getattr(import_module(f"examples.{name}"), network)(**sizes)
        return module

    return make


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(1024, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1024)
    )


def _rows() -> tuple[Tensor, Tensor]:
    return torch.randn(512, 1024), torch.randint(1024, (512,))


def _images(batch: int) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,)))


def _text() -> tuple[Tensor, Tensor]:
    return torch.randint(256, (4, 128)), torch.randint(256, (4, 128))


MODELS = {
    "mlp": StepModel(_mlp, _rows, "w4a4g4", "1024-4096-4096-1024, batch 512"),
    "resnet20": StepModel(
        _example("resnet20", "ResNet20"), _images(128), "w4a4g4", "32x32, batch 128", images=True
    ),
    "resnet18": StepModel(
        _example("resnet18", "ResNet18"),
        _images(16),
        "w4a4g4",
        "64..512 channels, 32x32, batch 16",
        images=True,
    ),
    "gpt": StepModel(
        _example("gpt", "GPT", layers=4, width=512, heads=8, context=128),
        _text,
        "w6a6g6",
        "4 layers, d=512, T=128, batch 4",
    ),
    "vit": StepModel(
        _example("vit", "ViT", layers=12, width=192, heads=3),
        _images(16),
        "w6a6g6",
        "12 layers, d=192, 65 tokens, batch 16",
    ),
}
"""By the name of the row in the benchmark's table."""
