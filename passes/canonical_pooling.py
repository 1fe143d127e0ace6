"""Pooling in the forms of canonicalize: a table of rewrites."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.fx import Node

from sqcompile.ops import pool
from sqcompile.passes.channels_last import TO_LAST, permuted_first, permuted_last
from sqcompile.passes.editing import Editor, arguments, is_call, replace, shape, value

aten = torch.ops.aten


def _last_shape(node: Node) -> list[int]:
    """The shape of an image (N, C, H, W), channels last."""
    return [shape(node)[axis] for axis in TO_LAST]


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
            if is_call(user, aten.max_pool2d_with_indices_backward.default):
                with editor.before(user):
                    _max_pool_backward(editor, user, tap)


def _max_geometry(node: Node) -> tuple[list[int], list[int], list[int], list[int], bool] | None:
    given = arguments(node)
    kernel = _pair(given["kernel_size"])
    if prod(kernel) > 256 or value(given["self"]).dim() != 4:
        return None
    stride = _pair(given["stride"], kernel)
    return kernel, stride, _pair(given["padding"]), _pair(given["dilation"]), given["ceil_mode"]


def _max_pool_backward(editor: Editor, node: Node, tap: Node) -> None:
    given = arguments(node)
    geometry = _max_geometry(node)
    assert geometry is not None
    new = editor.call(
        pool.max_pool2d_backward,
        permuted_last(editor, given["grad_output"], node),
        tap,
        _last_shape(given["self"]),
        *geometry[:4],
        like=node,
    )
    replace(node, permuted_first(editor, new, node))


def _average_geometry(node: Node) -> tuple[list[int], list[int], list[int]] | None:
    given = arguments(node)
    padding = _pair(given["padding"])
    counted = given["count_include_pad"] or padding == [0, 0]
    if given["ceil_mode"] or not counted or given["divisor_override"]:
        return None
    if value(given["self"]).dim() != 4:
        return None
    kernel = _pair(given["kernel_size"])
    return kernel, _pair(given["stride"], kernel), padding


def _avg_pool(editor: Editor, node: Node) -> None:
    geometry = _average_geometry(node)
    if geometry is not None:
        x = permuted_last(editor, arguments(node)["self"], node)
        y = editor.call(pool.avg_pool2d, x, *geometry, like=node)
        replace(node, permuted_first(editor, y, node))


def _avg_pool_backward(editor: Editor, node: Node) -> None:
    geometry = _average_geometry(node)
    if geometry is not None:
        given = arguments(node)
        new = editor.call(
            pool.avg_pool2d_backward,
            permuted_last(editor, given["grad_output"], node),
            _last_shape(given["self"]),
            *geometry,
            like=node,
        )
        replace(node, permuted_first(editor, new, node))


POOLING: dict[object, Callable[[Editor, Node], None]] = {
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.avg_pool2d.default: _avg_pool,
    aten.avg_pool2d_backward.default: _avg_pool_backward,
}
"""Pooling that has no rule here (ceil mode of averages, windows above 256 taps) stays as it is."""
