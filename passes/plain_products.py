"""Take a product's epilogue off again, for targets whose machine only multiplies."""

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from sqcompile.ops import conv, pack, product, quantize
from sqcompile.passes.bound_accumulators import largest_accumulator
from sqcompile.passes.editing import (
    Editor,
    arguments,
    calls,
    copy_graph,
    finish,
    in_order,
    replace,
    shape,
    target_of,
)
from sqcompile.passes.signs import never_negative, sees_no_zeros_sign

aten = torch.ops.aten

PLAIN = {
    target_of(product.shift_matmul_dequantize): product.shift_matmul,
    target_of(product.shift_matmul_dequantize_absmax): product.shift_matmul,
    target_of(conv.conv_fprop_dequantize): conv.conv_fprop,
    target_of(conv.conv_fprop_sums): conv.conv_fprop,
    target_of(conv.conv_dgrad_dequantize): conv.conv_dgrad,
    target_of(conv.conv_wgrad_dequantize): conv.conv_wgrad,
}
"""The product in every op that is more."""


def plain_products(module: GraphModule) -> GraphModule:
    """After this pass every product gives its accumulators, and what the op did with them is ops
    behind it: scales, bias, ReLU, residual, mask, absmax, layout, sums of channels. The product
    keeps the op's name. Values do not change: it is the definition of these ops, but for a ReLU
    that is taken of the integers (`_of_integers`)."""
    graph = copy_graph(module)
    editor = Editor(graph)
    for node in calls(graph, *PLAIN):
        with editor.before(node):
            _open(editor, node)
    return finish(graph)


def _open(editor: Editor, node: Node) -> None:
    given, op = arguments(node), PLAIN[node.target]
    kept = {key: value for key, value in node.meta.items() if key != "val"}
    acc = editor.call(op, *in_order(op, given), like=node, **kept)
    acc.name, node.name = node.name, acc.name
    if node.target is target_of(conv.conv_fprop_sums):
        _items(node, acc, _sums(editor, acc))
        return
    if _of_integers(node, given):
        acc = editor.call(aten.relu.default, acc, like=node, name=f"{acc.name}_relu")
        given["relu"] = False
    y = _epilogue(editor, node, acc, given)
    placed = y
    if given.get("sizes") is not None:
        split = editor.call(aten.reshape.default, y, given["sizes"], like=node)
        placed = editor.call(aten.permute.default, split, given["order"], like=node)
    if node.target is target_of(product.shift_matmul_dequantize_absmax):
        axes = list(range(len(shape(y))))
        _items(node, placed, editor.call(quantize.absmax, y, None, axes, like=node))
    else:
        replace(node, placed)


def _of_integers(node: Node, given: dict[str, Any]) -> bool:
    """Is relu(acc * scales) = relu(acc) * scales, and nothing between them?

    Scales are not negative: where acc > 0, both are acc * scales, which is at least 0. Where
    acc = 0, both are 0. Where acc < 0, the right side is 0, and so is the left one, or -0 when
    acc * scales is too small for a float32. No reader may see that sign. Scales that overflow,
    beyond 2^128, make a NaN of a 0 on the right side.
    """
    if not given["relu"] or given["bias"] is not None or given["k_chunk"]:
        return False
    if any(given.get(name) is not None for name in ("residual", "mask")):
        return False
    if not all(map(never_negative, given["scales"])):
        return False
    values = [node]
    if node.target is target_of(product.shift_matmul_dequantize_absmax):
        values = [user for user in node.users if user.args[1] == 0]
    return all(sees_no_zeros_sign(user, one) for one in values for user in one.users)


def _sums(editor: Editor, acc: Node) -> Node:
    """The sums of channels; `meta` tells how large the integers are that they add."""
    meta = {}
    if "sq" in acc.meta:
        largest = largest_accumulator(acc)
        meta["range"] = (-largest, largest)
    name = f"{acc.name}_sums"
    return editor.call(aten.sum.dim_IntList, acc, [0, 1, 2], like=acc, name=name, **meta)


def _epilogue(editor: Editor, node: Node, acc: Node, given: dict[str, Any]) -> Node:
    """The float32 result before it is placed, in the order of `product.dequantized`."""
    y = editor.call(product.dequantize, acc, given["scales"], given["bias"], like=node)
    if given["relu"]:
        y = editor.call(aten.relu.default, y, like=node)
    if given.get("residual") is not None:
        y = editor.call(aten.add.Tensor, y, given["residual"], like=node)
    if given.get("mask") is not None:
        kept = editor.call(pack.unpack_mask, given["mask"], shape(y), like=node)
        y = editor.call(aten.where.ScalarOther, kept, y, 0.0, like=node)
    return y


def _items(node: Node, *results: Node) -> None:
    """Let values stand for the outputs of a node with several."""
    for user in list(node.users):
        assert user.target is operator.getitem
        index = user.args[1]
        assert isinstance(index, int)
        replace(user, results[index])
    node.graph.erase_node(node)
