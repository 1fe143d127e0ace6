"""ResNet-20 for CIFAR images (He et al., arXiv 1512.03385): 3x32x32 colour images, 10 classes.

sqcompile examples/resnet20.py --verify
sqcompile examine examples/resnet20.py

No images come with it: example_inputs() draws noise, and there is no data(), so `sqcompile train`
refuses the file. Add data() and loss() for your copy of CIFAR-10 to train it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH = 8


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


class ResNet20(nn.Module):
    """Stem, three stages of `depth` blocks (16, 32, 64 channels), linear head: -> (N, 10). Three
    blocks a stage are ResNet-20, one is ResNet-8."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        blocks, channels = [], 16
        for width, first_stride in ((16, 1), (32, 2), (64, 2)):
            for stride in (first_stride, *[1] * (depth - 1)):
                blocks.append(Block(channels, width, stride))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(h.mean((2, 3)))


def make_model() -> nn.Module:
    return ResNet20()


def example_inputs() -> tuple[Tensor]:
    return (torch.randn(BATCH, 3, 32, 32),)
