"""Let a product add the residual to its result, and take the mask of a ReLU's gradient."""

import torch
from torch.fx import GraphModule, Node

from sqcompile.ops import conv, pack, product
from sqcompile.passes.editing import (
    Editor,
    arguments,
    calls,
    copy_graph,
    finish,
    is_call,
    replace,
    set_arguments,
    shape,
)

aten = torch.ops.aten

PRODUCTS = (conv.conv_dgrad_dequantize, product.shift_matmul_dequantize)
LANES = 16
"""A masked product has rows of a multiple of so many elements: kernels read bits by vectors."""


def fuse_tails(module: GraphModule) -> GraphModule:
    """After this pass (it needs what fuse_epilogues leaves) a matrix product or input gradient that
    is only added to a value made before it, or only kept where a packed mask is true, or both in
    this order, is one op with them; views between them do not count. Of two products that are
    added, the later one adds. Values do not change."""
    graph = copy_graph(module)
    editor = Editor(graph)
    for node in calls(graph, *PRODUCTS):
        _add(editor, node)
        _mask(node)
    return finish(graph)


def _behind_views(node: Node) -> tuple[Node, Node | None]:
    """(what stands for a value, its only reader): through views that nothing else reads."""
    users = list(node.users)
    if len(users) != 1:
        return node, None
    if is_call(users[0], aten.view.default, aten.reshape.default):
        return _behind_views(users[0])
    return node, users[0]


def _add(editor: Editor, node: Node) -> None:
    seen, add = _behind_views(node)
    if add is None or not is_call(add, aten.add.Tensor):
        return
    residual = next((n for n in add.args[:2] if n is not seen), None)
    if not isinstance(residual, Node) or shape(residual) != shape(seen) or residual > node:
        return
    if shape(residual) != shape(node):
        with editor.before(node):
            residual = editor.call(aten.reshape.default, residual, shape(node), like=add)
    set_arguments(node, {**arguments(node), "residual": residual})
    replace(add, seen)


def _mask(node: Node) -> None:
    seen, where = _behind_views(node)
    if where is None or not is_call(where, aten.where.ScalarOther):
        return
    kept, value, other = where.args
    if value is not seen or other != 0 or not is_call(kept, pack.unpack_mask):
        return
    assert isinstance(kept, Node)
    packed = kept.args[0]
    assert isinstance(packed, Node)
    if shape(kept) != shape(seen) or shape(node)[-1] % LANES or packed > node:
        return
    set_arguments(node, {**arguments(node), "mask": packed})
    replace(where, seen)
