"""A multilayer perceptron with layer norm, on a rule that it has to find.

sqcompile examples/mlp.py --verify
sqcompile train examples/mlp.py --epochs 5 --optimizer adamw --lr 0.002 --compare-fp32
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES, CLASSES, BATCH = 32, 4, 128


class Mlp(nn.Module):
    """Linear, layer norm and ReLU twice, then the head: (N, 32) -> (N, 4)."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, width)
        self.norm1 = nn.LayerNorm(width)
        self.second = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.first(x)))
        x = F.relu(self.norm2(self.second(x)))
        return self.head(x)


def labelled(x: Tensor) -> Tensor:
    """The class of a row: which of four groups of features has the largest sum."""
    return x.view(len(x), CLASSES, -1).sum(2).argmax(1)


def make_model() -> nn.Module:
    return Mlp()


def example_inputs() -> tuple[Tensor]:
    return (torch.randn(BATCH, FEATURES),)


def data() -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(60):
        x = torch.randn(BATCH, FEATURES)
        yield x, labelled(x)


def eval_data() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1024, FEATURES, generator=generator)
    yield x, labelled(x)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target)
