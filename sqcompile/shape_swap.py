"""Interpolation and embedding bags of a Dynamo graph -> what the graphs have kernels for, before
autograd sees them: torch's own forms decompose into index arithmetic.

What has no such form is left as it is, and reported before lowering.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule

from sqcompile.ops import resample_table as tables
from sqcompile.ops.resample import resample

Sizes = int | Sequence[int] | None
Factors = float | Sequence[float] | None


def interpolate(
    input: Tensor,
    size: Sizes = None,
    scale_factor: Factors = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """F.interpolate as one sq::resample an axis: nearest, nearest-exact, linear and bilinear."""
    axes = input.dim() - 2
    if antialias or mode not in _MODES.get(axes, ()) or input.numel() == 0:
        return F.interpolate(
            input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias
        )
    factors = _each(scale_factor, axes)
    sizes = _each(size, axes)
    y = input
    for axis in range(axes):
        elements, factor = input.shape[2 + axis], factors[axis]
        results = sizes[axis] if factor is None else int(elements * factor)
        used = None if recompute_scale_factor else factor
        if mode.startswith("nearest"):
            matrix = tables.nearest(elements, results, used, mode == "nearest-exact")
        else:
            matrix = tables.linear(elements, results, used, bool(align_corners))
        y = resample(y, 2 + axis, *tables.table(matrix), *tables.table(matrix.T))
    return y


_MODES: dict[int, tuple[str, ...]] = {
    1: ("nearest", "nearest-exact", "linear"),
    2: ("nearest", "nearest-exact", "bilinear"),
}


def _each(value: Any, axes: int) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value] * axes


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """F.embedding_bag of bags of one length, sums and means: an embedding and a sum."""
    special = scale_grad_by_freq or sparse or mode == "max"
    given = any(value is not None for value in (offsets, max_norm, padding_idx))
    if special or given or input.dim() != 2:
        return F.embedding_bag(
            input,
            weight,
            offsets,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            mode,
            sparse,
            per_sample_weights,
            include_last_offset,
            padding_idx,
        )
    rows = F.embedding(input, weight)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    return rows.sum(1) if mode == "sum" else rows.mean(1)


SWAPS: dict[Any, Callable[..., Tensor]] = {
    F.interpolate: interpolate,
    F.embedding_bag: embedding_bag,
}


def swap_shapes(graph: GraphModule) -> None:
    """Retarget these calls of a Dynamo graph, in place; arguments stay as they are."""
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target in SWAPS:
            node.target = SWAPS[node.target]
    graph.recompile()


__all__ = ["SWAPS", "embedding_bag", "interpolate", "swap_shapes"]
