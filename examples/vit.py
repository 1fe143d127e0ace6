"""A small vision transformer (Dosovitskiy et al., arXiv 2010.11929): 3x32x32 images, 4x4 patches.

sqcompile examples/vit.py --recipe w6a6g6 --verify
sqcompile examine examples/vit.py

No images come with it: example_inputs() draws noise. Add data() and loss() to train your copy.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH, IMAGE, BATCH = 4, 32, 4


class Attention(nn.Module):
    """Self-attention: (N, T, width) -> (N, T, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(n, t, width))


class Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Patches as tokens behind a class token, whose last state is classified: -> (N, classes)."""

    def __init__(
        self, layers: int = 4, width: int = 192, heads: int = 3, classes: int = 10
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, PATCH, PATCH)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 1 + (IMAGE // PATCH) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], dim=1)
        return self.head(self.norm(self.blocks(tokens + self.position))[:, 0])


def make_model() -> nn.Module:
    return ViT()


def example_inputs() -> tuple[Tensor]:
    return (torch.randn(BATCH, 3, IMAGE, IMAGE),)
