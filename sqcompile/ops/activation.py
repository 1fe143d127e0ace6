"""Activations and their gradients, composed of the functions of `sqcompile.ops.functions`."""

from math import pi, sqrt

import torch
from torch import Tensor

from sqcompile.ops.functions import erf, exp, expm1, like, sigmoid, tanh
from sqcompile.ops.table import op

SQRT_HALF = sqrt(0.5)
DENSITY = 1.0 / sqrt(2.0 * pi)
"""The density of the normal distribution at 0."""
TANH_SLOPE, TANH_CUBE = sqrt(2.0 / pi), 0.044715
"""GELU with tanh: the argument is TANH_SLOPE * (x + TANH_CUBE * x^3)."""


@op("sq::gelu", doc="x times the normal distribution function of x, or its form with tanh.")
def gelu(x: Tensor, approximate: bool) -> Tensor:
    """x float32 -> float32: (0.5 x) * (1 + erf(x sqrt(1/2))), or with
    tanh(TANH_SLOPE * (x + TANH_CUBE * x^3)) for erf."""
    half = x * 0.5
    if approximate:
        return half * (tanh.reference((x + ((x * x) * x) * TANH_CUBE) * TANH_SLOPE) + 1.0)
    return half * (erf.reference(x * SQRT_HALF) + 1.0)


@op("sq::gelu_backward", doc="The gradient of gelu.")
def gelu_backward(g: Tensor, x: Tensor, approximate: bool) -> Tensor:
    """g, x float32 -> float32: g * (cdf + x * density), with cdf = 0.5 * (1 + erf(...)) and the
    normal density; or the derivative of the form with tanh."""
    if approximate:
        square = x * x
        t = tanh.reference((x + (square * x) * TANH_CUBE) * TANH_SLOPE)
        slope = (square * (3.0 * TANH_CUBE) + 1.0) * TANH_SLOPE
        bend = ((x * 0.5) * (1.0 - t * t)) * slope
        return g * ((t + 1.0) * 0.5 + bend)
    cdf = (erf.reference(x * SQRT_HALF) + 1.0) * 0.5
    density = exp.reference((x * x) * -0.5) * DENSITY
    return g * (cdf + x * density)


@op("sq::silu", doc="SiLU: x times sigmoid(x).")
def silu(x: Tensor) -> Tensor:
    """x float32 -> float32."""
    return x * sigmoid.reference(x)


@op("sq::silu_backward", doc="The gradient of silu.")
def silu_backward(g: Tensor, x: Tensor) -> Tensor:
    """g, x float32 -> float32: g * (s * (1 + x * (1 - s))), s = sigmoid(x)."""
    s = sigmoid.reference(x)
    return g * (s * (x * (1.0 - s) + 1.0))


@op("sq::hardswish", doc="x * clamp(x + 3, 0, 6) / 6.")
def hardswish(x: Tensor) -> Tensor:
    """x float32 -> float32."""
    return (x * (x + 3.0).clamp(0.0, 6.0)) / 6.0


@op("sq::hardswish_backward", doc="The gradient of hardswish.")
def hardswish_backward(g: Tensor, x: Tensor) -> Tensor:
    """g, x float32 -> float32: 0 up to -3, g * (x / 3 + 0.5) between, g from 3 on."""
    inside = g * (x / 3.0 + 0.5)
    return torch.where(x <= -3.0, 0.0, torch.where(x < 3.0, inside, g))


@op("sq::elu", doc="x above 0, an exponential curve to a constant below.")
def elu(x: Tensor, alpha: float, scale: float, input_scale: float) -> Tensor:
    """x float32 -> float32: x * scale above 0, expm1(x * input_scale) * (alpha * scale) else."""
    below = expm1.reference(x * input_scale) * (alpha * scale)
    return torch.where(x > 0.0, x * scale, below)


@op("sq::elu_backward", doc="The gradient of elu.")
def elu_backward(
    g: Tensor, value: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool
) -> Tensor:
    """g, value float32 -> float32; value is elu's argument, or with is_result its result."""
    if is_result:
        below = g * ((value + alpha * scale) * input_scale)
    else:
        below = g * (exp.reference(value * input_scale) * (alpha * scale * input_scale))
    return torch.where(value > 0.0, g * scale, below)


for _entry in (
    gelu, gelu_backward, silu, silu_backward, hardswish, hardswish_backward, elu, elu_backward,
):  # fmt: skip
    like(_entry)
