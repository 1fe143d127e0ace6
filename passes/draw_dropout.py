"""Dropout with torch's generator -> masks drawn from counters, which repeat bit for bit."""

import operator
from collections.abc import Callable

import torch
from torch.fx import GraphModule, Node

from sqcompile import _torch_compat as compat
from sqcompile.ops.dropout import dropout_mask, threshold
from sqcompile.ops.pack import unpack_mask
from sqcompile.ops.philox import stream_id
from sqcompile.passes.editing import (
    Editor,
    arguments,
    copy_graph,
    finish,
    is_call,
    replace,
    shape,
    value,
)

aten = torch.ops.aten


def draw_dropout(module: GraphModule) -> GraphModule:
    """After this pass no dropout draws from torch's generator: each has a packed mask of its own
    stream, and an element kept is multiplied by the scale, rounded once. Backward unpacks the same
    mask. Feature dropout's bernoulli is the mask as 0 and 1. Other random ops stay, and are
    reported before lowering."""
    graph = copy_graph(module)
    masks = _Masks(graph)
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and node.target in _RULES and not node._erased:
            with masks.editor.before(node):
                _RULES[node.target](masks, node)
    return finish(graph)


class _Masks:
    """The masks so far: every dropout of a module has a stream of its own, by its number."""

    def __init__(self, module: GraphModule) -> None:
        self.editor = Editor(module)
        self.rng = next(n for n in module.graph.find_nodes(op="placeholder") if n.name == "rng")
        self.drawn: dict[str, int] = {}

    def draw(self, x: Node, dropped: float, like: Node) -> Node:
        """A packed mask for a tensor of x's shape."""
        path = compat.module_path(like)
        number = self.drawn[path] = self.drawn.get(path, -1) + 1
        stream = stream_id(path, "dropout", "mask", number)
        call = (dropout_mask, self.rng, shape(x), threshold(dropped), stream)
        return self.editor.call(*call, like=like, name="kept", module=path)

    def unpacked(self, packed: Node, like: Node) -> Node:
        """A mask for the place before `like` to read."""
        return self.editor.call(unpack_mask, packed, packed.args[1], like=like, name="kept_mask")

    def scaled(self, packed: Node, x: Node, scale: float, like: Node) -> Node:
        """x * scale where the mask is set, else 0."""
        mask = self.unpacked(packed, like)
        mask.meta["backward"] = is_call(like, aten.native_dropout_backward.default)
        product = self.editor.call(aten.mul.Tensor, x, scale, like=like)
        return self.editor.call(aten.where.ScalarOther, mask, product, 0.0, like=like)

    def dropout(self, node: Node) -> None:
        """The mask and its product; both readers of the pair."""
        given = arguments(node)
        x, dropped = given["input"], given["p"]
        if not given["train"] or value(x).dtype != torch.float32:
            return
        readers = [user for user in node.users if user.target is operator.getitem]
        masks = [item for item in readers if item.args[1] == 1]
        backward = [user for item in masks for user in item.users]
        if not all(is_call(user, aten.native_dropout_backward.default) for user in backward):
            return
        packed = self.draw(x, dropped, node)
        scale = 1 / (1 - dropped) if dropped < 1 else 0.0
        for item in readers:
            if item.args[1] == 0:
                replace(item, self.scaled(packed, x, scale, node))
        for user in backward:
            given = arguments(user)
            with self.editor.before(user):
                new = self.scaled(packed, given["grad_output"], given["scale"], user)
            replace(user, new)

    def bernoulli(self, node: Node) -> None:
        """1 with the probability that is given, else 0."""
        if value(node).dtype != torch.float32:
            return
        packed = self.draw(node, 1 - arguments(node)["p"], node)
        mask = self.unpacked(packed, node)
        replace(node, self.editor.call(aten.mul.Tensor, mask, 1.0, like=node))


_RULES: dict[object, Callable[[_Masks, Node], None]] = {
    aten.native_dropout.default: _Masks.dropout,
    aten.bernoulli.p: _Masks.bernoulli,
}
