"""Integer 2-D convolution: fprop, dgrad and wgrad, each with and without its epilogue.

NCHW activations, OIHW weights; stride, zero padding, dilation and channel groups as in
torch.nn.functional.conv2d. Definitions run in float64, exact below 2^53.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d
from torch.nn.grad import conv2d_input, conv2d_weight

from sqcompile.ops.product import (
    accumulator,
    accumulator_dtype,
    dequantized,
    exact,
    shifted,
)
from sqcompile.ops.table import op


def output_shape(
    x: Sequence[int],
    w: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """(N, C, H, W) and (O, C / groups, KH, KW) -> (N, O, OH, OW)."""
    spatial = [
        (x[2 + i] + 2 * padding[i] - dilation[i] * (w[2 + i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]
    return [x[0], w[0], *spatial]


@op("sq::conv_fprop", doc="Integer convolution, forward.")
def conv_fprop(
    x: Tensor,
    w: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    k_chunk: int,
) -> Tensor:
    """x int8/uint8 (N, C, H, W), w int8 (O, C / groups, KH, KW) -> int32 (N, O, OH, OW), int64
    when k_chunk > 0 (partial sums over k_chunk input channels of a group)."""
    left, right = x.to(torch.float64), w.to(torch.float64)
    exact(left, right, w[0].numel())
    total = conv2d(left, right, None, list(stride), list(padding), list(dilation), groups)
    return accumulator(total, k_chunk)


@conv_fprop.meta
def _(x: Tensor, w: Tensor, *geometry: Any) -> Tensor:
    *windows, _, k_chunk = geometry
    return x.new_empty(output_shape(x.shape, w.shape, *windows), dtype=accumulator_dtype(k_chunk))


@op("sq::conv_dgrad", doc="Integer convolution, gradient of the input.")
def conv_dgrad(
    g: Tensor,
    w: Tensor,
    exponent: Tensor | None,
    shift_groups: int,
    input_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    k_chunk: int,
) -> Tensor:
    """g int8 (N, O, OH, OW), w int8 (O, C / groups, KH, KW), exponent int8 (1, O, 1, 1) ->
    int32 of input_shape, int64 when k_chunk > 0 (partial sums over k_chunk output channels of a
    group). g is shifted left by shift_groups - 1 - exponent."""
    left, right = shifted(g, exponent, shift_groups), w.to(torch.float64)
    exact(left, right, w.numel() // w.shape[1] // groups)
    total = conv2d_input(
        list(input_shape), right, left, list(stride), list(padding), list(dilation), groups
    )
    return accumulator(total, k_chunk)


@conv_dgrad.meta
def _(
    g: Tensor, w: Tensor, exponent: Tensor | None, shift_groups: int, shape: Any, *rest: Any
) -> Tensor:
    return g.new_empty(shape, dtype=accumulator_dtype(rest[-1]))


@op("sq::conv_wgrad", doc="Integer convolution, gradient of the weight.")
def conv_wgrad(
    g: Tensor,
    x: Tensor,
    exponent: Tensor | None,
    shift_groups: int,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    k_chunk: int,
) -> Tensor:
    """g int8 (N, O, OH, OW), x int8/uint8 (N, C, H, W), exponent int8 (N, 1, OH, OW) -> int32 of
    weight_shape, int64 when k_chunk > 0 (partial sums over k_chunk rows n * OH + oh of g). g is
    shifted left by shift_groups - 1 - exponent."""
    left, right = shifted(g, exponent, shift_groups), x.to(torch.float64)
    exact(left, right, g.numel() // g.shape[1])
    total = conv2d_weight(
        right, list(weight_shape), left, list(stride), list(padding), list(dilation), groups
    )
    return accumulator(total, k_chunk)


@conv_wgrad.meta
def _(
    g: Tensor, x: Tensor, exponent: Tensor | None, shift_groups: int, shape: Any, *rest: Any
) -> Tensor:
    return g.new_empty(shape, dtype=accumulator_dtype(rest[-1]))


@op("sq::conv_fprop_dequantize", doc="conv_fprop with its epilogue: scales, bias, ReLU.")
def conv_fprop_dequantize(
    x: Tensor,
    w: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    k_chunk: int,
    scales: Sequence[Tensor],
    bias: Tensor | None,
    relu: bool,
) -> Tensor:
    """conv_fprop, then dequantize, then max(., 0) when relu -> float32 (N, O, OH, OW)."""
    acc = conv_fprop.reference(x, w, stride, padding, dilation, groups, k_chunk)
    return dequantized(acc, scales, bias, relu)


@conv_fprop_dequantize.meta
def _(x: Tensor, w: Tensor, stride: Any, padding: Any, dilation: Any, *_: Any) -> Tensor:
    shape = output_shape(x.shape, w.shape, stride, padding, dilation)
    return x.new_empty(shape, dtype=torch.float32)


@op("sq::conv_dgrad_dequantize", doc="conv_dgrad with its epilogue: scales.")
def conv_dgrad_dequantize(
    g: Tensor,
    w: Tensor,
    exponent: Tensor | None,
    shift_groups: int,
    input_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    k_chunk: int,
    scales: Sequence[Tensor],
    bias: Tensor | None,
    relu: bool,
) -> Tensor:
    """conv_dgrad, then dequantize, then max(., 0) when relu -> float32 of input_shape."""
    acc = conv_dgrad.reference(
        g, w, exponent, shift_groups, input_shape, stride, padding, dilation, groups, k_chunk
    )
    return dequantized(acc, scales, bias, relu)


@conv_dgrad_dequantize.meta
def _(
    g: Tensor, w: Tensor, exponent: Tensor | None, shift_groups: int, shape: Any, *_: Any
) -> Tensor:
    return g.new_empty(shape, dtype=torch.float32)


@op("sq::conv_wgrad_dequantize", doc="conv_wgrad with its epilogue: scales.")
def conv_wgrad_dequantize(
    g: Tensor,
    x: Tensor,
    exponent: Tensor | None,
    shift_groups: int,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    k_chunk: int,
    scales: Sequence[Tensor],
    bias: Tensor | None,
    relu: bool,
) -> Tensor:
    """conv_wgrad, then dequantize, then max(., 0) when relu -> float32 of weight_shape."""
    acc = conv_wgrad.reference(
        g, x, exponent, shift_groups, weight_shape, stride, padding, dilation, groups, k_chunk
    )
    return dequantized(acc, scales, bias, relu)


@conv_wgrad_dequantize.meta
def _(
    g: Tensor, x: Tensor, exponent: Tensor | None, shift_groups: int, shape: Any, *_: Any
) -> Tensor:
    return g.new_empty(shape, dtype=torch.float32)
