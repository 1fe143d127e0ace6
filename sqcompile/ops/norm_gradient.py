"""The gradient of an L1 batch norm, quantised for the product that the norm reads."""

from typing import Any

import torch
from torch import Tensor

from sqcompile.ops.norm import l1_batch_norm_backward
from sqcompile.ops.pack import unpack_int4
from sqcompile.ops.quantize_pair import pair_outputs, shift_quantize_pair
from sqcompile.ops.table import op


@op(
    "sq::l1_batch_norm_backward_quantize",
    doc="l1_batch_norm_backward whose dx is only quantised, by shift_quantize_pair.",
)
def l1_batch_norm_backward_quantize(
    g: Tensor,
    g_scale: Tensor,
    xhat: Tensor,
    coefficient: Tensor,
    gamma: Tensor | None,
    step: float,
    factor: Tensor | None,
    rng: Tensor,
    outer: bool,
    bits: int,
    groups: int,
    stream: int,
) -> tuple[
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
]:
    """g int8 (*, C), xhat int8 like g or as pack_int4 leaves it (uint8), the rest as in the two ops
    -> the ten outputs of shift_quantize_pair for dx, then dgamma and dbeta float32 (C,)."""
    k = unpack_int4.reference(xhat, list(g.shape), True) if xhat.dtype == torch.uint8 else xhat
    dx, dgamma, dbeta = l1_batch_norm_backward.reference(g, g_scale, k, coefficient, gamma, step)
    pair = shift_quantize_pair.reference(dx, factor, rng, outer, bits, groups, stream)
    return (*pair, dgamma, dbeta)


@l1_batch_norm_backward_quantize.meta
def _(
    g: Tensor,
    g_scale: Tensor,
    xhat: Tensor,
    coefficient: Tensor,
    gamma: Tensor | None,
    step: float,
    factor: Tensor | None,
    rng: Tensor,
    outer: bool,
    bits: int,
    groups: int,
    *_: Any,
) -> tuple[Tensor, ...]:
    vectors = (g_scale.new_empty(g_scale.shape) for _ in range(2))
    return (*pair_outputs(g, outer, groups), *vectors)
