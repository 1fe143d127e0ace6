"""Norm calls of a Dynamo graph (batch, layer, RMS, group, instance) -> L1 norms, before autograd
sees them.

Each norm stays one node of the joint graph with a backward of its own, instead of the dozens
of nodes that decomposing it would leave.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule

from sqcompile.ops.norm import ema
from sqcompile.ops.norm_float import batch_norm, group_norm, layer_norm


def l1_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.batch_norm with L1 statistics: sigma = sqrt(pi/2) * mean |x - mean|.

    running_var holds the moving average of sigma squared. In eval mode y = (x - mean) * (weight
    / (sqrt(var) + eps)) + bias.
    """
    if not training and running_mean is not None and running_var is not None:
        return _with_running(x, running_mean, running_var, weight, bias, eps)
    y, _, _, mean, var = batch_norm(x.movedim(1, -1), weight, bias, eps)
    if running_mean is not None and running_var is not None:
        running_mean.copy_(ema(running_mean, mean.detach(), momentum))
        running_var.copy_(ema(running_var, var.detach(), momentum))
    return y.movedim(-1, 1).contiguous()  # as torch's: what follows must not see other strides


def _with_running(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    spread = var.sqrt() + eps
    factor = spread.reciprocal() if weight is None else weight / spread
    y = (x.movedim(1, -1) - mean) * factor
    return (y if bias is None else y + bias).movedim(-1, 1).contiguous()


def l1_layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """F.layer_norm with L1 statistics over the last len(normalized_shape) axes."""
    return _of_rows(x, normalized_shape, weight, bias, eps, True)


def l1_rms_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """F.rms_norm with sigma = sqrt(pi/2) * mean |x|, which eps joins; by default it is the
    smallest step at 1, as in torch."""
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return _of_rows(x, normalized_shape, weight, None, eps, False)


def _of_rows(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centred: bool,
) -> Tensor:
    features = prod(normalized_shape)
    gamma = None if weight is None else weight.reshape(features)
    beta = None if bias is None else bias.reshape(features)
    return layer_norm(x.reshape(-1, features), gamma, beta, eps, centred)[0].reshape(x.shape)


def l1_group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """F.group_norm with L1 statistics of every sample and group of channels."""
    y, _, _ = group_norm(x.movedim(1, -1), weight, bias, num_groups, eps)
    return y.movedim(-1, 1).contiguous()


def l1_instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.instance_norm as a group norm with one channel a group; with running statistics it stays
    PyTorch's, which no target runs."""
    if running_mean is not None or running_var is not None:
        return F.instance_norm(
            x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )
    return l1_group_norm(x, x.shape[1], weight, bias, eps)


SWAPS: dict[Any, Callable[..., Tensor]] = {
    F.batch_norm: l1_batch_norm,
    F.layer_norm: l1_layer_norm,
    F.group_norm: l1_group_norm,
    F.instance_norm: l1_instance_norm,
    torch.rms_norm: l1_rms_norm,  # what F.rms_norm is traced as
}


def swap_norms(graph: GraphModule) -> None:
    """Retarget every norm call of a Dynamo graph, in place; arguments stay as they are."""
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target in SWAPS:
            node.target = SWAPS[node.target]
    graph.recompile()


__all__ = [
    "SWAPS",
    "l1_batch_norm",
    "l1_group_norm",
    "l1_instance_norm",
    "l1_layer_norm",
    "l1_rms_norm",
    "swap_norms",
]
