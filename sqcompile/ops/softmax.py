"""softmax and log_softmax over the last axis, and their gradients.

Sums are `ordered_sum`. A row of nothing but -inf, all of it masked, has the softmax 0: attention
reads nothing there.
"""

import torch
from torch import Tensor

from sqcompile.ops.functions import exp, like, log
from sqcompile.ops.reduce import ordered_sum
from sqcompile.ops.table import op


def _below_maximum(x: Tensor) -> Tensor:
    """x minus the largest of its row, or minus 0 in a row of nothing but -inf."""
    if not x.shape[-1]:
        return x
    largest = x.amax(-1, keepdim=True)
    return x - torch.where(largest == -torch.inf, 0.0, largest)


def _row_sum(x: Tensor) -> Tensor:
    return ordered_sum.reference(x, [x.dim() - 1], True)


@op("sq::softmax", doc="exp(x) by row, scaled to the sum 1.")
def softmax(x: Tensor) -> Tensor:
    """x float32 (..., n) -> float32: e * (1 / sum(e)), e = exp(x - max(x)); 0 where all is -inf."""
    e = exp.reference(_below_maximum(x))
    total = _row_sum(e)
    inverse = torch.where(total == 0.0, 0.0, 1.0 / total)
    return e * inverse


@op("sq::softmax_backward", doc="The gradient of softmax.")
def softmax_backward(g: Tensor, y: Tensor) -> Tensor:
    """g, y float32 (..., n), y the result of softmax -> float32: (g - sum(g * y)) * y."""
    return (g - _row_sum(g * y)) * y


@op("sq::log_softmax", doc="The logarithm of softmax.")
def log_softmax(x: Tensor) -> Tensor:
    """x float32 (..., n) -> float32: (x - max(x)) - log(sum(exp(x - max(x))))."""
    below = _below_maximum(x)
    return below - log.reference(_row_sum(exp.reference(below)))


@op("sq::log_softmax_backward", doc="The gradient of log_softmax.")
def log_softmax_backward(g: Tensor, y: Tensor) -> Tensor:
    """g, y float32 (..., n), y the result of log_softmax -> float32: g - exp(y) * sum(g)."""
    return g - exp.reference(y) * _row_sum(g)


for _entry in (softmax, softmax_backward, log_softmax, log_softmax_backward):
    like(_entry)
