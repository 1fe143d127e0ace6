"""Let a product's scales take the number that its result is multiplied with."""

import torch
from torch.fx import GraphModule, Node

from sqcompile.passes.editing import (
    REORDERED,
    SAME_ORDER,
    Editor,
    arguments,
    calls,
    copy_graph,
    finish,
    is_call,
    replace,
    set_arguments,
    value,
)
from sqcompile.passes.fuse_epilogues import FUSED

aten = torch.ops.aten

FACTORS = (aten.mul.Scalar, aten.mul.Tensor, aten.div.Scalar, aten.div.Tensor)


def fold_factors(module: GraphModule) -> GraphModule:
    """After this pass (it needs what fuse_epilogues leaves) no product's float result, without bias
    and ReLU, is only multiplied with a number, or divided by one: its smallest scale is. Views and
    permutations between them do not count. A result is rounded once less."""
    graph = copy_graph(module)
    editor = Editor(graph)
    for node in calls(graph, *FUSED.values()):
        given = arguments(node)
        if not given["scales"] or given["bias"] is not None or given["relu"]:
            continue
        while (found := _factor(node)) is not None:
            _fold(editor, node, found)
    return finish(graph)


def _factor(node: Node) -> Node | None:
    """The only reader of a value behind views and permutations, if it scales it by a number."""
    users = list(node.users)
    if len(users) != 1:
        return None
    if is_call(users[0], *SAME_ORDER, *REORDERED):
        return _factor(users[0])
    if not is_call(users[0], *FACTORS):
        return None
    scaled, by = users[0].args
    number = isinstance(by, int | float) and not isinstance(by, bool)
    return users[0] if number and scaled is node else None


def _fold(editor: Editor, node: Node, factor: Node) -> None:
    scales = list(arguments(node)["scales"])
    smallest = min(range(len(scales)), key=lambda i: value(scales[i]).numel())
    with editor.before(node):
        scales[smallest] = editor.call(factor.target, scales[smallest], factor.args[1], like=factor)
    set_arguments(node, {**arguments(node), "scales": scales})
    scaled = factor.args[0]
    assert isinstance(scaled, Node)
    replace(factor, scaled)
