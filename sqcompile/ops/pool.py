"""2-D pooling of images (N, H, W, C): maximum with the winning tap, average, their backward in tap
order.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from sqcompile.ops.table import op

MAX_TAPS = 256


def pooled_size(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> int:
    """Length of a pooled axis, by torch's rule: no window starts in the padding behind."""
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    pooled = (-(-span // stride) if ceil_mode else span // stride) + 1
    if ceil_mode and (pooled - 1) * stride >= size + padding:
        pooled -= 1
    return pooled


def _padded_size(
    pooled: int, size: int, kernel: int, stride: int, padding: int, dilation: int
) -> int:
    return max((pooled - 1) * stride + dilation * (kernel - 1) + 1, size + padding)


def _taps(kernel: Sequence[int]) -> list[tuple[int, int]]:
    return [(kh, kw) for kh in range(kernel[0]) for kw in range(kernel[1])]


def _window(
    padded: Tensor,
    tap: tuple[int, int],
    pooled: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The view of `padded` that holds element `tap` of every window."""
    top, left = tap[0] * dilation[0], tap[1] * dilation[1]
    bottom = top + (pooled[0] - 1) * stride[0] + 1
    right = left + (pooled[1] - 1) * stride[1] + 1
    return padded[:, top : bottom : stride[0], left : right : stride[1]]


def _pad(
    x: Tensor,
    value: float,
    pooled: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    ends = [
        _padded_size(pooled[i], x.shape[1 + i], kernel[i], stride[i], padding[i], dilation[i])
        - x.shape[1 + i]
        for i in range(2)
    ]
    return pad(x, (0, 0, padding[1], ends[1], padding[0], ends[0]), value=value)


def _scatter(
    parts: list[Tensor],
    input_shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Add one (N, PH, PW, C) part per tap to where its windows read, in tap order."""
    pooled = parts[0].shape[1:3]
    dx = _pad(parts[0].new_zeros(list(input_shape)), 0.0, pooled, kernel, stride, padding, dilation)
    for tap, part in zip(_taps(kernel), parts, strict=True):
        _window(dx, tap, pooled, stride, dilation).add_(part)
    height, width = input_shape[1:3]
    return dx[:, padding[0] : padding[0] + height, padding[1] : padding[1] + width].clone()


@op("sq::max_pool2d", doc="2-D max pooling that keeps the tap of the maximum.")
def max_pool2d(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[Tensor, Tensor]:
    """x float32 (N, H, W, C), windows of at most 256 taps -> (y (N, PH, PW, C), tap uint8 = kh *
    KW + kw of the first maximum).

    Raises ValueError for a larger window, whose tap would not fit a byte.
    """
    if kernel[0] * kernel[1] > MAX_TAPS:
        raise ValueError(f"a max pooling window has at most {MAX_TAPS} taps, got {list(kernel)}")
    pooled = [
        pooled_size(x.shape[1 + i], kernel[i], stride[i], padding[i], dilation[i], ceil_mode)
        for i in range(2)
    ]
    padded = _pad(x, float("-inf"), pooled, kernel, stride, padding, dilation)
    best = x.new_full((x.shape[0], *pooled, x.shape[3]), float("-inf"))
    tap = torch.zeros_like(best, dtype=torch.uint8)
    for index, place in enumerate(_taps(kernel)):
        value = _window(padded, place, pooled, stride, dilation)
        better = value > best
        best = torch.where(better, value, best)
        tap = torch.where(better, torch.full_like(tap, index), tap)
    return best, tap


@max_pool2d.meta
def _(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[Tensor, Tensor]:
    pooled = [
        pooled_size(x.shape[1 + i], kernel[i], stride[i], padding[i], dilation[i], ceil_mode)
        for i in range(2)
    ]
    shape = (x.shape[0], *pooled, x.shape[3])
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.uint8)


@op("sq::max_pool2d_backward", doc="Gradient of max pooling, windows added in tap order.")
def max_pool2d_backward(
    g: Tensor,
    tap: Tensor,
    input_shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """g float32, tap uint8 (N, PH, PW, C) -> dx float32 of input_shape; an element in several
    windows sums their gradients by ascending tap, from +0.0."""
    zero = torch.zeros_like(g)
    parts = [torch.where(tap == index, g, zero) for index in range(kernel[0] * kernel[1])]
    return _scatter(parts, input_shape, kernel, stride, padding, dilation)


@max_pool2d_backward.meta
def _(g: Tensor, tap: Tensor, input_shape: Sequence[int], *_: Any) -> Tensor:
    return g.new_empty(input_shape)


@op("sq::avg_pool2d", doc="2-D average pooling, taps added in order, padding counted.")
def avg_pool2d(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """x float32 (N, H, W, C) -> y: the taps summed in ascending order from +0.0, then divided by
    the window's size."""
    pooled = [
        pooled_size(x.shape[1 + i], kernel[i], stride[i], padding[i], 1, False) for i in range(2)
    ]
    padded = _pad(x, 0.0, pooled, kernel, stride, padding, [1, 1])
    total = x.new_zeros((x.shape[0], *pooled, x.shape[3]))
    for place in _taps(kernel):
        total = total + _window(padded, place, pooled, stride, [1, 1])
    return total / float(kernel[0] * kernel[1])


@avg_pool2d.meta
def _(x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    pooled = [
        pooled_size(x.shape[1 + i], kernel[i], stride[i], padding[i], 1, False) for i in range(2)
    ]
    return x.new_empty((x.shape[0], *pooled, x.shape[3]))


@op("sq::avg_pool2d_backward", doc="Gradient of average pooling, windows added in tap order.")
def avg_pool2d_backward(
    g: Tensor,
    input_shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """g float32 (N, PH, PW, C) -> dx float32 of input_shape: g / window size, added by ascending
    tap from +0.0."""
    share = g / float(kernel[0] * kernel[1])
    parts = [share] * (kernel[0] * kernel[1])
    return _scatter(parts, input_shape, kernel, stride, padding, [1, 1])


@avg_pool2d_backward.meta
def _(g: Tensor, input_shape: Sequence[int], *_: Any) -> Tensor:
    return g.new_empty(input_shape)
