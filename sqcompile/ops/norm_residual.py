"""L1 batch norm with the residual sum and the ReLU behind it, whose float result is kept."""

from typing import Any

import torch
from torch import Tensor

from sqcompile.ops.norm import l1_batch_norm
from sqcompile.ops.norm_fused import PACKED_BITS, beside_result, range_and_groups
from sqcompile.ops.pack import pack_int4, pack_mask
from sqcompile.ops.table import op


@op("sq::l1_batch_norm_add_relu", doc="L1 batch norm, residual sum, ReLU, absmax and packing.")
def l1_batch_norm_add_relu(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    frac_bits: int,
    bits: int,
    step: float,
    residual: Tensor | None,
    relu: bool,
    sums: Tensor | None = None,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """l1_batch_norm, plus residual float32 (*, C) or None, then ReLU if `relu` -> (y float32
    (*, C), r float32 absmax of y with all axes of size 1, xhat, mask, coefficient, mean, var,
    exponent int8 (1, .., 1, C)).

    xhat is packed as by pack_int4 when it has at most 4 bits, else int8 (*, C); mask is y > 0 as
    by pack_mask, empty without ReLU. `sums` as in l1_batch_norm. exponent is the group_exponent of
    y's absmax of every channel for `groups` groups, empty (0,) when groups is 1.
    """
    y, xhat, coefficient, mean, var = l1_batch_norm.reference(
        x, scale, bias, gamma, beta, eps, frac_bits, bits, step, sums
    )
    if residual is not None:
        y = y + residual
    if relu:
        y = torch.relu(y)
    r, exponent = range_and_groups(y, groups)
    if bits <= PACKED_BITS:
        xhat = pack_int4.reference(xhat)
    mask = pack_mask.reference(y > 0) if relu else y.new_empty((0,), dtype=torch.uint8)
    return y, r, xhat, mask, coefficient, mean, var, exponent


@l1_batch_norm_add_relu.meta
def _(
    x: Tensor, scale: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    bits, relu, groups = rest[5], rest[8], rest[10] if len(rest) > 10 else 1
    y = x.new_empty(x.shape, dtype=torch.float32)
    return y, *beside_result(x, scale, bits, relu, groups)
