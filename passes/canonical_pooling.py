"""Pooling in the forms of canonicalize: a table of rewrites."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.fx import Node

from sqcompile.ops import pool
from sqcompile.ops import resample_table as tables
from sqcompile.ops.resample import resample
from sqcompile.passes.channels_last import TO_LAST, permuted_first, permuted_last
from sqcompile.passes.editing import Editor, arguments, is_call, replace, shape, value
from sqcompile.passes.fold_constants import constant

aten = torch.ops.aten


RANK = 4


def _pair(values: Any, default: Any = None) -> list[int]:
    chosen = list(values) or list(default)
    return [int(v) for v in (chosen * 2 if len(chosen) == 1 else chosen)]


def _max_pool(editor: Editor, node: Node) -> None:
    geometry = _max_geometry(node)
    if geometry is None:
        return
    x = permuted_last(editor, arguments(node)["self"], node)
    pooled = editor.call(pool.max_pool2d, x, *geometry[:4], geometry[4], like=node)
    tap = editor.item(pooled, 1, name="tap")
    for item in list(node.users):
        if item.args[1] == 0:
            replace(item, permuted_first(editor, editor.item(pooled, 0), node))
            continue
        for user in list(item.users):
            if is_call(user, *_MAX_BACKWARD):
                with editor.before(user):
                    _max_pool_backward(editor, user, tap, geometry[:4])


_MAX_BACKWARD = (
    aten.max_pool2d_with_indices_backward.default,
    aten.adaptive_max_pool2d_backward.default,
)
MaxGeometry = tuple[list[int], list[int], list[int], list[int], bool]


def _max_geometry(node: Node) -> MaxGeometry | None:
    """(kernel, stride, padding, dilation, ceil mode) of windows that a byte can count."""
    given = arguments(node)
    if value(given["self"]).dim() != RANK:
        return None
    if is_call(node, aten.adaptive_max_pool2d.default):
        window = _window(shape(given["self"]), list(node.meta["val"][0].shape))
        if window is None or prod(window) > pool.MAX_TAPS:
            return None
        return window, window, [0, 0], [1, 1], False
    kernel = _pair(given["kernel_size"])
    if prod(kernel) > pool.MAX_TAPS:
        return None
    stride = _pair(given["stride"], kernel)
    return kernel, stride, _pair(given["padding"]), _pair(given["dilation"]), given["ceil_mode"]


def _max_pool_backward(editor: Editor, node: Node, tap: Node, geometry: tuple[Any, ...]) -> None:
    g = permuted_last(editor, arguments(node)["grad_output"], node)
    sizes = [shape(node)[axis] for axis in TO_LAST]
    new = editor.call(pool.max_pool2d_backward, g, tap, sizes, *geometry, like=node)
    replace(node, permuted_first(editor, new, node))


def _average_geometry(node: Node) -> tuple[list[int], list[int], list[int]] | None:
    """(kernel, stride, padding) of windows that are all divided by their size."""
    given = arguments(node)
    padding = _pair(given["padding"])
    counted = given["count_include_pad"] or padding == [0, 0]
    if given["ceil_mode"] or not counted or given["divisor_override"]:
        return None
    kernel = _pair(given["kernel_size"])
    return kernel, _pair(given["stride"], kernel), padding


def _average_matrices(node: Node, pooled: list[int]) -> list[tables.Matrix]:
    """What an element counts in a window, along height and width."""
    given = arguments(node)
    kernel, padding = _pair(given["kernel_size"]), _pair(given["padding"])
    stride = _pair(given["stride"], kernel)
    divisors = [given["divisor_override"], 1] if given["divisor_override"] else [None, None]
    counted = given["count_include_pad"]
    return [
        tables.pooling(
            size, pooled[axis], kernel[axis], stride[axis], padding[axis], counted, divisors[axis]
        )
        for axis, size in enumerate(shape(given["self"])[2:])
    ]


def _resampled(editor: Editor, node: Node, x: Node, matrices: list[tables.Matrix]) -> None:
    """x with a table along its height, then one along its width."""
    for axis, matrix in enumerate(matrices, start=2):
        table = [constant(editor, tensor, node) for tensor in tables.table(matrix)]
        x = editor.call(resample, x, axis, *table, None, None, like=node)
    replace(node, x)


def _avg_pool(editor: Editor, node: Node) -> None:
    if value(node).dim() != RANK:
        return
    x = arguments(node)["self"]
    geometry = _average_geometry(node)
    if geometry is None:
        _resampled(editor, node, x, _average_matrices(node, shape(node)[2:]))
    else:
        _even(editor, node, x, *geometry)


def _even(editor: Editor, node: Node, x: Node, *geometry: list[int]) -> None:
    """Windows of one size, all divided by it."""
    last = editor.call(pool.avg_pool2d, permuted_last(editor, x, node), *geometry, like=node)
    replace(node, permuted_first(editor, last, node))


def _avg_pool_backward(editor: Editor, node: Node) -> None:
    if value(node).dim() != RANK:
        return
    g = arguments(node)["grad_output"]
    geometry = _average_geometry(node)
    if geometry is None:
        matrices = _average_matrices(node, shape(g)[2:])
        _resampled(editor, node, g, [matrix.T for matrix in matrices])
    else:
        _even_backward(editor, node, g, *geometry)


def _even_backward(editor: Editor, node: Node, g: Node, *geometry: list[int]) -> None:
    last = permuted_last(editor, g, node)
    sizes = [shape(node)[axis] for axis in TO_LAST]
    dx = editor.call(pool.avg_pool2d_backward, last, sizes, *geometry, like=node)
    replace(node, permuted_first(editor, dx, node))


def _adaptive(editor: Editor, node: Node) -> None:
    """Windows of one size where the result's sizes divide the image's, tables elsewhere."""
    if value(node).dim() != RANK:
        return
    x = arguments(node)["self"]
    window = _window(shape(x), shape(node))
    if window is None:
        _resampled(editor, node, x, _adaptive_matrices(shape(x), shape(node)))
    else:
        _even(editor, node, x, window, window, [0, 0])


def _adaptive_backward(editor: Editor, node: Node) -> None:
    if value(node).dim() != RANK:
        return
    g = arguments(node)["grad_output"]
    window = _window(shape(node), shape(g))
    if window is None:
        matrices = _adaptive_matrices(shape(node), shape(g))
        _resampled(editor, node, g, [matrix.T for matrix in matrices])
    else:
        _even_backward(editor, node, g, window, window, [0, 0])


def _window(sizes: list[int], pooled: list[int]) -> list[int] | None:
    """The windows of adaptive pooling, (N, C, H, W) both, where all are of one size."""
    both = list(zip(sizes[2:], pooled[2:], strict=True))
    return [a // b for a, b in both] if all(a % b == 0 for a, b in both) else None


def _adaptive_matrices(sizes: list[int], pooled: list[int]) -> list[tables.Matrix]:
    return [tables.adaptive(a, b) for a, b in zip(sizes[2:], pooled[2:], strict=True)]


POOLING: dict[object, Callable[[Editor, Node], None]] = {
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.adaptive_max_pool2d.default: _max_pool,
    aten.avg_pool2d.default: _avg_pool,
    aten.avg_pool2d_backward.default: _avg_pool_backward,
    aten._adaptive_avg_pool2d.default: _adaptive,
    aten._adaptive_avg_pool2d_backward.default: _adaptive_backward,
}
"""Pooling that has no rule here (windows above 256 taps, adaptive maxima of uneven windows) stays
as it is."""
