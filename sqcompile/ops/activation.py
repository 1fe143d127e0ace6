"""Activations and their slopes, composed of the functions of `sqcompile.ops.functions`.

A slope is the derivative at a place of forward. Forward keeps it in a few bits, so that backward is
a product: no function is computed twice, and nothing is kept in float.
"""

from math import pi, sqrt

import torch
from torch import Tensor

from sqcompile.ops.functions import erf, exp, expm1, like, tanh
from sqcompile.ops.table import op

SQRT_HALF = sqrt(0.5)
DENSITY = 1.0 / sqrt(2.0 * pi)
"""The density of the normal distribution at 0."""
FLAT = 16.0
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
    """x, cdf = gelu_cdf(x) float32 -> float32: cdf + x * density, with x within FLAT and the normal
    density, or 2 * cdf * (1 - cdf) times the derivative of tanh's argument in the form with it."""
    x = x.clamp(-FLAT, FLAT)
    if approximate:
        bend = (cdf * (1.0 - cdf)) * (((x * x) * (3.0 * TANH_CUBE) + 1.0) * (2.0 * TANH_SLOPE))
    else:
        bend = exp.reference((x * x) * -0.5) * DENSITY
    return cdf + x * bend


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
