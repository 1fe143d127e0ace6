"""A small GPT on bytes of English text, which the Python documentation brings along.

sqcompile examples/gpt.py --recipe w6a6g6 --verify
sqcompile train examples/gpt.py --recipe w6a6g6 --epochs 2 --optimizer adamw --lr 0.001

Pre-norm transformer (Radford et al., 2019): learned positions, causal attention, GELU, and an
output layer that shares the embedding's weight.
"""

from collections.abc import Iterator
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, CONTEXT, BATCH = 256, 64, 16


class Attention(nn.Module):
    """Causal self-attention: (N, T, width) -> (N, T, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = (
            part.view(n, t, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(x).split(width, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
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


class GPT(nn.Module):
    """Bytes (N, T) int64 -> logits of the next byte (N, T, 256)."""

    def __init__(
        self, layers: int = 2, width: int = 128, heads: int = 4, context: int = CONTEXT
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, width)
        self.position = nn.Parameter(torch.randn(context, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        nn.init.normal_(self.token.weight, std=0.02)
        self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def text() -> Tensor:
    """The documentation's topics as bytes, uint8."""
    joined = "\n".join(topics[name] for name in sorted(topics))
    return torch.tensor(list(joined.encode()), dtype=torch.uint8)


def make_model() -> nn.Module:
    return GPT()


def example_inputs() -> tuple[Tensor]:
    return (torch.randint(VOCABULARY, (BATCH, CONTEXT)),)


def _windows(part: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    rows = part[starts[:, None] + torch.arange(CONTEXT + 1)].long()
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def data() -> Iterator[tuple[Tensor, Tensor]]:
    """200 batches of windows from the first nine tenths."""
    part = text()
    part = part[: len(part) * 9 // 10]
    for _ in range(200):
        yield _windows(part, torch.randint(len(part) - CONTEXT, (BATCH,)))


def eval_data() -> Iterator[tuple[Tensor, Tensor]]:
    """The last tenth, window by window."""
    part = text()
    part = part[len(part) * 9 // 10 :]
    starts = torch.arange(0, len(part) - CONTEXT - 1, CONTEXT)
    for batch in starts.split(BATCH):
        if len(batch) == BATCH:
            yield _windows(part, batch)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def accuracy(output: Tensor, target: Tensor) -> float:
    """The share of bytes that are predicted."""
    return (output.argmax(-1) == target).float().mean().item()
