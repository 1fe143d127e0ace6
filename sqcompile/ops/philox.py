"""Random draws: Philox4x32-10, counter based, so a draw depends on where it is used only.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import hashlib

import torch
from torch import Tensor

from sqcompile.ops.table import op

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF
ROUNDS = 10
DRAWS_PER_BLOCK = 8
LANES = 16
"""Consecutive elements that take the same draw number of consecutive blocks."""


def philox4x32(counter: list[Tensor], key: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Four int64 tensors of 32-bit words and a key of two -> four such tensors.

    int64 products wrap modulo 2^64, whose two halves are the words that Philox asks for.
    """
    c0, c1, c2, c3 = (word & WORD for word in counter)
    k0, k1 = (word & WORD for word in key)
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & WORD) ^ c1 ^ k0,
            p1 & WORD,
            ((p0 >> 32) & WORD) ^ c3 ^ k1,
            p0 & WORD,
        )
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return [c0, c1, c2, c3]


def stream_id(module: str, role: str, operand: str, occurrence: int) -> int:
    """The 32-bit stream of one quantiser: first 4 bytes of SHA-256 of what names it."""
    text = f"{module}/{role}/{operand}/{occurrence}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def fold_seed(seed: int) -> int:
    """Any Python integer -> 32 bits, by xor of its 32-bit words (two's complement, 64 bits)."""
    value = seed & 0xFFFFFFFFFFFFFFFF
    return (value ^ (value >> 32)) & WORD


@op("sq::draws", doc="16-bit draws of one stream, in the element order of the quantisers.")
def draws(rng: Tensor, n: int, stream: int) -> Tensor:
    """rng int64[4] = (seed, step, micro_step, rank) -> (n,) int32 in [0, 65535].

    Element i takes block i mod 16 + 16 * (i div 128) and draw (i div 16) mod 8, so that 16
    consecutive elements are 16 SIMD lanes with no transposition. Draw d is the low (d even) or
    high (d odd) half of output word d div 2. key = (seed, stream), counter = (block, step,
    micro_step, rank).
    """
    groups = -(-n // (LANES * DRAWS_PER_BLOCK))
    block = torch.arange(groups * LANES, dtype=torch.int64, device=rng.device)
    seed, step, micro_step, rank = rng.unbind()
    rest = [value.expand_as(block) for value in (step, micro_step, rank)]
    words = philox4x32([block, *rest], (seed, torch.full_like(seed, stream)))
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    by_draw = torch.stack([half.view(groups, LANES) for half in halves], dim=1)
    return by_draw.reshape(-1)[:n].to(torch.int32)


@draws.meta
def _(rng: Tensor, n: int, stream: int) -> Tensor:
    return rng.new_empty((n,), dtype=torch.int32)
