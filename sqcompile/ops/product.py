"""Integer matrix products with group shifts, and the way back to float.

References multiply in float64, exact because every partial sum is below 2^53 (`exact` raises
otherwise). Accumulators are int32 (`accumulator` raises when one does not fit); with `k_chunk`
they are int32 over a chunk of the reduction and int64 over the chunks, which never changes a
value.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sqcompile.ops.pack import unpack_mask
from sqcompile.ops.quantize import absmax
from sqcompile.ops.table import op

EXACT_FLOAT64 = 2**53
INT32_LIMIT = 2**31


def shifted(q: Tensor, exponent: Tensor | None, groups: int) -> Tensor:
    """q << (groups - 1 - exponent) as float64; exponent broadcasts to q (None: no shift)."""
    wide = q.to(torch.int64)
    if exponent is not None:
        wide = wide * (1 << (groups - 1 - exponent.to(torch.int64)))
    return wide.to(torch.float64)


def exact(a: Tensor, b: Tensor, length: int) -> None:
    """Raise OverflowError unless `length` products of a and b add up below 2^53."""
    if a.numel() == 0 or b.numel() == 0:
        return
    bound = float(a.abs().max()) * float(b.abs().max()) * length
    if bound >= EXACT_FLOAT64:
        raise OverflowError(f"partial sums up to {bound:.3g} are not exact in float64")


def accumulator(total: Tensor, k_chunk: int) -> Tensor:
    """float64 integers -> int32, or int64 when the reduction is split.

    Raises OverflowError for a value outside int32 without a split: a pass proves that there is
    none, and conversion would give an arbitrary integer.
    """
    if not k_chunk and total.numel() and float(total.abs().max()) >= INT32_LIMIT:
        raise OverflowError("a product leaves its int32 accumulator: split the reduction (k_chunk)")
    return total.to(accumulator_dtype(k_chunk))


def accumulator_dtype(k_chunk: int) -> torch.dtype:
    """The dtype of a product's accumulator."""
    return torch.int64 if k_chunk else torch.int32


def product_shape(a: Tensor, b: Tensor, transpose_a: bool, transpose_b: bool) -> list[int]:
    """Shape of a matrix product of a and b as stored."""
    rows = a.shape[-1] if transpose_a else a.shape[-2]
    columns = b.shape[-2] if transpose_b else b.shape[-1]
    return [*a.shape[:-2], rows, columns]


@op("sq::shift_matmul", doc="Integer matrix product whose reduction crosses shift groups.")
def shift_matmul(
    a: Tensor,
    b: Tensor,
    exponent: Tensor | None,
    groups: int,
    transpose_a: bool,
    transpose_b: bool,
    k_chunk: int,
) -> Tensor:
    """a, b int8/uint8, 2-D or 3-D with equal batch; exponent int8, a's rank, varying along the
    reduced axis -> int32, or int64 when k_chunk > 0 (partial sums over k_chunk values of k).

    acc[m, n] = sum_k (a[m, k] << (groups - 1 - exponent[k])) * b[k, n]
    """
    left, right = shifted(a, exponent, groups), b.to(torch.float64)
    left = left.transpose(-1, -2) if transpose_a else left
    right = right.transpose(-1, -2) if transpose_b else right
    exact(left, right, left.shape[-1])
    return accumulator(left @ right, k_chunk)


@shift_matmul.meta
def _(
    a: Tensor,
    b: Tensor,
    exponent: Tensor | None,
    groups: int,
    transpose_a: bool,
    transpose_b: bool,
    k_chunk: int,
) -> Tensor:
    shape = product_shape(a, b, transpose_a, transpose_b)
    return a.new_empty(shape, dtype=accumulator_dtype(k_chunk))


