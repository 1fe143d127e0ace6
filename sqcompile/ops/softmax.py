"""softmax and log_softmax over the last axis, and their gradients.

Sums are `ordered_sum`. A row of nothing but -inf, all of it masked, has the softmax 0: attention
reads nothing there.
"""

import torch
from torch import Tensor

from sqcompile.ops.functions import exp, like, log
from sqcompile.ops.quantize import limits
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


@op("sq::softmax_quantize", doc="softmax in integers, with a scale for every row.")
def softmax_quantize(x: Tensor, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    """x float32 (..., n) -> (q uint8, or int8 when signed, like x; scale float32 (..., 1)):
    q = round_half_even(e * qmax), scale = 1 / (sum(e) * qmax), e = exp(x - max(x)); both 0 where
    all of a row is -inf. Every row has its largest value at qmax, so no absmax is measured."""
    highest = limits(bits, signed)[1]
    e = exp.reference(_below_maximum(x))
    total = _row_sum(e)
    q = (e * float(highest)).round().to(torch.int8 if signed else torch.uint8)
    return q, torch.where(total == 0.0, 0.0, 1.0 / (total * float(highest)))


@softmax_quantize.meta
def _(x: Tensor, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    dtype = torch.int8 if signed else torch.uint8
    return x.new_empty(x.shape, dtype=dtype), x.new_empty((*x.shape[:-1], 1))


@op("sq::softmax_quantized_backward", doc="The gradient of softmax, from its integers.")
def softmax_quantized_backward(g: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    """g float32 (..., n), q int8 or uint8 like g, scale float32 (..., 1) of softmax_quantize ->
    float32: (g - mean) * (q * scale), mean = sum(g * q) / sum(q), 0 where sum(q) is: what all of a
    row's g have in common cancels, as it does in the exact gradient."""
    y = q.to(torch.float32)
    count = q.sum(-1, keepdim=True, dtype=torch.int64).to(torch.float32)
    mean = torch.where(count == 0.0, 0.0, _row_sum(g * y) / count)
    return (g - mean) * (y * scale)


@softmax_quantized_backward.meta
def _(g: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    return g.new_empty(g.shape)


for _entry in (softmax, softmax_backward, log_softmax, log_softmax_backward):
    like(_entry)
