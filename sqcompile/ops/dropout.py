"""Dropout masks from counter-based draws, eight elements to a byte."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from sqcompile.ops.pack import pack_mask
from sqcompile.ops.philox import draws
from sqcompile.ops.table import op

DRAWN = 1 << 16
"""Number of values that a draw has."""


def threshold(probability: float) -> int:
    """The draw from which on an element is kept: `probability` to the nearest 2^-16."""
    return round(probability * DRAWN)


@op("sq::dropout_mask", doc="Which elements dropout keeps, packed as by pack_mask.")
def dropout_mask(rng: Tensor, shape: Sequence[int], least: int, stream: int) -> Tensor:
    """rng int64[4] -> uint8 ((n + 7) // 8,), n the size of `shape`: bit i is set where draw i of
    the stream is at least `least` (0 .. 65536)."""
    count = prod(shape)
    kept: Tensor = draws.reference(rng, count, stream) >= least
    packed: Tensor = pack_mask.reference(kept)
    return packed


@dropout_mask.meta
def _(rng: Tensor, shape: Sequence[int], least: int, stream: int) -> Tensor:
    return rng.new_empty(((prod(shape) + 7) // 8,), dtype=torch.uint8)
