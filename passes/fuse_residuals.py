"""Let a batch norm add the residual and take the ReLU behind it."""

from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from sqcompile.ops import norm, norm_residual, pack, quantize
from sqcompile.passes.editing import Editor, arguments, calls, copy_graph, finish, is_call, shape
from sqcompile.passes.fuse_norms import by_channel, groups_of, outputs_of, packed_readers, stand_for

aten = torch.ops.aten


def fuse_residuals(module: GraphModule) -> GraphModule:
    """After this pass (it needs what fuse_norms leaves) a batch norm whose result only a sum with a
    tensor of its shape reads, or a ReLU, or both in this order, is one op with them, the absmax of
    the whole result and the group exponents of its channels, and the packing of xhat and mask. Of
    two norms that are added, the later one adds. Values do not change."""
    graph = copy_graph(module)
    editor = Editor(graph)
    for node in calls(graph, norm.l1_batch_norm):
        found = _match(node)
        if found is not None:
            _fuse(editor, node, found)
    return finish(graph)


@dataclass(frozen=True)
class _Chain:
    """What stands behind a norm: the residual, whether there is a ReLU, the last node; what reads
    xhat."""

    residual: Node | None
    relu: bool
    end: Node
    xhats: list[Node]


def _match(node: Node) -> _Chain | None:
    outputs = outputs_of(node)
    y = outputs.get(0)
    xhats = packed_readers(outputs.get(1), arguments(node)["bits"])
    if y is None or xhats is None:
        return None
    end: Node = y
    residual: Node | None = None
    add = _only_reader(y, aten.add.Tensor)
    if add is not None:
        other = next((n for n in add.args[:2] if n is not y), None)
        if not isinstance(other, Node) or shape(other) != shape(y) or other > node:
            return None
        residual = other
        end = add
    relu = next((user for user in end.users if is_call(user, aten.relu.default)), None)
    if relu is not None and set(end.users) != {relu}:
        relu = None
    if add is None and relu is None:
        return None
    return _Chain(residual, relu is not None, relu or end, xhats)


def _only_reader(node: Node, target: object) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and is_call(users[0], target) else None


def _fuse(editor: Editor, node: Node, chain: _Chain) -> None:
    outputs, end = outputs_of(node), chain.end
    every = list(range(len(shape(end))))
    absmaxes = [user for user in end.users if is_call(user, quantize.absmax)]
    maxima = [one for one in absmaxes if one.args[1:] == (None, every)]
    channel = next((one for one in absmaxes if one.args[1:] == (None, every[:-1])), None)
    whole, exponent = (channel and by_channel(channel)) or (None, None)
    signs = [u for u in end.users if is_call(u, aten.gt.Scalar) and u.args[1] == 0]
    masks = [packed for sign in signs if chain.relu for packed in _packs(sign)]
    with editor.before(node):
        *given, sums = arguments(node).values()
        assert sums is None, "sums are gathered after this pass"
        args = [*given, chain.residual, chain.relu, None, groups_of(exponent)]
        op = norm_residual.l1_batch_norm_add_relu
        fused = editor.call(op, *args, like=node, name=node.name)
        for old, index in (
            *((one, 1) for one in (*maxima, whole) if one is not None),
            *((one, 2) for one in chain.xhats),
            *((one, 3) for one in masks),
            *((outputs[i], i + 2) for i in (2, 3, 4) if i in outputs),
            *((one, 7) for one in (exponent,) if one is not None),
            (end, 0),
        ):
            stand_for(editor, old, fused, index)


def _packs(sign: Node) -> list[Node]:
    return [user for user in sign.users if is_call(user, pack.pack_mask)]
