"""Products before quantisation: the canonical form that capture's products are rewritten to.

Operands are root tensors (no transposed views) and, in a backward product, the gradient comes
first; images are channels last, as in `sqcompile.ops.conv`. None of these ops reaches a target:
the verifier refuses a graph that still has one.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import conv2d
from torch.nn.grad import conv2d_input, conv2d_weight

from sqcompile.ops.conv import (
    channels_first,
    channels_first_shape,
    channels_last,
    output_shape,
)
from sqcompile.ops.product import product_shape
from sqcompile.ops.table import op


@op("sq::matmul", doc="Float matrix product on root tensors, before quantisation.")
def matmul(
    a: Tensor, b: Tensor, bias: Tensor | None, transpose_a: bool, transpose_b: bool
) -> Tensor:
    """a, b float32, 2-D or 3-D with equal batch; bias float32 (N,) or None -> float32."""
    left = a.transpose(-1, -2) if transpose_a else a
    right = b.transpose(-1, -2) if transpose_b else b
    product = left @ right
    return product if bias is None else product + bias


@matmul.meta
def _(a: Tensor, b: Tensor, bias: Tensor | None, transpose_a: bool, transpose_b: bool) -> Tensor:
    return a.new_empty(product_shape(a, b, transpose_a, transpose_b))


@op("sq::conv", doc="Float convolution, before quantisation.")
def conv(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """x float32 (N, H, W, C), w float32 (O, C / groups, KH, KW), bias (O,) -> float32."""
    return channels_last(
        conv2d(channels_first(x), w, bias, list(stride), list(padding), list(dilation), groups)
    )


@conv.meta
def _(x: Tensor, w: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    return x.new_empty(output_shape(x.shape, w.shape, *geometry[:3]))


@op("sq::conv_input_grad", doc="Input gradient of a float convolution, before quantisation.")
def conv_input_grad(
    g: Tensor,
    w: Tensor,
    input_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """g float32 (N, OH, OW, O), w float32 (O, C / groups, KH, KW) -> float32 of input_shape."""
    return channels_last(
        conv2d_input(
            channels_first_shape(input_shape),
            w,
            channels_first(g),
            list(stride),
            list(padding),
            list(dilation),
            groups,
        )
    )


@conv_input_grad.meta
def _(g: Tensor, w: Tensor, input_shape: Sequence[int], *_: Any) -> Tensor:
    return g.new_empty(input_shape)


@op("sq::conv_weight_grad", doc="Weight gradient of a float convolution, before quantisation.")
def conv_weight_grad(
    g: Tensor,
    x: Tensor,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """g float32 (N, OH, OW, O), x float32 (N, H, W, C) -> float32 of weight_shape."""
    return conv2d_weight(
        channels_first(x),
        list(weight_shape),
        channels_first(g),
        list(stride),
        list(padding),
        list(dilation),
        groups,
    )


@conv_weight_grad.meta
def _(g: Tensor, x: Tensor, weight_shape: Sequence[int], *_: Any) -> Tensor:
    return g.new_empty(weight_shape)
