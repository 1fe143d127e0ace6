"""Fully quantised L1 normalisation: statistics of integers, exact and independent of order.

arXiv 2411.10948, section 4, with the standard deviation estimated by sqrt(pi/2) times the mean
absolute deviation. Sums are int64. With S the sum of N integers and f fraction bits,
m = round_half_even(S * 2^f / N) and D = sum |x * 2^f - m|; the caller chooses f so that
N * max|x| * 2^(f+1) < 2^62 (`fraction_bits`).
"""

from collections.abc import Sequence
from math import pi, sqrt
from typing import Any

import torch
from torch import Tensor

from sqcompile.ops.quantize import TINY
from sqcompile.ops.table import op

SIGMA_OVER_DEVIATION = sqrt(pi / 2)
"""Standard deviation over mean absolute deviation of a normal distribution."""
MAX_FRACTION_BITS = 16
GROUP_AXES = [1, 3]
"""What a group norm normalises over: the pixels and the channels of a group, of (N, P, G, K)."""


def fraction_bits(count: int, largest: int) -> int:
    """The largest f of 0..16 with count * largest * 2^(f+1) < 2^62.

    Raises OverflowError when even f = 0 does not fit.
    """
    for f in range(MAX_FRACTION_BITS, -1, -1):
        if count * max(largest, 1) * 2 ** (f + 1) < 2**62:
            return f
    raise OverflowError(f"a norm over {count} integers up to {largest} does not fit 64 bits")


def _rounded_mean(total: Tensor, count: int, frac_bits: int) -> Tensor:
    """int64 total -> int64 round_half_even(total * 2^frac_bits / count)."""
    scaled = total << frac_bits
    quotient = torch.div(scaled, count, rounding_mode="floor")
    twice = 2 * (scaled - quotient * count)
    up = (twice > count) | ((twice == count) & (quotient % 2 != 0))
    return quotient + up.to(torch.int64)


