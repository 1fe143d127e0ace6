"""Let a norm do what surrounds it: ReLU, quantisation and packing of what it gives, quantisation
of what it reads."""

import operator
from dataclasses import dataclass
from math import prod

import torch
from torch.fx import GraphModule, Node

from sqcompile.ops import norm, norm_fused, pack, quantize
from sqcompile.passes.editing import (
    Editor,
    arguments,
    calls,
    copy_graph,
    finish,
    is_call,
    shape,
    target_of,
)

aten = torch.ops.aten

PACKED_BACKWARDS = {
    target_of(norm.l1_batch_norm_backward): norm_fused.l1_batch_norm_packed_backward,
    target_of(norm.l1_layer_norm_backward): norm_fused.l1_layer_norm_packed_backward,
    target_of(norm.l1_layer_norm_affine_backward): norm_fused.l1_layer_norm_affine_packed_backward,
    target_of(norm.l1_group_norm_backward): norm_fused.l1_group_norm_packed_backward,
}
_WHOLE_BYTES = {
    target_of(norm.l1_layer_norm_backward): 1,
    target_of(norm.l1_group_norm_backward): 3,
}
"""The number of last axes whose elements must fill whole bytes."""


def fuse_norms(module: GraphModule) -> GraphModule:
    """After this pass (it needs what pack_saved leaves) a batch norm whose result is only
    quantised, possibly behind a ReLU, is one op with the ReLU, the absmax, the quantiser and the
    packing of xhat and mask; a layer norm is one op with the quantiser of its input and the
    packing of xhat; norm gradients read packed xhat as it is, and the input gradient of a layer
    norm quantises the gradient itself. Values do not change."""
    graph = copy_graph(module)
    editor = Editor(graph)
    for node in calls(graph, norm.l1_batch_norm):
        readers = _quantized_only(node)
        if readers is not None:
            _fuse_batch_norm(editor, node, readers)
    for node in calls(graph, norm.l1_layer_norm):
        _fuse_layer_norm(editor, node)
    for node in calls(graph, *PACKED_BACKWARDS):
        _read_packed(editor, node)
    for node in calls(graph, norm.l1_layer_norm_backward, norm_fused.l1_layer_norm_packed_backward):
        _quantize_gradient(editor, node)
    return finish(graph)


@dataclass(frozen=True)
class _Range:
    """What quantisers of a value read as its range, which share it is of the value's absmax, and,
    with groups, the exponent of every channel."""

    r: Node
    share: float
    exponent: Node | None


@dataclass
class _Readers:
    """What reads y of a batch norm, and what reads its xhat."""

    relu: bool
    range: "_Range"
    quantizer: Node
    masks: list[Node]
    items: dict[int, Node]
    xhats: list[Node]


def outputs_of(node: Node) -> dict[int, Node]:
    """The items of an op with several results, by number."""
    return {item.args[1]: item for item in node.users}  # type: ignore[misc]


def packed_readers(xhat: Node | None, bits: int) -> list[Node] | None:
    """The nodes that stand for what the fused op gives as xhat, None when something reads xhat
    unpacked that the fused op packs."""
    if xhat is None:
        return []
    if bits > norm_fused.PACKED_BITS:
        return [xhat]
    readers = list(xhat.users)
    return readers if all(is_call(user, pack.pack_int4) for user in readers) else None


def _quantized_only(node: Node) -> _Readers | None:
    items = outputs_of(node)
    y = items.get(0)
    xhats = packed_readers(items.get(1), arguments(node)["bits"])
    if y is None or xhats is None:
        return None
    relus = [user for user in y.users if is_call(user, aten.relu.default)]
    relu = len(relus) == 1
    users = [user for one in (y, *relus) for user in one.users if user not in relus]
    masks = [user for user in users if is_call(user, aten.gt.Scalar)]
    packs = [reader for mask in masks for reader in mask.users]
    absmaxes = [user for user in users if is_call(user, quantize.absmax)]
    quantizers = [user for user in users if is_call(user, quantize.quantize)]
    value = relus[0] if relu else y
    found = _range(absmaxes[0], value) if len(absmaxes) == 1 else None
    if (
        len(relus) > 1
        or found is None
        or len(quantizers) != 1
        or len(masks) + 2 != len(users)
        or (masks and not relu)
        or any(mask.args[1] != 0 for mask in masks)
        or not all(is_call(reader, pack.pack_mask) for reader in packs)
        or not _quantizes(quantizers[0], value, found)
    ):
        return None
    return _Readers(relu, found, quantizers[0], packs, items, xhats)


def _quantizes(quantizer: Node, value: Node, by: _Range) -> bool:
    given = arguments(quantizer)
    return [given[name] for name in ("x", "r", "exponent")] == [value, by.r, by.exponent]


def _range(absmax: Node, value: Node) -> _Range | None:
    """The range of a value from its only absmax: of all of it, or of every channel. Where one
    share of an absmax alone reads it, quantisers read that."""
    every = list(range(len(shape(value))))
    whole, exponent = absmax, None
    if list(absmax.args) == [value, None, every[:-1]]:
        found = by_channel(absmax)
        if found is None:
            return None
        whole, exponent = found
    elif list(absmax.args) != [value, None, every]:
        return None
    users = list(whole.users)
    if len(users) == 1 and is_call(users[0], quantize.clip_range):
        return _Range(users[0], arguments(users[0])["share"], exponent)
    return _Range(whole, 1.0, exponent)


