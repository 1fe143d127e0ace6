"""Kinds of networks that people train, as small as their structure allows, each with its inputs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models import Block, Models


class ImageNetResNet(nn.Module):
    """ResNet-18's outline: a strided 7 x 7 stem, overlapping max pooling, a block, a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.block = Block(8, 12, 2)
        self.mean = nn.AdaptiveAvgPool2d((1, 1))
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.block(self.pool(F.relu(self.norm(self.stem(x)))))
        return self.head(torch.flatten(self.mean(h), 1))


class InvertedResidual(nn.Module):
    """Expand, depthwise, project, with ReLU6 between and a shortcut where shapes allow one."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        inner = 2 * channels
        self.shortcut = stride == 1 and channels == width
        self.layers = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.shortcut else self.layers(x)


class MobileNet(nn.Module):
    """MobileNetV2's outline, with dropout before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.block = InvertedResidual(8, 8, 1)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean((2, 3)))


class Mixer(nn.Module):
    """MLP-Mixer: patches, then layers across tokens and across channels in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))
        self.tokens = nn.Sequential(nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 16))
        self.channels = nn.Sequential(nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2)
        h = h + self.tokens(self.norms[0](h).transpose(1, 2)).transpose(1, 2)
        h = h + self.channels(self.norms[1](h))
        return self.head(h.mean(1))


class TextClassifier(nn.Module):
    """Embeddings with positions, the mean over what is no padding, dropout, an MLP; the last
    layer's weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 16, padding_idx=0)
        self.positions = nn.Embedding(12, 16)
        self.drop = nn.Dropout(0.1)
        self.middle = nn.Linear(16, 16)
        self.tied = nn.Linear(16, 30, bias=False)
        self.tied.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        there = (tokens != 0).unsqueeze(-1)
        h = self.words(tokens) + self.positions(torch.arange(tokens.shape[1]))
        mean = (self.drop(h) * there).sum(1) / there.sum(1).clamp(min=1)
        return self.tied(self.drop(F.relu(self.middle(mean))))


class UNet(nn.Module):
    """Down by pooling, up by interpolation, joined by concatenation."""

    def __init__(self, mode: str = "bilinear") -> None:
        super().__init__()
        self.mode = mode
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.deep = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12))
        self.joined = nn.Conv2d(20, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        top = F.relu(self.first(x))
        deep = F.relu(self.deep(F.avg_pool2d(top, 2, ceil_mode=True)))
        up = F.interpolate(deep, size=top.shape[2:], mode=self.mode)
        return self.last(F.relu(self.joined(torch.cat([up, top], 1))))


class ClassToken(nn.Module):
    """A transformer's outline without a softmax: class token, positions, heads, gathered rows."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 12))
        self.positions = nn.Parameter(torch.randn(1, 9, 12))
        self.qkv = nn.Linear(12, 36)
        self.out = nn.Linear(12, 12)
        self.head = nn.Linear(12, 5)
        self.register_buffer("order", torch.tensor([0, 3, 3, 1]))

    def forward(self, x: Tensor) -> Tensor:
        n, count, width = x.shape
        h = torch.cat([self.token.expand(n, -1, -1), x], 1) + self.positions[:, : count + 1]
        q, k, v = self.qkv(h).view(n, count + 1, 3, 3, width // 3).permute(2, 0, 3, 1, 4).unbind(0)
        weights = F.relu(torch.einsum("nhic,nhjc->nhij", q, k))
        weights = weights * torch.tril(torch.ones(count + 1, count + 1))
        mixed = torch.einsum("nhij,nhjc->nhic", F.dropout(weights, 0.25, self.training), v)
        h = h + self.out(mixed.transpose(1, 2).reshape(n, count + 1, width))
        return self.head(h[:, 0] + h.index_select(1, self.order).roll(1, 1).mean(1))


ZOO: Models = {
    "imagenet-resnet": (ImageNetResNet, lambda: (torch.randn(2, 3, 29, 27),)),
    "mobilenet": (MobileNet, lambda: (torch.randn(2, 3, 13, 16),)),
    "mixer": (Mixer, lambda: (torch.randn(2, 3, 16, 16),)),
    "text": (TextClassifier, lambda: (torch.randint(0, 30, (3, 12)),)),
    "unet": (UNet, lambda: (torch.randn(2, 3, 9, 7),)),
    "unet-nearest": (lambda: UNet("nearest"), lambda: (torch.randn(2, 3, 8, 8),)),
    "class-token": (ClassToken, lambda: (torch.randn(3, 7, 12),)),
}
