"""Carried stochastic rounding: what an element loses goes to the element below it.

Stochastic rounding of every element by a draw of its own is unbiased, but the errors of n elements
add up like a random walk, and a product that sums over tokens reads that sum. Here only the first
element of a run of tokens is rounded by a draw; the others by what is left of those before, which
is uniform as well. So each integer has the same mean, and the errors of a run add up to less than
one step.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from sqcompile.ops.philox import draws

ROWS = 16
"""Rows of a run. Longer runs lose no less in a product, and are less parallel."""
BELOW_ONE = 1.0 - 2.0**-24
"""The largest carry: float32 would round what is left of a v just below an integer up to 1, and a
zero below it would become 1, worth whatever its row's scale is."""


def carried(t: Tensor, low: int, high: int, rng: Tensor, stream: int) -> Tensor:
    """t float32 (*, C) in steps of the grid, rng int64[4] -> int8 in [low, high], of mean t.

    The rows, all axes but the last flattened, in blocks of 16. In column j of block b:
    c = (draw number b * C + j, + 1/2) * 2^-16, then for every row, from the first on,
    v = t + c, f = floor(v), q = clamp(f, low, high), c = min(v - f, 1 - 2^-24). So zeros stay 0.

    t is clamped to [low - 1, high + 1] before, which changes no q that a clamp of f leaves, and
    keeps the carry a fraction with all its bits.
    """
    columns = t.shape[-1] if t.dim() else 1
    rows = t.clamp(low - 1, high + 1).reshape(t.numel() // max(columns, 1), columns)
    blocks = -(-rows.shape[0] // ROWS)
    runs = pad(rows, (0, 0, 0, blocks * ROWS - rows.shape[0])).view(blocks, ROWS, columns)
    start = draws.reference(rng, blocks * columns, stream).view(blocks, columns)
    c = (start.to(torch.float32) + 0.5) * 2.0**-16
    q = []
    for row in range(ROWS):
        v = runs[:, row] + c
        f = v.floor()
        c = (v - f).clamp(max=BELOW_ONE)
        q.append(f.clamp(low, high).to(torch.int8))
    return torch.stack(q, dim=1).view(-1, columns)[: rows.shape[0]].reshape(t.shape)
