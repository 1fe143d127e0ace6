"""Integer 2-D convolution: fprop, dgrad and wgrad, each with and without its epilogue.

Images are (N, H, W, C), channels last: a dot product over channels reads memory in order, and a
scale or shift per channel is a vector. Weights are OIHW. Stride, zero padding, dilation and
channel groups as in torch.nn.functional.conv2d. Definitions run in float64, exact below 2^53.
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
    channel_sums,
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
    """(N, H, W, C) and (O, C / groups, KH, KW) -> (N, OH, OW, O)."""
    spatial = [
        (x[1 + i] + 2 * padding[i] - dilation[i] * (w[2 + i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]
    return [x[0], *spatial, w[0]]


def channels_first(x: Tensor) -> Tensor:
    """(N, H, W, C) -> (N, C, H, W), a view."""
    return x.permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H, W, C), a view."""
    return x.permute(0, 2, 3, 1)


def channels_first_shape(shape: Sequence[int]) -> list[int]:
    """(N, H, W, C) -> [N, C, H, W]."""
    return [shape[0], shape[3], shape[1], shape[2]]


@op("sq::conv_fprop", doc="Integer convolution, forward.")
def conv_fprop(
    x: Tensor,
    w: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    k_chunk: int,
    exponent: Tensor | None = None,
    shift_groups: int = 1,
) -> Tensor:
    """x int8/uint8 (N, H, W, C), w int8 (O, C / groups, KH, KW), exponent int8 (1, 1, 1, C) ->
    int32 (N, OH, OW, O), int64 when k_chunk > 0 (partial sums over k_chunk input channels of a
    group). x is shifted left by shift_groups - 1 - exponent."""
    left, right = shifted(x, exponent, shift_groups), w.to(torch.float64)
    exact(left, right, w[0].numel())
    total = conv2d(
        channels_first(left), right, None, list(stride), list(padding), list(dilation), groups
    )
    return accumulator(channels_last(total), k_chunk)


@conv_fprop.meta
def _(
    x: Tensor,
    w: Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    k_chunk: int,
    *_: Any,
) -> Tensor:
    shape = output_shape(x.shape, w.shape, stride, padding, dilation)
    return x.new_empty(shape, dtype=accumulator_dtype(k_chunk))


@op("sq::conv_fprop_sums", doc="conv_fprop and the sum of every channel of its result.")
def conv_fprop_sums(
    x: Tensor,
    w: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    k_chunk: int,
    exponent: Tensor | None = None,
    shift_groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """conv_fprop -> (acc, int64 (O,) sums of acc over N, OH and OW)."""
    window = (stride, padding, dilation, groups)
    acc = conv_fprop.reference(x, w, *window, k_chunk, exponent, shift_groups)
    return acc, channel_sums(acc)


@conv_fprop_sums.meta
def _(
    x: Tensor,
    w: Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    k_chunk: int,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    shape = output_shape(x.shape, w.shape, stride, padding, dilation)
    acc = x.new_empty(shape, dtype=accumulator_dtype(k_chunk))
    return acc, x.new_empty((w.shape[0],), dtype=torch.int64)


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
    """g int8 (N, OH, OW, O), w int8 (O, C / groups, KH, KW), exponent int8 (1, 1, 1, O) ->
    int32 of input_shape (N, H, W, C), int64 when k_chunk > 0 (partial sums over k_chunk
    output channels of a group). g is shifted left by shift_groups - 1 - exponent."""
    left, right = shifted(g, exponent, shift_groups), w.to(torch.float64)
    exact(left, right, w.numel() // w.shape[1] // groups)
    total = conv2d_input(
        channels_first_shape(input_shape),
        right,
        channels_first(left),
        list(stride),
        list(padding),
        list(dilation),
        groups,
    )
    return accumulator(channels_last(total), k_chunk)


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
    """g int8 (N, OH, OW, O), x int8/uint8 (N, H, W, C), exponent int8 (N, OH, OW, 1) -> int32 of
    weight_shape, int64 when k_chunk > 0 (partial sums over k_chunk rows n * OH + oh of g). g is
    shifted left by shift_groups - 1 - exponent."""
    left, right = shifted(g, exponent, shift_groups), x.to(torch.float64)
    exact(left, right, g.numel() // g.shape[3])
    total = conv2d_weight(
        channels_first(right),
        list(weight_shape),
        channels_first(left),
        list(stride),
        list(padding),
        list(dilation),
        groups,
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
    exponent: Tensor | None = None,
    shift_groups: int = 1,
) -> Tensor:
    """conv_fprop, then dequantize, then max(., 0) when relu -> float32 (N, OH, OW, O)."""
    window = (stride, padding, dilation, groups)
    acc = conv_fprop.reference(x, w, *window, k_chunk, exponent, shift_groups)
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
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """conv_dgrad, then dequantize, then max(., 0) when relu -> float32 of input_shape; plus
    residual, float32 of input_shape, and 0 where the mask, as pack_mask leaves it, is false."""
    acc = conv_dgrad.reference(
        g, w, exponent, shift_groups, input_shape, stride, padding, dilation, groups, k_chunk
    )
    return dequantized(acc, scales, bias, relu, residual, mask)


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