def dequantized(
    acc: Tensor,
    scales: Sequence[Tensor],
    bias: Tensor | None,
    relu: bool,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The definition of every epilogue: one rounding to float32, then each scale, bias, ReLU,
    plus the residual float32 of acc's shape, and 0 where the packed mask (`pack_mask`) is false."""
    y = acc.to(torch.float32)
    for scale in scales:
        y = y * scale
    if bias is not None:
        y = y + bias
    if relu:
        y = torch.relu(y)
    if residual is not None:
        y = y + residual
    if mask is not None:
        y = torch.where(unpack_mask.reference(mask, list(y.shape)), y, 0.0)
    return y


@op("sq::dequantize", doc="Accumulators back to float32.")
def dequantize(acc: Tensor, scales: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """acc int32/int64, scales and bias float32 broadcastable to acc -> float32.

    float32(acc), one rounding, times the scales from left to right, then plus the bias.
    """
    return dequantized(acc, scales, bias, relu=False)


@dequantize.meta
def _(acc: Tensor, scales: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    return acc.new_empty(acc.shape, dtype=torch.float32)


def channel_sums(acc: Tensor) -> Tensor:
    """int32/int64 (*, C) -> int64 (C,): the sum of every channel, as a batch norm begins."""
    return acc.to(torch.int64).sum(list(range(acc.dim() - 1)))


def placed(y: Tensor, sizes: Sequence[int] | None, order: Sequence[int] | None) -> Tensor:
    """A result in the layout that its reader wants: split into `sizes`, its axes in `order`."""
    if sizes is None or order is None:
        return y
    return y.reshape(list(sizes)).permute(list(order)).contiguous()


def placed_shape(
    shape: Sequence[int], sizes: Sequence[int] | None, order: Sequence[int] | None
) -> list[int]:
    """The shape of `placed`, of a result of this shape."""
    return list(shape) if sizes is None or order is None else [sizes[axis] for axis in order]


@op("sq::shift_matmul_dequantize", doc="shift_matmul with its epilogue: scales, bias, ReLU.")
def shift_matmul_dequantize(
    a: Tensor,
    b: Tensor,
    exponent: Tensor | None,
    groups: int,
    transpose_a: bool,
    transpose_b: bool,
    k_chunk: int,
    scales: Sequence[Tensor],
    bias: Tensor | None,
    relu: bool,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    sizes: Sequence[int] | None = None,
    order: Sequence[int] | None = None,
) -> Tensor:
    """shift_matmul, then dequantize, then max(., 0) when relu -> float32; for a gradient, plus
    residual, float32 of the product's shape, and 0 where the mask, as pack_mask leaves it, is
    false. With sizes and order the result is placed: its axes are split into `sizes` and
    permuted."""
    acc = shift_matmul.reference(a, b, exponent, groups, transpose_a, transpose_b, k_chunk)
    return placed(dequantized(acc, scales, bias, relu, residual, mask), sizes, order)


@shift_matmul_dequantize.meta
def _(
    a: Tensor,
    b: Tensor,
    exponent: Tensor | None,
    groups: int,
    transpose_a: bool,
    transpose_b: bool,
    k_chunk: int,
    scales: Sequence[Tensor],
    bias: Tensor | None,
    relu: bool,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    sizes: Sequence[int] | None = None,
    order: Sequence[int] | None = None,
) -> Tensor:
    shape = placed_shape(product_shape(a, b, transpose_a, transpose_b), sizes, order)
    return a.new_empty(shape, dtype=torch.float32)


@op(
    "sq::shift_matmul_dequantize_absmax",
    doc="shift_matmul_dequantize and the largest magnitude of its result.",
)
def shift_matmul_dequantize_absmax(
    a: Tensor,
    b: Tensor,
    exponent: Tensor | None,
    groups: int,
    transpose_a: bool,
    transpose_b: bool,
    k_chunk: int,
    scales: Sequence[Tensor],
    bias: Tensor | None,
    relu: bool,
    sizes: Sequence[int] | None = None,
    order: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """shift_matmul_dequantize -> (y, r), r = absmax of the product over all its axes, which are
    kept as size 1: what the quantiser of y reads, wherever y is placed."""
    product = (a, b, exponent, groups, transpose_a, transpose_b, k_chunk)
    y = shift_matmul_dequantize.reference(*product, scales, bias, relu)
    return placed(y, sizes, order), absmax.reference(y, None, list(range(y.dim())))


@shift_matmul_dequantize_absmax.meta
def _(
    a: Tensor,
    b: Tensor,
    exponent: Tensor | None,
    groups: int,
    transpose_a: bool,
    transpose_b: bool,
    k_chunk: int,
    scales: Sequence[Tensor],
    bias: Tensor | None,
    relu: bool,
    sizes: Sequence[int] | None = None,
    order: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    shape = product_shape(a, b, transpose_a, transpose_b)
    y = a.new_empty(placed_shape(shape, sizes, order), dtype=torch.float32)
    return y, y.new_empty([1] * len(shape))
