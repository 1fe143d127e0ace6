"""What backward keeps: 4-bit values two to a byte, masks eight to a byte."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import pad

from sqcompile.ops.table import op


@op("sq::pack_int4", doc="4-bit values two to a byte, low nibble first.")
def pack_int4(q: Tensor) -> Tensor:
    """int8 in [-8, 7] or uint8 in [0, 15], any shape -> uint8 ((n + 1) // 2,), row-major."""
    nibbles = q.reshape(-1).to(torch.uint8) & 0xF
    nibbles = pad(nibbles, (0, nibbles.numel() % 2))
    return nibbles[0::2] | (nibbles[1::2] << 4)


@pack_int4.meta
def _(q: Tensor) -> Tensor:
    return q.new_empty(((q.numel() + 1) // 2,), dtype=torch.uint8)


@op("sq::unpack_int4", doc="The inverse of pack_int4.")
def unpack_int4(packed: Tensor, shape: Sequence[int], signed: bool) -> Tensor:
    """uint8 ((n + 1) // 2,) -> int8 (signed) or uint8 of `shape`, whose size is n."""
    nibbles = torch.stack([packed & 0xF, packed >> 4], dim=1).reshape(-1)[: prod(shape)]
    if not signed:
        return nibbles.reshape(list(shape))
    values = nibbles.to(torch.int8)
    return torch.where(values > 7, values - 16, values).reshape(list(shape))


@unpack_int4.meta
def _(packed: Tensor, shape: Sequence[int], signed: bool) -> Tensor:
    return packed.new_empty(shape, dtype=torch.int8 if signed else torch.uint8)


@op("sq::pack_mask", doc="A boolean mask, eight to a byte, first element in the lowest bit.")
def pack_mask(mask: Tensor) -> Tensor:
    """bool, any shape -> uint8 ((n + 7) // 8,), row-major."""
    bits = mask.reshape(-1).to(torch.uint8)
    bits = pad(bits, (0, -bits.numel() % 8)).view(-1, 8)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=mask.device)
    return (bits * weights).sum(dim=1, dtype=torch.uint8)


@pack_mask.meta
def _(mask: Tensor) -> Tensor:
    return mask.new_empty(((mask.numel() + 7) // 8,), dtype=torch.uint8)


@op("sq::unpack_mask", doc="The inverse of pack_mask.")
def unpack_mask(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """uint8 ((n + 7) // 8,) -> bool of `shape`, whose size is n."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed.unsqueeze(1) >> places) & 1
    return bits.reshape(-1)[: prod(shape)].reshape(list(shape)) != 0


@unpack_mask.meta
def _(packed: Tensor, shape: Sequence[int]) -> Tensor:
    return packed.new_empty(shape, dtype=torch.bool)
