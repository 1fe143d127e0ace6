"""Splits, repetitions and selections in the forms of canonicalize: a table of rewrites."""

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from sqcompile.ops.lookup import take, take_backward
from sqcompile.ops.resample import resample
from sqcompile.passes.editing import Editor, arguments, is_call, replace, shape, value
from sqcompile.passes.fold_constants import constant

aten = torch.ops.aten


def _parts(editor: Editor, node: Node, part: Callable[[int], Node]) -> None:
    """Each item of a call that gives several tensors is a call of its own."""
    for item in list(node.users):
        index = item.args[1]
        assert isinstance(index, int)
        replace(item, part(index))


def _split(editor: Editor, node: Node) -> None:
    """The parts of an axis: slices."""
    given = arguments(node)
    x, axis = given["self"], given["dim"] % len(shape(given["self"]))
    sizes = [part.shape[axis] for part in node.meta["val"]]

    def part(index: int) -> Node:
        start = sum(sizes[:index])
        return editor.call(aten.slice.Tensor, x, axis, start, start + sizes[index], like=node)

    _parts(editor, node, part)


def _unbind(editor: Editor, node: Node) -> None:
    given = arguments(node)
    x, axis = given["self"], given["dim"]
    _parts(editor, node, lambda i: editor.call(aten.select.int, x, axis, i, like=node))


def _repeat(editor: Editor, node: Node) -> None:
    """The axes expanded in front of those that are repeated."""
    given = arguments(node)
    x, repeats = given["self"], given["repeats"]
    sizes = [1] * (len(repeats) - len(shape(x))) + shape(x)
    apart = [n for size in sizes for n in (1, size)]
    wide = [n for pair in zip(repeats, sizes, strict=True) for n in pair]
    view = editor.call(aten.view.default, x, apart, like=node)
    full = editor.call(aten.expand.default, view, wide, like=node)
    replace(node, editor.call(aten.reshape.default, full, shape(node), like=node))


def _roll(editor: Editor, node: Node) -> None:
    """For every axis its end, then its beginning."""
    given = arguments(node)
    x, shifts, axes = given["self"], given["shifts"], given["dims"]
    if not axes:
        x = editor.call(aten.view.default, x, [value(x).numel()], like=node)
        axes = [0]
    for shift, axis in zip(shifts, axes, strict=True):
        axis %= len(shape(x))
        size = shape(x)[axis]
        if shift := shift % size:
            ends = ((size - shift, size), (0, size - shift))
            halves = [editor.call(aten.slice.Tensor, x, axis, *end, like=node) for end in ends]
            x = editor.call(aten.cat.default, halves, axis, like=node)
    if shape(x) != shape(node):
        x = editor.call(aten.view.default, x, shape(node), like=node)
    replace(node, x)


def _embedding(editor: Editor, node: Node) -> None:
    """Rows of the table; the gradient of padding is the gradient's affair."""
    given = arguments(node)
    if not given["sparse"] and not given["scale_grad_by_freq"]:
        _taken(editor, node, given["weight"], given["indices"], 0)


def _taken(editor: Editor, node: Node, x: Node, index: Node, axis: int) -> None:
    flat = _flat(editor, index, node)
    rows = editor.call(take, x, flat, axis, like=node)
    replace(node, _viewed(editor, rows, shape(node), node))


def _flat(editor: Editor, index: Node, like: Node) -> Node:
    return _viewed(editor, index, [value(index).numel()], like)


def _viewed(editor: Editor, x: Node, sizes: list[int], like: Node) -> Node:
    return x if shape(x) == sizes else editor.call(aten.reshape.default, x, sizes, like=like)


def _embedding_backward(editor: Editor, node: Node) -> None:
    given = arguments(node)
    if given["scale_grad_by_freq"]:
        return
    size = given["num_weights"]
    padding = given["padding_idx"]
    rows = [value(given["indices"]).numel(), shape(node)[1]]
    g = _viewed(editor, given["grad_output"], rows, node)
    index = _flat(editor, given["indices"], node)
    replace(node, editor.call(take_backward, g, index, 0, size, padding, like=node))


