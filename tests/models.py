"""Small models that tests share, each with its inputs."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    """Linear, layer norm, ReLU, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(20, 24)
        self.norm = nn.LayerNorm(24)
        self.middle = nn.Linear(24, 17)
        self.last = nn.Linear(17, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.middle(F.relu(self.norm(self.first(x))))))


class Block(nn.Module):
    """A residual block with a strided shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """Stem, two residual blocks, max pool, global average, head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 16, 2))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(F.relu(self.norm(self.stem(x))), 2)
        return self.head(self.blocks(h).mean((2, 3)))


class OddConvs(nn.Module):
    """Grouped, dilated, strided, biased convolutions on odd sizes, and a module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(3, 9, 3, stride=2, padding=2, groups=3)
        self.dilated = nn.Conv2d(9, 10, (3, 2), padding=(2, 1), dilation=2)
        self.norm = nn.BatchNorm2d(10)
        self.twice = nn.Conv2d(10, 10, 3, padding=1)
        self.depthwise = nn.Conv2d(10, 10, 3, groups=10)
        self.head = nn.Linear(10, 7)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.dilated(F.relu(self.grouped(x)))))
        h = F.relu(self.twice(F.relu(self.twice(h))))
        return self.head(self.depthwise(h).mean((2, 3)))


class GroupNorms(nn.Module):
    """Convolutions with group norms of several kinds, and instance norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.groups = nn.GroupNorm(3, 12)
        self.second = nn.Conv2d(12, 10, 3, stride=2)
        self.instances = nn.InstanceNorm2d(10, affine=True)
        self.third = nn.Conv2d(10, 9, 2)
        self.plain = nn.GroupNorm(1, 9, affine=False)
        self.head = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.groups(self.first(x)))
        h = F.relu(self.instances(self.second(h)))
        return self.head(self.plain(self.third(h)).mean((2, 3)))


class HandWrittenRms(nn.Module):
    """RMS norm as large language models write it."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class RmsMlp(nn.Module):
    """Linear layers with RMS norms: PyTorch's, which is quantised, and a hand-written one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(20, 24)
        self.norm = nn.RMSNorm(24)
        self.middle = nn.Linear(24, 17)
        self.written = HandWrittenRms(17)
        self.last = nn.Linear(17, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.first(x)))
        return self.last(self.written(self.middle(h)))


class Attention(nn.Module):
    """Two heads; causal unless there is a mask."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, tokens, width = x.shape
        heads = self.qkv(x).view(batch, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        q, k, v = heads
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.out(y.transpose(1, 2).reshape(batch, tokens, width))


class Gpt(nn.Module):
    """A transformer block before a head, with its loss inside: logits and loss."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = Attention()
        self.up, self.down, self.head = nn.Linear(8, 20), nn.Linear(20, 8), nn.Linear(8, 7)

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.attention(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        logits = self.head(self.norm3(x))
        return logits, F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=0)


Models = dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]]
MODELS: Models = {
    "mlp": (Mlp, lambda: (torch.randn(12, 20),)),
    "resnet": (SmallResNet, lambda: (torch.randn(4, 3, 12, 12),)),
    "odd": (OddConvs, lambda: (torch.randn(3, 3, 15, 11),)),
    "groups": (GroupNorms, lambda: (torch.randn(3, 3, 10, 9),)),
    "rms": (RmsMlp, lambda: (torch.randn(12, 20),)),
    "attention": (Attention, lambda: (torch.randn(2, 5, 8),)),
    "gpt": (Gpt, lambda: (torch.randn(2, 5, 8), torch.randint(0, 7, (2, 5)))),
}


def make(name: str, seed: int = 0, models: Models = MODELS) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model of a table and its inputs, drawn from `seed`."""
    torch.manual_seed(seed)
    model, inputs = models[name]
    return model(), inputs()
