"""L1 normalisation without quantisation: what capture puts in and the passes replace.

Any float dtype, so that float64 autograd can judge the gradient rule. None of these ops
reaches a target: the verifier refuses a graph that still has one.
"""

from typing import Any

import torch
from torch import Tensor

from sqcompile.ops.norm import GROUP_AXES, SIGMA_OVER_DEVIATION
from sqcompile.ops.table import op


def _axes(x: Tensor, per_channel: bool) -> list[int]:
    return list(range(x.dim() - 1)) if per_channel else [1]


def _normalize(
    x: Tensor, axes: list[int], eps: float, centred: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean = x.mean(axes, keepdim=True)
    if not centred:
        mean = torch.zeros_like(mean)
    sigma = (x - mean).abs().mean(axes, keepdim=True) * SIGMA_OVER_DEVIATION
    coefficient = 1.0 / (sigma + eps)
    return (x - mean) * coefficient, coefficient, mean, sigma


def _input_gradient(
    h: Tensor, xhat: Tensor, coefficient: Tensor, axes: list[int], centred: bool = True
) -> Tensor:
    sign = torch.sign(xhat)
    slope = SIGMA_OVER_DEVIATION * (h * xhat).mean(axes, keepdim=True)
    if centred:
        h = h - h.mean(axes, keepdim=True)
        sign = sign - sign.mean(axes, keepdim=True)
    return coefficient * (h - slope * sign)


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


@op("sq::layer_norm", doc="L1 layer or RMS norm in float, before quantisation.")
def layer_norm(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, centred: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """x float (M, D), gamma, beta (D,) -> (y, xhat (M, D), coefficient (M, 1)); without `centred`
    no mean is subtracted: an RMS norm."""
    xhat, coefficient, _, _ = _normalize(x, _axes(x, False), eps, centred)
    y = xhat.clone() if gamma is None else xhat * gamma
    return y if beta is None else y + beta, xhat, coefficient


@layer_norm.meta
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty((x.shape[0], 1))


@op("sq::layer_norm_backward", doc="Gradients of sq::layer_norm.")
def layer_norm_backward(
    g: Tensor, xhat: Tensor, coefficient: Tensor, gamma: Tensor | None, centred: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """g, xhat float (M, D), coefficient (M, 1), gamma (D,) -> (dx, dgamma (D,), dbeta (D,))."""
    h = g if gamma is None else g * gamma
    return _input_gradient(h, xhat, coefficient, [1], centred), (g * xhat).sum(0), g.sum(0)


@layer_norm_backward.meta
def _(g: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    features = (g.shape[1],)
    return g.new_empty(g.shape), g.new_empty(features), g.new_empty(features)


def _grouped(x: Tensor, groups: int) -> Tensor:
    """(N, *, C) as (N, P, G, K): pixels, groups, channels of a group."""
    return x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)


@op("sq::group_norm", doc="L1 group norm in float, before quantisation.")
def group_norm(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """x float (N, *, C), gamma, beta (C,) -> (y (N, *, C), xhat (N, P, G, K), coefficient
    (N, 1, G, 1)) with P pixels of G groups of K channels."""
    xhat, coefficient, _, _ = _normalize(_grouped(x, groups), GROUP_AXES, eps)
    y = xhat.clone().reshape(x.shape)
    y = y if gamma is None else y * gamma
    return y if beta is None else y + beta, xhat, coefficient


@group_norm.meta
def _(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    y = x.new_empty(x.shape)
    xhat = x.new_empty(_grouped(y, groups).shape)
    return y, xhat, x.new_empty((x.shape[0], 1, groups, 1))


@op("sq::group_norm_backward", doc="Gradients of sq::group_norm.")
def group_norm_backward(
    g: Tensor, xhat: Tensor, coefficient: Tensor, gamma: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """g float (N, *, C), xhat (N, P, G, K), coefficient (N, 1, G, 1), gamma (C,) -> (dx (N, *, C),
    dgamma (C,), dbeta (C,))."""
    axes = _axes(g, True)
    h = (g if gamma is None else g * gamma).reshape(xhat.shape)
    dx = _input_gradient(h, xhat, coefficient, GROUP_AXES)
    return dx.reshape(g.shape), (g * xhat.reshape(g.shape)).sum(axes), g.sum(axes)


@group_norm_backward.meta
def _(g: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    channels = (g.shape[-1],)
    return g.new_empty(g.shape), g.new_empty(channels), g.new_empty(channels)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    gamma, beta = inputs[1], inputs[2]
    ctx.save_for_backward(output[1], output[2], gamma)
    ctx.has_gamma, ctx.has_beta = gamma is not None, beta is not None


def _keep_centred(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _keep(ctx, inputs, output)
    ctx.centred = inputs[4]


def _gradients(ctx: Any, rule: Any, *given: Any) -> tuple[Tensor | None, ...]:
    g, *rest = given
    xhat, coefficient, gamma = ctx.saved_tensors
    dx, dgamma, dbeta = rule(g, xhat, coefficient, gamma, *rest)
    return dx, dgamma if ctx.has_gamma else None, dbeta if ctx.has_beta else None, None


@batch_norm.gradient(_keep)
def _(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, batch_norm_backward, g)


@layer_norm.gradient(_keep_centred)
def _(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_gradients(ctx, layer_norm_backward, g, ctx.centred), None


@group_norm.gradient(_keep)
def _(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_gradients(ctx, group_norm_backward, g), None