def _index_select(editor: Editor, node: Node) -> None:
    given = arguments(node)
    x, rank = given["self"], len(shape(given["self"]))
    if rank:
        _taken(editor, node, x, given["index"], given["dim"] % rank)


def _single_index(indices: Any, x: Node) -> tuple[int, Node] | None:
    """(axis, index) where one axis is indexed by integers."""
    there = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if len(there) != 1 or value(there[0][1]).dtype not in (torch.int64, torch.int32):
        return None
    return there[0]


def _index(editor: Editor, node: Node) -> None:
    """x[..., index, ...] with one tensor of integers; an axis of it may become several."""
    given = arguments(node)
    found = _single_index(given["indices"], given["self"])
    if found is not None:
        axis, index = found
        counted = _counted(editor, index, shape(given["self"])[axis], node)
        _taken(editor, node, given["self"], counted, axis)


def _counted(editor: Editor, index: Node, size: int, like: Node) -> Node:
    """An index whose negative numbers count from the end."""
    negative = editor.call(aten.lt.Scalar, index, 0, like=like)
    back = editor.call(aten.add.Tensor, index, size, like=like)
    return editor.call(aten.where.self, negative, back, index, like=like)


def _index_put(editor: Editor, node: Node) -> None:
    """Values added to zeros by number: the gradient of `_index`."""
    given = arguments(node)
    found = _single_index(given["indices"], given["self"])
    if found is None or not given["accumulate"] or not _zeros(given["self"]):
        return
    axis, index = found
    counted = _counted(editor, index, shape(node)[axis], node)
    _added(editor, node, given["values"], counted, axis)


def _index_add(editor: Editor, node: Node) -> None:
    """Values added to zeros by number: the gradient of `_index_select`."""
    given = arguments(node)
    if given["alpha"] == 1 and _zeros(given["self"]):
        _added(editor, node, given["source"], given["index"], given["dim"] % len(shape(node)))


def _added(editor: Editor, node: Node, g: Node, index: Node, axis: int) -> None:
    if value(g).dtype != torch.float32:
        return
    sizes = [*shape(node)[:axis], value(index).numel(), *shape(node)[axis + 1 :]]
    if value(g).numel() != torch.Size(sizes).numel():
        return
    g = _viewed(editor, g, sizes, node)
    flat = _flat(editor, index, node)
    size = shape(node)[axis]
    replace(node, editor.call(take_backward, g, flat, axis, size, -1, like=node))


def _edge_padding(editor: Editor, node: Node) -> None:
    """Padding from the image itself: its lines by number, then its columns."""
    x = arguments(node)["self"]
    for axis, numbers in _edge_numbers(node, shape(x)):
        x = editor.call(take, x, constant(editor, numbers, node), axis, like=node)
    replace(node, x)


def _edge_padding_backward(editor: Editor, node: Node) -> None:
    g, sizes = arguments(node)["grad_output"], shape(node)
    for axis, numbers in _edge_numbers(node, sizes):
        index = constant(editor, numbers, node)
        g = editor.call(take_backward, g, index, axis, sizes[axis], -1, like=node)
    replace(node, g)


