"""Every protocol, by name."""

import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from protocols.digits import digits
from protocols.images import cifar10_splits
from protocols.protocol import Protocol, Schedule
from protocols.text import windows

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the examples are not installed


def _network(example: str, name: str, **sizes: Any) -> nn.Module:
    """A network of examples/, at other sizes."""
    network: nn.Module = getattr(import_module(f"examples.{example}"), name)(**sizes)
    return network


PROTOCOLS = {
    "digits": Protocol(
        "scikit-learn digits, the network of `make demo`",
        partial(_network, "digits_resnet", "DigitsResNet"),
        digits,
        Schedule(epochs=20, optimizer="sgd", lr=0.1, decay=5e-4, warmup=0.25),
        seeds=10,
    ),
    "resnet8-16px": Protocol(
        "ResNet-8 (16, 32, 64 channels), 10,000 images of CIFAR-10 averaged to 16x16",
        partial(_network, "resnet20", "ResNet20", depth=1),
        partial(cifar10_splits, side=16, train=10_000, validation=10_000, batch=128, shift=2),
        Schedule(epochs=15, optimizer="sgd", lr=0.1, decay=5e-4, warmup=0.25),
        seeds=10,
    ),
    "resnet20-cifar10": Protocol(
        "ResNet-20, CIFAR-10",
        partial(_network, "resnet20", "ResNet20"),
        partial(cifar10_splits, side=32, train=45_000, validation=5_000, batch=128, shift=4),
        Schedule(epochs=18, optimizer="sgd", lr=0.1, decay=5e-4, warmup=0.25),
        seeds=3,
    ),
    "vit-cifar10": Protocol(
        "ViT (4 layers, width 96, 4x4 patches), CIFAR-10",
        partial(_network, "vit", "ViT", layers=4, width=96, heads=3),
        partial(cifar10_splits, side=32, train=45_000, validation=5_000, batch=128, shift=4),
        Schedule(epochs=3, optimizer="adamw", lr=0.001, decay=0.05, warmup=0.1),
        seeds=3,
    ),
    "charlm": Protocol(
        "GPT on the bytes of tinyshakespeare (2 layers, width 128, 64 bytes of context)",
        partial(_network, "gpt", "GPT"),
        partial(windows, context=64, batch=32, steps=200),
        Schedule(epochs=6, optimizer="adamw", lr=0.002, decay=0.05, warmup=0.1),
        seeds=10,
    ),
}
