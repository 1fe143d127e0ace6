"""Activations and their slopes, composed of the functions of `sqcompile.ops.functions`.

A slope is the derivative at a place of forward. Forward keeps it in a few bits, so that backward is
a product: no function is computed twice, and nothing is kept in float.
"""

from math import pi, sqrt

import torch
from torch import Tensor

from sqcompile.ops.functions import (
    LOG2_E,
    ROUNDER,
    ROUNDER_BITS,
    erf,
    exp,
    expm1,
    like,
    polynomial,
    tanh,
)
from sqcompile.ops.table import op

SQRT_HALF = sqrt(0.5)
DENSITY = (0.02201017343743642, 0.0967879174698815, 0.2765711597971674, 0.39891357536726935)
"""2^f / sqrt(2 pi) for |f| <= 1/2, highest power first, off by 7.5e-5 of it: a slope's grid is
coarser."""
FLAT = 8.0
"""From here on GELU's slope is 1, and 0 on the other side."""
SILU_FLAT = 104.0
"""From here on SiLU's slope is 1, and 0 on the other side."""
TANH_SLOPE, TANH_CUBE = sqrt(2.0 / pi), 0.044715
"""GELU with tanh: the argument is TANH_SLOPE * (x + TANH_CUBE * x^3)."""


@op("sq::gelu_cdf", doc="The normal distribution function, or its form with tanh: GELU by x.")
def gelu_cdf(x: Tensor, approximate: bool) -> Tensor:
    """x float32 -> float32: (1 + erf(x sqrt(1/2))) * 0.5, or with
    tanh(TANH_SLOPE * (x + TANH_CUBE * x^3)) for erf. GELU is x times it."""
    if approximate:
        spread = tanh.reference((x + ((x * x) * x) * TANH_CUBE) * TANH_SLOPE)
    else:
        spread = erf.reference(x * SQRT_HALF)
    return (spread + 1.0) * 0.5


@op("sq::gelu_slope", doc="The derivative of GELU.")
def gelu_slope(x: Tensor, cdf: Tensor, approximate: bool) -> Tensor:
    """x, cdf = gelu_cdf(x) float32 -> float32: cdf + x * density, x within FLAT of 0. The density
    is exp(-x^2 / 2) / sqrt(2 pi) to four digits, 2^n by exponent bits times DENSITY(z - n), n the
    nearest int to z = x^2 * (-log2(e) / 2). With tanh it is 2 * cdf * (1 - cdf) times the
    derivative of tanh's argument."""
    x = x.clamp(-FLAT, FLAT)
    square = x * x
    if approximate:
        curve = (square * (3.0 * TANH_CUBE) + 1.0) * (2.0 * TANH_SLOPE)
        return cdf + x * ((cdf * (1.0 - cdf)) * curve)
    z = square * (-0.5 * LOG2_E)
    n = (z + ROUNDER).view(torch.int32) - ROUNDER_BITS
    fraction = polynomial(DENSITY, z - n.to(torch.float32)).view(torch.int32)
    return cdf + x * (fraction + (n << 23)).view(torch.float32)


@op("sq::silu_slope", doc="The derivative of SiLU, which is x * sigmoid(x).")
def silu_slope(x: Tensor, s: Tensor) -> Tensor:
    """x, s = sigmoid(x) float32 -> float32: s * (x * (1 - s) + 1), x within SILU_FLAT."""
    return s * (x.clamp(-SILU_FLAT, SILU_FLAT) * (1.0 - s) + 1.0)


@op("sq::hardswish_slope", doc="The derivative of hard-swish, which is x * clamp(x + 3, 0, 6) / 6.")
def hardswish_slope(raised: Tensor) -> Tensor:
    """raised = clamp(x + 3, 0, 6) float32 -> float32: raised / 3 - 0.5, 0 and 1 at the ends."""
    inside = raised / 3.0 - 0.5
    return torch.where(raised <= 0.0, 0.0, torch.where(raised < 6.0, inside, 1.0))


@op("sq::tanh_slope", doc="The derivative of tanh, from its result.")
def tanh_slope(y: Tensor) -> Tensor:
    """y float32 -> float32: 1 - y * y."""
    return 1.0 - y * y


@op("sq::sigmoid_slope", doc="The derivative of sigmoid, from its result.")
def sigmoid_slope(y: Tensor) -> Tensor:
    """y float32 -> float32: (1 - y) * y."""
    return (1.0 - y) * y


@op("sq::elu", doc="x above 0, an exponential curve to a constant below.")
def elu(x: Tensor, alpha: float, scale: float, input_scale: float) -> Tensor:
    """x float32 -> float32: x * scale above 0, expm1(x * input_scale) * (alpha * scale) else."""
    below = expm1.reference(x * input_scale) * (alpha * scale)
    return torch.where(x > 0.0, x * scale, below)


@op("sq::elu_slope", doc="The derivative of elu.")
def elu_slope(
    value: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool
) -> Tensor:
    """value float32 -> float32; value is elu's argument, or with is_result its result."""
    if is_result:
        below = (value + alpha * scale) * input_scale
    else:
        below = exp.reference(value * input_scale) * (alpha * scale * input_scale)
    return torch.where(value > 0.0, scale, below)


@op("sq::quantize_slope", doc="A slope to nearest on a grid that has 0 and a flat end's slope.")
def quantize_slope(slope: Tensor, unit: float, low: int, high: int) -> Tensor:
    """slope float32 -> uint8: clamp(round_half_even(slope * unit), low, high) - low."""
    return ((slope * unit).round().clamp(low, high) - low).to(torch.uint8)


@quantize_slope.meta
def _(slope: Tensor, unit: float, low: int, high: int) -> Tensor:
    return slope.new_empty(slope.shape, dtype=torch.uint8)


@op("sq::slope_backward", doc="A gradient times a quantised slope.")
def slope_backward(g: Tensor, q: Tensor, low: int, step: float) -> Tensor:
    """g float32, q uint8 of quantize_slope -> float32: g * (f32(q + low) * step)."""
    return g * ((q.to(torch.float32) + float(low)) * step)


for _entry in (
    gelu_cdf, gelu_slope, silu_slope, hardswish_slope, tanh_slope, sigmoid_slope, elu, elu_slope,
    slope_backward,
):  # fmt: skip
    like(_entry)