def _edge_numbers(node: Node, sizes: list[int]) -> list[tuple[int, torch.Tensor]]:
    """(axis, which of its elements stand along it) of padding by reflection or replication."""
    widths = arguments(node)["padding"]
    found = []
    for i in range(len(widths) // 2):
        axis = len(sizes) - 1 - i
        last = sizes[axis] - 1
        at = torch.arange(-widths[2 * i], sizes[axis] + widths[2 * i + 1])
        if "reflection" in str(node.target):
            at = last - (last - at.abs()).abs()
        found.append((axis, at.clamp(0, last)))
    return found


def _zeros(node: Node) -> bool:
    return is_call(node, aten.full.default) and arguments(node)["fill_value"] == 0


def _pixel_shuffle(editor: Editor, node: Node) -> None:
    """(..., C r r, H, W) -> (..., C, H r, W r)."""
    given = arguments(node)
    x, r = given["self"], given["upscale_factor"]
    *heads, channels, height, width = shape(x)
    _moved(editor, node, x, [*heads, channels // r**2, r, r, height, width], (0, 3, 1, 4, 2))


def _pixel_unshuffle(editor: Editor, node: Node) -> None:
    """(..., C, H r, W r) -> (..., C r r, H, W)."""
    given = arguments(node)
    x, r = given["self"], given["downscale_factor"]
    *heads, channels, height, width = shape(x)
    _moved(editor, node, x, [*heads, channels, height // r, r, width // r, r], (0, 2, 4, 1, 3))


def _channel_shuffle(editor: Editor, node: Node) -> None:
    """The channels of all groups, in turn."""
    given = arguments(node)
    x, groups = given["self"], given["groups"]
    n, channels, *sizes = shape(x)
    apart = [n, groups, channels // groups, *sizes]
    view = editor.call(aten.reshape.default, x, apart, like=node)
    axes = [0, 2, 1, *range(3, len(apart))]
    turned = editor.call(aten.permute.default, view, axes, like=node)
    replace(node, editor.call(aten.reshape.default, turned, shape(node), like=node))


def _moved(editor: Editor, node: Node, x: Node, apart: list[int], order: tuple[int, ...]) -> None:
    """The last five axes of `apart` in another order, then the node's shape."""
    heads = len(apart) - len(order)
    view = editor.call(aten.reshape.default, x, apart, like=node)
    axes = [*range(heads), *(heads + axis for axis in order)]
    turned = editor.call(aten.permute.default, view, axes, like=node)
    replace(node, editor.call(aten.reshape.default, turned, shape(node), like=node))


def _prelu(editor: Editor, node: Node) -> None:
    x, weight = node.args
    assert isinstance(x, Node)
    positive = editor.call(aten.gt.Scalar, x, 0, like=node, name="positive")
    below = editor.call(aten.mul.Tensor, weight, x, like=node)
    replace(node, editor.call(aten.where.self, positive, x, below, like=node))


def _prelu_backward(editor: Editor, node: Node) -> None:
    """Of the input, and of the weight at every element."""
    g, x, weight = node.args
    assert isinstance(x, Node)
    with editor.after(x):
        positive = editor.call(aten.gt.Scalar, x, 0, like=node, name="positive")

    def part(index: int) -> Node:
        if index == 0:
            below = editor.call(aten.mul.Tensor, weight, g, like=node)
            return editor.call(aten.where.self, positive, g, below, like=node)
        product = editor.call(aten.mul.Tensor, x, g, like=node)
        negative = editor.call(aten.logical_not.default, positive, like=node, backward=True)
        return editor.call(aten.where.ScalarOther, negative, product, 0.0, like=node)

    _parts(editor, node, part)


def _resample(editor: Editor, node: Node) -> None:
    """Autograd is over: the transposed table is not read."""
    if arguments(node)["back_first"] is not None:
        replace(node, editor.call(resample, *node.args[:4], None, None, like=node))


SHAPES: dict[object, Callable[[Editor, Node], None]] = {
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.unbind.int: _unbind,
    aten.repeat.default: _repeat,
    aten.roll.default: _roll,
    aten.embedding.default: _embedding,
    aten.embedding_dense_backward.default: _embedding_backward,
    aten.index_select.default: _index_select,
    aten.index_add.default: _index_add,
    aten.index.Tensor: _index,
    aten.index_put.default: _index_put,
    **dict.fromkeys(
        (
            aten.reflection_pad1d.default,
            aten.reflection_pad2d.default,
            aten.replication_pad1d.default,
            aten.replication_pad2d.default,
        ),
        _edge_padding,
    ),
    **dict.fromkeys(
        (
            aten.reflection_pad1d_backward.default,
            aten.reflection_pad2d_backward.default,
            aten.replication_pad1d_backward.default,
            aten.replication_pad2d_backward.default,
        ),
        _edge_padding_backward,
    ),
    aten.pixel_shuffle.default: _pixel_shuffle,
    aten.pixel_unshuffle.default: _pixel_unshuffle,
    aten.channel_shuffle.default: _channel_shuffle,
    aten._prelu_kernel.default: _prelu,
    aten._prelu_kernel_backward.default: _prelu_backward,
    resample: _resample,
}
"""What has no rule here (sparse embeddings, masks as indices) stays as it is."""
