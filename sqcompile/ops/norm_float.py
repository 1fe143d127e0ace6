"""L1 normalisation without quantisation: what capture puts in and the passes replace.

Any float dtype, so that float64 autograd can judge the gradient rule. None of these ops
reaches a target: the verifier refuses a graph that still has one.
"""

from typing import Any

import torch
from torch import Tensor

from sqcompile.ops.norm import SIGMA_OVER_DEVIATION
from sqcompile.ops.table import op


def _axes(x: Tensor, per_channel: bool) -> list[int]:
    return list(range(x.dim() - 1)) if per_channel else [1]


def _normalize(x: Tensor, axes: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean = x.mean(axes, keepdim=True)
    sigma = (x - mean).abs().mean(axes, keepdim=True) * SIGMA_OVER_DEVIATION
    coefficient = 1.0 / (sigma + eps)
    return (x - mean) * coefficient, coefficient, mean, sigma


def _input_gradient(h: Tensor, xhat: Tensor, coefficient: Tensor, axes: list[int]) -> Tensor:
    sign = torch.sign(xhat)
    slope = SIGMA_OVER_DEVIATION * (h * xhat).mean(axes, keepdim=True)
    centred = h - h.mean(axes, keepdim=True)
    return coefficient * (centred - slope * (sign - sign.mean(axes, keepdim=True)))


@op("sq::batch_norm", doc="L1 batch norm in float, before quantisation.")
def batch_norm(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x float (*, C), gamma, beta (C,) -> (y, xhat, coefficient (C,), mean (C,), var (C,))."""
    xhat, coefficient, mean, sigma = _normalize(x, _axes(x, True), eps)
    y = xhat.clone() if gamma is None else xhat * gamma
    y = y if beta is None else y + beta
    return y, xhat, coefficient.reshape(-1), mean.reshape(-1), (sigma * sigma).reshape(-1)


@batch_norm.meta
def _(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    channels = (x.shape[-1],)
    full = (x.new_empty(x.shape), x.new_empty(x.shape))
    return (*full, x.new_empty(channels), x.new_empty(channels), x.new_empty(channels))


@op("sq::batch_norm_backward", doc="Gradients of sq::batch_norm.")
def batch_norm_backward(
    g: Tensor, xhat: Tensor, coefficient: Tensor, gamma: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """g, xhat float (*, C), coefficient, gamma (C,) -> (dx, dgamma (C,), dbeta (C,))."""
    axes = _axes(g, True)
    h = g if gamma is None else g * gamma
    dx = _input_gradient(h, xhat, coefficient, axes)
    return dx, (g * xhat).sum(axes), g.sum(axes)


@batch_norm_backward.meta
def _(
    g: Tensor, xhat: Tensor, coefficient: Tensor, gamma: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    channels = (g.shape[-1],)
    return g.new_empty(g.shape), g.new_empty(channels), g.new_empty(channels)


@op("sq::layer_norm", doc="L1 layer norm in float, before quantisation.")
def layer_norm(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """x float (M, D), gamma, beta (D,) -> (y, xhat (M, D), coefficient (M, 1))."""
    xhat, coefficient, _, _ = _normalize(x, _axes(x, False), eps)
    y = xhat.clone() if gamma is None else xhat * gamma
    return y if beta is None else y + beta, xhat, coefficient


@layer_norm.meta
def _(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty((x.shape[0], 1))


@op("sq::layer_norm_backward", doc="Gradients of sq::layer_norm.")
def layer_norm_backward(
    g: Tensor, xhat: Tensor, coefficient: Tensor, gamma: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """g, xhat float (M, D), coefficient (M, 1), gamma (D,) -> (dx, dgamma (D,), dbeta (D,))."""
    h = g if gamma is None else g * gamma
    return _input_gradient(h, xhat, coefficient, [1]), (g * xhat).sum(0), g.sum(0)


@layer_norm_backward.meta
def _(
    g: Tensor, xhat: Tensor, coefficient: Tensor, gamma: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    features = (g.shape[1],)
    return g.new_empty(g.shape), g.new_empty(features), g.new_empty(features)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    gamma, beta = inputs[1], inputs[2]
    ctx.save_for_backward(output[1], output[2], gamma)
    ctx.has_gamma, ctx.has_beta = gamma is not None, beta is not None


def _gradients(ctx: Any, rule: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    xhat, coefficient, gamma = ctx.saved_tensors
    dx, dgamma, dbeta = rule(g, xhat, coefficient, gamma)
    return dx, dgamma if ctx.has_gamma else None, dbeta if ctx.has_beta else None, None


@batch_norm.gradient(_keep)
def _(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, batch_norm_backward, g)


@layer_norm.gradient(_keep)
def _(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, layer_norm_backward, g)
