"""A small residual network on scikit-learn's handwritten digits (8x8 grey images, 10 classes).

sqcompile train examples/digits_resnet.py --recipe w4a4g4 --epochs 10 --compare-fp32
"""

from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

BATCH = 64
HELD_OUT = 720


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where shapes change."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class DigitsResNet(nn.Module):
    """Stem, two blocks of 16 and 32 channels, pooling, a linear head: (N, 1, 8, 8) -> (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 1))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(F.max_pool2d(h, 2).mean((2, 3)))


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, then held-out ones: the last 720, by other writers."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels, dtype=torch.int64)
    return x[:-HELD_OUT], y[:-HELD_OUT], x[-HELD_OUT:], y[-HELD_OUT:]


def make_model() -> nn.Module:
    return DigitsResNet()


def example_inputs() -> tuple[Tensor]:
    return (digits()[0][:BATCH],)


def data() -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: shuffled batches of one size, the rest left out."""
    x, y, _, _ = digits()
    for rows in torch.randperm(len(y)).split(BATCH):
        if len(rows) == BATCH:
            yield x[rows], y[rows]


def eval_data() -> Iterator[tuple[Tensor, Tensor]]:
    """The held-out images at once."""
    _, _, x, y = digits()
    yield x, y


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target)
