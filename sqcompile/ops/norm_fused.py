"""L1 norms with what surrounds them in a training step: ReLU, quantisers, packing.

Each is the composition of the ops it stands for; a pass puts it in their place.
"""

from typing import Any

import torch
from torch import Tensor

from sqcompile.ops.norm import (
    l1_batch_norm,
    l1_batch_norm_backward,
    l1_group_norm_backward,
    l1_layer_norm,
    l1_layer_norm_affine_backward,
    l1_layer_norm_backward,
)
from sqcompile.ops.pack import pack_int4, pack_mask, unpack_int4
from sqcompile.ops.quantize import (
    absmax,
    clip_range,
    group_exponent,
    quant_scale,
    quantize,
    quantize_stochastic,
)
from sqcompile.ops.table import op

PACKED_BITS = 4
"""A saved xhat of at most so many bits is packed two to a byte."""


def range_and_groups(y: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """y float32 (*, C) -> (absmax of y with all axes of size 1, group_exponent of the absmax of
    every channel int8 (1, .., 1, C), or empty (0,) where there is one group)."""
    every = list(range(y.dim()))
    if groups == 1:
        return absmax.reference(y, None, every), y.new_empty((0,), dtype=torch.int8)
    channel = absmax.reference(y, None, every[:-1])
    return absmax.reference(channel, None, every), group_exponent.reference(channel, groups)


def beside_result(
    x: Tensor, scale: Tensor, bits: int, relu: bool, groups: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What a batch norm that packs gives beside its result, as meta: r, xhat, mask, coefficient,
    mean, var, exponent."""
    r = x.new_empty([1] * x.dim(), dtype=torch.float32)
    xhat = x.new_empty(x.shape, dtype=torch.int8)
    if bits <= PACKED_BITS:
        xhat = x.new_empty(((x.numel() + 1) // 2,), dtype=torch.uint8)
    mask = x.new_empty(((x.numel() + 7) // 8 if relu else 0,), dtype=torch.uint8)
    coefficient, mean, var = (scale.new_empty(scale.shape) for _ in range(3))
    kept = [1] * (x.dim() - 1) + [x.shape[-1]] if groups > 1 else [0]
    exponent = x.new_empty(kept, dtype=torch.int8)
    return r, xhat, mask, coefficient, mean, var, exponent


@op("sq::l1_batch_norm_relu_quantize", doc="L1 batch norm, ReLU, quantisation and packing in one.")
def l1_batch_norm_relu_quantize(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    frac_bits: int,
    bits: int,
    step: float,
    relu: bool,
    out_bits: int,
    signed: bool,
    sums: Tensor | None = None,
    share: float = 1.0,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """l1_batch_norm, then ReLU if `relu`, whose y is only quantised -> (q int8 or uint8 (*, C) in
    `out_bits` bits, r float32 absmax of y times `share` with all axes of size 1, xhat, mask,
    coefficient, mean, var, exponent int8 (1, .., 1, C)). `sums` as in l1_batch_norm. With groups
    > 1 q has the group_exponent of y's absmax of every channel; else there is no exponent, (0,).

    xhat is packed as by pack_int4 when it has at most 4 bits, else int8 (*, C); mask is y > 0 as
    by pack_mask, empty without ReLU. Where y is NaN or infinite q is unspecified, and r is not
    finite then.
    """
    y, xhat, coefficient, mean, var = l1_batch_norm.reference(
        x, scale, bias, gamma, beta, eps, frac_bits, bits, step, sums
    )
    if relu:
        y = torch.relu(y)
    whole, exponent = range_and_groups(y, groups)
    r = clip_range.reference(whole, share)
    q = quantize.reference(y, r, out_bits, signed, exponent if groups > 1 else None)
    if bits <= PACKED_BITS:
        xhat = pack_int4.reference(xhat)
    mask = pack_mask.reference(y > 0) if relu else y.new_empty((0,), dtype=torch.uint8)
    return q, r, xhat, mask, coefficient, mean, var, exponent


@l1_batch_norm_relu_quantize.meta
def _(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    frac_bits: int,
    bits: int,
    step: float,
    relu: bool,
    out_bits: int,
    signed: bool,
    sums: Tensor | None = None,
    share: float = 1.0,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    q = x.new_empty(x.shape, dtype=torch.int8 if signed else torch.uint8)
    return q, *beside_result(x, scale, bits, relu, groups)


@op("sq::l1_batch_norm_packed_backward", doc="l1_batch_norm_backward of a packed xhat.")
def l1_batch_norm_packed_backward(
    g: Tensor,
    g_scale: Tensor,
    packed: Tensor,
    coefficient: Tensor,
    gamma: Tensor | None,
    step: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """l1_batch_norm_backward with xhat as pack_int4 leaves it."""
    xhat = unpack_int4.reference(packed, list(g.shape), True)
    return l1_batch_norm_backward.reference(g, g_scale, xhat, coefficient, gamma, step)


@l1_batch_norm_packed_backward.meta
def _(g: Tensor, g_scale: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    dx = g.new_empty(g.shape, dtype=torch.float32)
    return dx, g_scale.new_empty(g_scale.shape), g_scale.new_empty(g_scale.shape)


@op(
    "sq::quantize_l1_layer_norm",
    doc="L1 layer or RMS norm of float rows, which it quantises first.",
)
def quantize_l1_layer_norm(
    x: Tensor,
    in_bits: int,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    frac_bits: int,
    bits: int,
    step: float,
    centred: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x float32 (M, D), quantised in `in_bits` bits per row -> (y float32 (M, D), xhat, coefficient
    (M, 1), r (M, 1)) of l1_layer_norm, with r the absmax of every row.

    xhat is packed as by pack_int4 when it has at most 4 bits, else int8 (M, D).
    """
    r = absmax.reference(x, None, [1])
    q = quantize.reference(x, r, in_bits, True)
    scale = quant_scale.reference(r, in_bits, True, 1)
    y, xhat, coefficient = l1_layer_norm.reference(
        q, scale, gamma, beta, eps, frac_bits, bits, step, centred
    )
    return y, pack_int4.reference(xhat) if bits <= PACKED_BITS else xhat, coefficient, r


@quantize_l1_layer_norm.meta
def _(
    x: Tensor,
    in_bits: int,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    frac_bits: int,
    bits: int,
    step: float,
    centred: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    xhat = x.new_empty(x.shape, dtype=torch.int8)
    if bits <= PACKED_BITS:
        xhat = x.new_empty(((x.numel() + 1) // 2,), dtype=torch.uint8)
    coefficient, r = (x.new_empty((x.shape[0], 1)) for _ in range(2))
    return x.new_empty(x.shape), xhat, coefficient, r


@op("sq::l1_layer_norm_packed_backward", doc="l1_layer_norm_backward of a packed xhat.")
def l1_layer_norm_packed_backward(
    h: Tensor,
    h_scale: Tensor,
    packed: Tensor,
    coefficient: Tensor,
    step: float,
    centred: bool = True,
) -> Tensor:
    """l1_layer_norm_backward with xhat as pack_int4 leaves it; rows of even length."""
    xhat = unpack_int4.reference(packed, list(h.shape), True)
    return l1_layer_norm_backward.reference(h, h_scale, xhat, coefficient, step, centred)


@l1_layer_norm_packed_backward.meta
def _(h: Tensor, *_: Any) -> Tensor:
    return h.new_empty(h.shape, dtype=torch.float32)


@op(
    "sq::quantize_l1_layer_norm_backward",
    doc="Input gradient of L1 layer or RMS norm from float rows, which it quantises first.",
)
def quantize_l1_layer_norm_backward(
    g: Tensor,
    gamma: Tensor | None,
    rng: Tensor,
    in_bits: int,
    stream: int,
    xhat: Tensor,
    coefficient: Tensor,
    step: float,
    centred: bool = True,
) -> tuple[Tensor, Tensor]:
    """g float32 (M, D), gamma float32 (D,), rng int64[4]; gamma * g is quantised stochastically in
    `in_bits` bits per row; xhat int8 (M, D), or as pack_int4 leaves it (uint8; D even) ->
    (dx float32 (M, D) of l1_layer_norm_backward, r (M, 1), the absmax of every row)."""
    h = g if gamma is None else g * gamma
    r = absmax.reference(h, None, [1])
    q = quantize_stochastic.reference(h, r, None, None, rng, in_bits, stream)
    scale = quant_scale.reference(r, in_bits, True, 1)
    k = unpack_int4.reference(xhat, list(g.shape), True) if xhat.dtype == torch.uint8 else xhat
    return l1_layer_norm_backward.reference(q, scale, k, coefficient, step, centred), r


@quantize_l1_layer_norm_backward.meta
def _(g: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return g.new_empty(g.shape), g.new_empty((g.shape[0], 1))


@op(
    "sq::l1_layer_norm_affine_packed_backward",
    doc="l1_layer_norm_affine_backward of a packed xhat.",
)
def l1_layer_norm_affine_packed_backward(
    g: Tensor, g_scale: Tensor, packed: Tensor, step: float
) -> tuple[Tensor, Tensor]:
    """l1_layer_norm_affine_backward with xhat as pack_int4 leaves it."""
    xhat = unpack_int4.reference(packed, list(g.shape), True)
    return l1_layer_norm_affine_backward.reference(g, g_scale, xhat, step)


@l1_layer_norm_affine_packed_backward.meta
def _(g: Tensor, g_scale: Tensor, packed: Tensor, step: float) -> tuple[Tensor, Tensor]:
    features = g.shape[1]
    return g_scale.new_empty((features,)), g_scale.new_empty((features,))


@op("sq::l1_group_norm_packed_backward", doc="l1_group_norm_backward of a packed xhat.")
def l1_group_norm_packed_backward(
    h: Tensor, h_scale: Tensor, packed: Tensor, coefficient: Tensor, step: float
) -> Tensor:
    """l1_group_norm_backward with xhat as pack_int4 leaves it; samples of even size."""
    xhat = unpack_int4.reference(packed, list(h.shape), True)
    return l1_group_norm_backward.reference(h, h_scale, xhat, coefficient, step)


@l1_group_norm_packed_backward.meta
def _(h: Tensor, *_: Any) -> Tensor:
    return h.new_empty(h.shape, dtype=torch.float32)
