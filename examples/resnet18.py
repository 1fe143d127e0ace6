"""ResNet-18 (He et al., arXiv 1512.03385) for small and for large images.

sqcompile examples/resnet18.py --verify
sqcompile examine examples/resnet18.py

`ResNet18(stem="small")` takes 3x32x32 images (one 3x3 convolution first), `stem="large"` takes
3x224x224 ones (7x7 with stride 2, then pooling). No images come with it: see docs/resnet.md for
training on your own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH = 4


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


def stem(kind: str, width: int) -> nn.Sequential:
    """What comes before the first block: "small" keeps the resolution, "large" quarters it."""
    if kind == "small":
        first, after = nn.Conv2d(3, width, 3, padding=1, bias=False), []
    elif kind == "large":
        first = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        after = [nn.MaxPool2d(3, stride=2, padding=1)]
    else:
        raise ValueError(f"no stem '{kind}'; there are small and large")
    return nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU(), *after)


class ResNet18(nn.Module):
    """Stem, four stages of two blocks (width, 2, 4 and 8 times width channels), linear head."""

    def __init__(self, classes: int = 10, width: int = 64, stem_kind: str = "small") -> None:
        super().__init__()
        self.stem = stem(stem_kind, width)
        blocks, channels = [], width
        for stage in range(4):
            for stride in (1 if stage == 0 else 2, 1):
                blocks.append(Block(channels, width << stage, stride))
                channels = width << stage
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def make_model() -> nn.Module:
    return ResNet18()


def example_inputs() -> tuple[Tensor]:
    return (torch.randn(BATCH, 3, 32, 32),)