def _normalized(
    x: Tensor,
    scale: Tensor,
    axes: Sequence[int],
    eps: float,
    frac_bits: int,
    centred: bool = True,
    total: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Integers, and their int64 sums where these are known -> (xhat, coefficient, mean, sigma),
    the last three with `axes` of size 1.

    sigma = (float32(D) * float32(sqrt(pi/2) * 2^-f / N)) * scale, coefficient = 1 / (sigma +
    eps), 0 where sigma + eps < 2^-100 (as in the quantisers: neither 0 / 0 nor infinity), xhat =
    float32(x * 2^f - m) * ((scale * 2^-f) * coefficient). m is 0 unless `centred`.
    """
    count = x.numel() // scale.numel()
    wide = x.to(torch.int64)
    total = wide.sum(list(axes), keepdim=True) if total is None else total
    mean = _rounded_mean(total, count, frac_bits) if centred else torch.zeros_like(total)
    moved = (wide << frac_bits) - mean
    deviation = moved.abs().sum(list(axes), keepdim=True)
    step = 2.0**-frac_bits
    sigma = (deviation.to(torch.float32) * (SIGMA_OVER_DEVIATION * step / count)) * scale
    spread = sigma + eps
    coefficient = torch.where(spread < TINY, torch.zeros_like(spread), 1.0 / spread)
    xhat = moved.to(torch.float32) * ((scale * step) * coefficient)
    return xhat, coefficient, (mean.to(torch.float32) * step) * scale, sigma


def _affine(xhat: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    y = xhat if gamma is None else gamma * xhat
    return y if beta is None else y + beta


def _saved(xhat: Tensor, bits: int, step: float) -> Tensor:
    """The integer k of the saved value (k + 1/2) * step: zero lies between two steps."""
    return (xhat / step).floor().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).to(torch.int8)


def _sums(g: Tensor, xhat: Tensor, axes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """int64 sums over `axes` of g, of g * (2 k + 1) and of the sign of k + 1/2."""
    wide, k = g.to(torch.int64), xhat.to(torch.int64)
    kept = list(axes)
    return (
        wide.sum(kept, keepdim=True),
        (wide * (2 * k + 1)).sum(kept, keepdim=True),
        torch.where(k >= 0, 1, -1).sum(kept, keepdim=True),
    )


def _input_gradient(
    g: Tensor,
    xhat: Tensor,
    factor: Tensor,
    axes: Sequence[int],
    step: float,
    centred: bool = True,
) -> Tensor:
    """factor * (g - mean(g) - sqrt(pi/2) * mean(g * xhat) * (sign - mean(sign))), on integers;
    both means are left out unless the norm is `centred`.

    The subtracted part takes two values per normalised set, one for each sign of xhat.
    """
    count = g.numel() // factor.numel()
    total, total_xhat, total_sign = _sums(g, xhat, axes)
    slope = total_xhat.to(torch.float32) * (SIGMA_OVER_DEVIATION * step / (2 * count))
    above, below = slope, slope * -1.0
    if centred:
        mean = total.to(torch.float32) / count
        mean_sign = total_sign.to(torch.float32) / count
        above = mean + slope * (1.0 - mean_sign)
        below = mean + slope * (-1.0 - mean_sign)
    return (g.to(torch.float32) - torch.where(xhat >= 0, above, below)) * factor


def _all_but_last(x: Tensor) -> list[int]:
    return list(range(x.dim() - 1))


@op("sq::l1_batch_norm", doc="L1 batch norm of integers (accumulators or a quantised input).")
def l1_batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    frac_bits: int,
    bits: int,
    step: float,
    sums: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x int8/int32/int64 (*, C) worth scale[c] each, plus bias[c]; scale, bias, gamma, beta
    float32 (C,) -> (y float32, xhat int8 in `bits` bits, coefficient (C,), mean (C,), var (C,)).

    y = gamma * xhat + beta; the bias reaches only the mean; var is sigma squared. `sums`: those of
    x over all axes but the last, int64 (C,), where its producer gives them.
    """
    axes = _all_but_last(x)
    xhat, coefficient, mean, sigma = _normalized(x, scale, axes, eps, frac_bits, total=sums)
    mean, sigma = mean.reshape(-1), sigma.reshape(-1)
    return (
        _affine(xhat, gamma, beta),
        _saved(xhat, bits, step),
        coefficient.reshape(-1),
        mean if bias is None else mean + bias,
        sigma * sigma,
    )


@l1_batch_norm.meta
def _(x: Tensor, scale: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    full = x.new_empty(x.shape, dtype=torch.float32), x.new_empty(x.shape, dtype=torch.int8)
    coefficient, mean, var = (scale.new_empty(scale.shape) for _ in range(3))
    return (*full, coefficient, mean, var)


@op("sq::l1_batch_norm_backward", doc="Gradients of L1 batch norm from integer sums.")
def l1_batch_norm_backward(
    g: Tensor,
    g_scale: Tensor,
    xhat: Tensor,
    coefficient: Tensor,
    gamma: Tensor | None,
    step: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """g int8 (*, C) worth g_scale[c] each, xhat int8 (the saved k), coefficient, gamma
    float32 (C,) -> (dx float32 (*, C), dgamma (C,), dbeta (C,))."""
    axes = _all_but_last(g)
    total, total_xhat, _ = _sums(g, xhat, axes)
    factor = g_scale if gamma is None else gamma * g_scale
    dx = _input_gradient(g, xhat, factor * coefficient, axes, step)
    dgamma = total_xhat.reshape(-1).to(torch.float32) * (g_scale * (step / 2))
    return dx, dgamma, total.reshape(-1).to(torch.float32) * g_scale


@l1_batch_norm_backward.meta
def _(g: Tensor, g_scale: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    dx = g.new_empty(g.shape, dtype=torch.float32)
    return dx, g_scale.new_empty(g_scale.shape), g_scale.new_empty(g_scale.shape)


@op("sq::l1_layer_norm", doc="L1 layer or RMS norm of integers quantised per row.")
def l1_layer_norm(
    x: Tensor,
    scale: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    frac_bits: int,
    bits: int,
    step: float,
    centred: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """x int8 (M, D) worth scale[m] each, scale float32 (M, 1), gamma, beta float32 (D,) ->
    (y float32 (M, D), xhat int8 (M, D), coefficient float32 (M, 1)).

    Without `centred` no mean is subtracted: an RMS norm.
    """
    xhat, coefficient, _, _ = _normalized(x, scale, [1], eps, frac_bits, centred)
    return _affine(xhat, gamma, beta), _saved(xhat, bits, step), coefficient


@l1_layer_norm.meta
def _(x: Tensor, scale: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    full = x.new_empty(x.shape, dtype=torch.float32), x.new_empty(x.shape, dtype=torch.int8)
    return (*full, scale.new_empty(scale.shape))


@op("sq::l1_layer_norm_backward", doc="Input gradient of L1 layer or RMS norm.")
def l1_layer_norm_backward(
    h: Tensor,
    h_scale: Tensor,
    xhat: Tensor,
    coefficient: Tensor,
    step: float,
    centred: bool = True,
) -> Tensor:
    """h = gamma * g as int8 (M, D) worth h_scale[m] each, xhat int8 (M, D), coefficient float32
    (M, 1) -> dx float32 (M, D)."""
    return _input_gradient(h, xhat, h_scale * coefficient, [1], step, centred)


@l1_layer_norm_backward.meta
def _(h: Tensor, *_: Any) -> Tensor:
    return h.new_empty(h.shape, dtype=torch.float32)


@op("sq::l1_layer_norm_affine_backward", doc="Gradients of gamma and beta of L1 layer norm.")
def l1_layer_norm_affine_backward(
    g: Tensor, g_scale: Tensor, xhat: Tensor, step: float
) -> tuple[Tensor, Tensor]:
    """g int8 (M, D) worth g_scale[d] each, g_scale float32 (1, D), xhat int8 (M, D) -> (dgamma
    float32 (D,), dbeta float32 (D,))."""
    total, total_xhat, _ = _sums(g, xhat, [0])
    dgamma = total_xhat.to(torch.float32) * (g_scale * (step / 2))
    return dgamma.reshape(-1), (total.to(torch.float32) * g_scale).reshape(-1)


@l1_layer_norm_affine_backward.meta
def _(g: Tensor, g_scale: Tensor, xhat: Tensor, step: float) -> tuple[Tensor, Tensor]:
    features = g.shape[1]
    return g_scale.new_empty((features,)), g_scale.new_empty((features,))


@op("sq::l1_group_norm", doc="L1 group norm of integers quantised per sample and group.")
def l1_group_norm(
    x: Tensor,
    scale: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    frac_bits: int,
    bits: int,
    step: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """x int8 (N, P, G, K), P pixels of G groups of K channels, worth scale[n, g] each, scale
    float32 (N, 1, G, 1), gamma, beta float32 (G, K) -> (y float32 (N, P, G, K), xhat int8 (N, P,
    G, K), coefficient float32 (N, 1, G, 1))."""
    xhat, coefficient, _, _ = _normalized(x, scale, GROUP_AXES, eps, frac_bits)
    return _affine(xhat, gamma, beta), _saved(xhat, bits, step), coefficient


@l1_group_norm.meta
def _(x: Tensor, scale: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    full = x.new_empty(x.shape, dtype=torch.float32), x.new_empty(x.shape, dtype=torch.int8)
    return (*full, scale.new_empty(scale.shape))


@op("sq::l1_group_norm_backward", doc="Input gradient of L1 group norm from integer sums.")
def l1_group_norm_backward(
    h: Tensor, h_scale: Tensor, xhat: Tensor, coefficient: Tensor, step: float
) -> Tensor:
    """h = gamma * g as int8 (N, P, G, K) worth h_scale[n, g] each, xhat int8 (N, P, G, K), h_scale,
    coefficient float32 (N, 1, G, 1) -> dx float32 (N, P, G, K)."""
    return _input_gradient(h, xhat, h_scale * coefficient, GROUP_AXES, step)


@l1_group_norm_backward.meta
def _(h: Tensor, *_: Any) -> Tensor:
    return h.new_empty(h.shape, dtype=torch.float32)


@op("sq::ema", doc="Exponential moving average of a running statistic.")
def ema(old: Tensor, new: Tensor, momentum: float) -> Tensor:
    """old, new float32 of one shape -> old * (1 - momentum) + new * momentum, each product and
    the sum rounded once."""
    return old * (1.0 - momentum) + new * momentum


@ema.meta
def _(old: Tensor, new: Tensor, momentum: float) -> Tensor:
    return old.new_empty(old.shape)