def by_channel(absmax: Node) -> tuple[Node, Node] | None:
    """(absmax of the whole, group exponents) where they alone read the absmax of every channel."""
    every = list(range(len(shape(absmax))))
    wholes = [
        u for u in absmax.users if is_call(u, quantize.absmax) and u.args[1:] == (None, every)
    ]
    exponents = [user for user in absmax.users if is_call(user, quantize.group_exponent)]
    alone = len(wholes) == len(exponents) == 1 and len(absmax.users) == 2
    return (wholes[0], exponents[0]) if alone else None


def groups_of(exponent: Node | None) -> int:
    """The number of groups that an exponent is of, 1 where there is none."""
    return 1 if exponent is None else arguments(exponent)["groups"]


def stand_for(editor: Editor, old: Node, call: Node, index: int) -> None:
    """Put output `index` of `call` in the place of `old`, with its name and metadata."""
    meta = {key: value for key, value in old.meta.items() if key != "val"}
    new = editor.call(operator.getitem, call, index, like=old, **meta)
    old.name, new.name = new.name, old.name
    old.replace_all_uses_with(new)


def _fuse_batch_norm(editor: Editor, node: Node, readers: _Readers) -> None:
    bits, signed = (arguments(readers.quantizer)[name] for name in ("bits", "signed"))
    by = readers.range
    with editor.before(node):
        op = norm_fused.l1_batch_norm_relu_quantize
        *given, sums = arguments(node).values()
        assert sums is None, "sums are gathered after this pass"
        args = [*given, readers.relu, bits, signed, None, by.share, groups_of(by.exponent)]
        fused = editor.call(op, *args, like=node, name=node.name)
        stand_for(editor, readers.quantizer, fused, 0)
        stand_for(editor, by.r, fused, 1)
        if by.exponent is not None:
            stand_for(editor, by.exponent, fused, 7)
        for reader in readers.xhats:
            stand_for(editor, reader, fused, 2)
        for reader in readers.masks:
            stand_for(editor, reader, fused, 3)
        for index in (2, 3, 4):
            if index in readers.items:
                stand_for(editor, readers.items[index], fused, index + 2)


def _fuse_layer_norm(editor: Editor, node: Node) -> None:
    given, items = arguments(node), outputs_of(node)
    q, scale = given.pop("x"), given.pop("scale")
    xhats = packed_readers(items.get(1), given["bits"])
    if xhats is None or (given["bits"] <= norm_fused.PACKED_BITS and shape(q)[1] % 2):
        return
    if not is_call(q, quantize.quantize) or not is_call(scale, quantize.quant_scale):
        return
    x, r, bits, signed, exponent, _ = arguments(q).values()
    if (
        not signed
        or exponent is not None
        or not is_call(r, quantize.absmax)
        or list(r.args) != [x, None, [1]]
        or list(scale.args) != [r, bits, True, 1]
        or set(q.users) | set(scale.users) != {node}
        or set(r.users) != {q, scale}
    ):
        return
    with editor.before(node):
        args = [x, bits, *given.values()]
        fused = editor.call(norm_fused.quantize_l1_layer_norm, *args, like=node, name=node.name)
        places = [(items.get(0), 0), *((reader, 1) for reader in xhats), (items.get(2), 2)]
        for old, index in places:
            if old is not None:
                stand_for(editor, old, fused, index)


def _read_packed(editor: Editor, node: Node) -> None:
    given = arguments(node)
    xhat = given["xhat"]
    if is_call(xhat, aten.view.default):
        xhat = xhat.args[0]
    if not is_call(xhat, pack.unpack_int4) or not xhat.args[2]:
        return
    axes = _WHOLE_BYTES.get(node.target, 0)
    if axes and prod(shape(xhat)[-axes:]) % 2:
        return
    given["xhat"] = xhat.args[0]
    with editor.before(node):
        meta = {key: value for key, value in node.meta.items() if key != "val"}
        op = PACKED_BACKWARDS[node.target]
        new = editor.call(op, *given.values(), like=node, **meta)
    node.name, new.name = new.name, node.name
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)


def _quantize_gradient(editor: Editor, node: Node) -> None:
    """Take the stochastic quantiser of rows into an input gradient that alone reads it."""
    q, scale, *given = arguments(node).values()
    if not is_call(q, quantize.quantize_stochastic) or not is_call(scale, quantize.quant_scale):
        return
    assert isinstance(q, Node) and isinstance(scale, Node)
    h, r, outer, exponent, rng, bits, stream = q.args
    if not is_call(r, quantize.absmax) or outer is not None or exponent is not None:
        return
    assert isinstance(h, Node) and isinstance(r, Node)
    alone = set(q.users) | set(scale.users) == {node} and set(r.users) == {q, scale}
    per_row = list(r.args) == [h, None, [1]] and list(scale.args) == [r, bits, True, 1]
    if not alone or not per_row:
        return
    g, gamma = h, None
    if is_call(h, aten.mul.Tensor) and set(h.users) == {r, q}:
        g, gamma = _gradient_and_gamma(h)
    with editor.before(node):
        meta = {key: value for key, value in node.meta.items() if key != "val"}
        op = norm_fused.quantize_l1_layer_norm_backward
        args = (g, gamma, rng, bits, stream, *given)
        fused = editor.call(op, *args, like=node, **meta)
        stand_for(editor, node, fused, 0)


def _gradient_and_gamma(h: Node) -> tuple[Node, Node | None]:
    """The factors of a product of rows and one row, (h, None) of another product."""
    for g, gamma in (h.args[:2], h.args[1::-1]):
        if not isinstance(g, Node) or not isinstance(gamma, Node):
            continue
        if shape(g) == shape(h) and shape(gamma) == shape(h)[1:]:
            return g, gamma
    return h, None
