"""Let a product write float32 itself: scales, bias and ReLU in its epilogue."""

import torch
from torch.fx import GraphModule, Node

from sqcompile.ops import conv, product, quantize
from sqcompile.passes.collapse_layouts import LAYOUTS, multiplier
from sqcompile.passes.editing import (
    Editor,
    arguments,
    calls,
    copy_graph,
    finish,
    in_order,
    is_call,
    replace,
    shape,
    target_of,
    value,
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
    measured whole by one absmax, whatever its layout there, measures it itself. Values do not
    change, but that a number that multiplies the result multiplies a scale."""
    graph = copy_graph(module)
    editor = Editor(graph)
    for node in calls(graph, product.dequantize):
        _multiply_scale(editor, node)
        acc, scales, bias = node.args
        assert isinstance(acc, Node)
        if acc.target not in FUSED or len(acc.users) > 1:
            continue
        relu = _only_relu(node)
        last = relu or node
        op = FUSED[acc.target]
        epilogue = {"scales": scales, "bias": bias, "relu": relu is not None}
        with editor.before(last):
            fused = editor.call(
                op,
                *in_order(op, {**arguments(acc), **epilogue}),
                like=acc,
                sq=acc.meta["sq"],
                name=acc.meta["sq"].role,
            )
        replace(last, fused)
        if relu is not None:
            graph.graph.erase_node(node)
        graph.graph.erase_node(acc)
        _measure(editor, fused)
    return finish(graph)


def _measure(editor: Editor, fused: Node) -> None:
    """Take the absmax over all of a product's result from the product."""
    absmaxes = _whole_absmaxes(fused)
    if fused.target not in MEASURED or not absmaxes:
        return
    with editor.before(fused):
        both = editor.call(
            MEASURED[fused.target], *fused.args, like=fused, sq=fused.meta["sq"], name=fused.name
        )
        y, r = editor.item(both, 0), editor.item(both, 1)
    for one in absmaxes:
        with editor.before(one):
            same = shape(one) == shape(r)
            found = r if same else editor.call(aten.view.default, r, shape(one), like=one)
        replace(one, found)
    replace(fused, y)


def _whole_absmaxes(x: Node) -> list[Node]:
    """The absmaxes of all elements of a value, or of the same ones in another order."""
    found = []
    for user in x.users:
        if is_call(user, quantize.absmax) and user.args == (x, None, list(range(len(shape(x))))):
            found.append(user)
        elif user.target in LAYOUTS:
            found += _whole_absmaxes(user)
    return found


def _multiply_scale(editor: Editor, node: Node) -> None:
    """A number that multiplies what a dequantise gives multiplies its smallest scale."""
    acc, scales, bias = node.args
    users = list(node.users)
    number = multiplier(users[0]) if len(users) == 1 else None
    if bias is not None or number is None:
        return
    assert isinstance(scales, (list, tuple))
    smallest = min(scales, key=lambda one: value(one).numel())
    assert isinstance(smallest, Node)
    with editor.before(node):
        scaled = editor.call(aten.mul.Tensor, smallest, number, like=smallest)
    node.args = acc, [scaled if one is smallest else one for one in scales], bias
    replace(users[0], node)


def _only_relu(node: Node) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and is_call(users[0], aten.relu.default) else None
