"""Let a product write float32 itself: scales, bias and ReLU in its epilogue."""

from collections.abc import Iterator

import torch
from torch.fx import GraphModule, Node

from sqcompile.ops import conv, product, quantize
from sqcompile.passes.editing import (
    SAME_ORDER,
    Editor,
    arguments,
    calls,
    copy_graph,
    finish,
    is_call,
    replace,
    shape,
    target_of,
)

aten = torch.ops.aten

FUSED = {
    target_of(product.shift_matmul): product.shift_matmul_dequantize,
    target_of(conv.conv_fprop): conv.conv_fprop_dequantize,
    target_of(conv.conv_dgrad): conv.conv_dgrad_dequantize,
    target_of(conv.conv_wgrad): conv.conv_wgrad_dequantize,
}


MEASURED = {
    target_of(product.shift_matmul_dequantize): product.shift_matmul_dequantize_absmax,
}
"""The form of a fused product that gives the absmax of its result as well."""


def fuse_epilogues(module: GraphModule) -> GraphModule:
    """After this pass a product whose accumulators only one dequantise reads is one op with it,
    and with the ReLU behind it when that is the only reader; a matrix product whose result is
    measured whole by one absmax, views do not count, measures it itself. Values do not change."""
    graph = copy_graph(module)
    editor = Editor(graph)
    for node in calls(graph, product.dequantize):
        acc, scales, bias = node.args
        assert isinstance(acc, Node)
        if acc.target not in FUSED or len(acc.users) > 1:
            continue
        relu = _only_relu(node)
        last = relu or node
        with editor.before(last):
            fused = editor.call(
                FUSED[acc.target],
                *acc.args,
                scales,
                bias,
                relu is not None,
                like=acc,
                sq=acc.meta["sq"],
                name=acc.meta["sq"].role,
            )
        replace(last, fused)
        if relu is not None:
            graph.graph.erase_node(node)
        graph.graph.erase_node(acc)
        measure(editor, fused)
    return finish(graph)


def measure(editor: Editor, fused: Node) -> None:
    """Take the absmax over all of a product's result from the product."""
    given = arguments(fused)
    absmaxes = list(_absmaxes(fused))
    if fused.target not in MEASURED or not absmaxes or given.get("residual") or given.get("mask"):
        return
    measured = target_of(MEASURED[fused.target])
    assert isinstance(measured, torch._ops.OpOverload)
    args = [given[argument.name] for argument in measured._schema.arguments]
    with editor.before(fused):
        both = editor.call(measured, *args, like=fused, sq=fused.meta["sq"], name=fused.name)
        y, r = editor.item(both, 0), editor.item(both, 1)
    for one in absmaxes:
        with editor.before(fused):
            seen = r if shape(r) == shape(one) else _viewed(editor, r, one)
        replace(one, seen)
    replace(fused, y)


def _viewed(editor: Editor, r: Node, one: Node) -> Node:
    return editor.call(aten.view.default, r, shape(one), like=one)


def _absmaxes(node: Node) -> Iterator[Node]:
    """What measures all of a value, itself or behind views."""
    whole = (node, None, list(range(len(shape(node)))))
    for user in node.users:
        if is_call(user, quantize.absmax) and user.args == whole:
            yield user
        elif is_call(user, *SAME_ORDER):
            yield from _absmaxes(user)


def _only_relu(node: Node) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and is_call(users[0], aten.relu.default) else None
