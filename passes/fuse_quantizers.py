"""Let a quantiser be one op: a gradient's ShiftQuant with its absmaxes, groups and scales, a
weight's with its absmax and scale, so that they read the tensor together."""

from dataclasses import dataclass
from math import prod

import torch
from torch.fx import GraphModule, Node

from sqcompile.ops import quantize
from sqcompile.passes.editing import (
    Editor,
    arguments,
    calls,
    copy_graph,
    finish,
    is_call,
    replace,
    shape,
)

aten = torch.ops.aten


def fuse_quantizers(module: GraphModule) -> GraphModule:
    """After this pass a gradient whose absmaxes serve one stochastic quantiser alone is quantised
    by sq.shift_quantize, with the folded weight scale where nothing else reads their product.
    Values do not change. An absmax that two quantisers share stays: each would measure again.
    A graph input with an absmax for every row, a weight, is quantised by sq.quantize_rows."""
    graph = copy_graph(module)
    editor = Editor(graph)
    for node in calls(graph, quantize.quantize_stochastic):
        found = _match(node)
        if found is not None:
            _fuse(editor, found)
    for node in calls(graph, quantize.quantize):
        _fuse_rows(editor, node)
    return finish(graph)


@dataclass(frozen=True)
class _Quantizer:
    """The nodes of one ShiftQuant; `channel` is the absmax of each inner index (with groups)."""

    q: Node
    x: Node
    r: Node
    outer: Node | None
    channel: Node | None
    exponent: Node | None
    groups: int

    @property
    def maxima(self) -> list[Node]:
        return [node for node in (self.outer, self.channel, self.r) if node is not None]

    def read_by(self, node: Node, *others: object) -> bool:
        """Whether only nodes of the quantiser, and calls of `others`, read `node`."""
        own = {self.q, self.exponent, *self.maxima}
        return all(user in own or is_call(user, *others) for user in node.users)


def _match(q: Node) -> _Quantizer | None:
    """The ShiftQuant that ends in q, None where its absmaxes are others' or have another form."""
    given = arguments(q)
    x, r, outer, exponent = (given[name] for name in ("x", "r", "outer", "exponent"))
    if not is_call(r, quantize.absmax) or prod(shape(r)) != 1:
        return None
    channel, groups = None, 1
    if exponent is not None:
        if not is_call(exponent, quantize.group_exponent):
            return None
        channel, groups = arguments(exponent)["r"], arguments(exponent)["groups"]
        if not is_call(channel, quantize.absmax) or _measured(r) != (channel, None):
            return None
    if _measured(r if channel is None else channel) != (x, outer):
        return None
    if outer is not None and (not is_call(outer, quantize.absmax) or _measured(outer) != (x, None)):
        return None
    found = _Quantizer(q, x, r, outer, channel, exponent, groups)
    closed = found.read_by(r, quantize.quant_scale)
    closed &= outer is None or found.read_by(outer, quantize.outer_scale)
    closed &= channel is None or found.read_by(channel)
    step = (r, given["bits"], True, groups)
    steps = all(user.args == step for user in r.users if is_call(user, quantize.quant_scale))
    return found if closed and steps else None


def _measured(absmax: Node) -> tuple[Node, Node | None]:
    given = arguments(absmax)
    return given["x"], given["outer"]


def _kept(absmax: Node | None) -> list[int]:
    """The axes that an absmax keeps."""
    if absmax is None:
        return []
    given = arguments(absmax)
    return [axis for axis in range(len(shape(given["x"]))) if axis not in given["axes"]]


def _folded(found: _Quantizer) -> tuple[Node, Node | None]:
    """(gradient, factor): the operands of a product that only this quantiser reads."""
    x = found.x
    if not is_call(x, aten.mul.Tensor) or not found.read_by(x):
        return x, None
    g, factor = x.args[:2]
    if not isinstance(g, Node) or not isinstance(factor, Node) or shape(g) != shape(x):
        return x, None
    return (g, factor) if prod(shape(factor)) < prod(shape(g)) else (x, None)


def _fuse(editor: Editor, found: _Quantizer) -> None:
    given = arguments(found.q)
    g, factor = _folded(found)
    with editor.before(min([found.x, *found.maxima] if factor else found.maxima)):
        fused = editor.call(
            quantize.shift_quantize,
            g,
            factor,
            given["rng"],
            _kept(found.outer),
            _kept(found.channel),
            given["bits"],
            found.groups,
            given["stream"],
            like=found.q,
        )

        def item(index: int, old: Node, **meta: object) -> None:
            replace(old, editor.item(fused, index, name=old.name, **meta))

        item(0, found.q, bits=given["bits"], signed=True)
        if found.exponent is not None:
            item(1, found.exponent)
        for scale in [user for user in found.r.users if is_call(user, quantize.quant_scale)]:
            item(2, scale)
        if found.outer is not None:
            for scale in [u for u in found.outer.users if is_call(u, quantize.outer_scale)]:
                item(3, scale)


def _fuse_rows(editor: Editor, q: Node) -> None:
    """Let q and the absmax of its rows be one op; the scale too, where it is in q's steps. Inputs
    alone: what is computed per token belongs to the norm that gives it."""
    x, r, bits, signed = (arguments(q)[name] for name in ("x", "r", "bits", "signed"))
    if x.op != "placeholder" or not is_call(r, quantize.absmax):
        return
    if _measured(r) != (x, None) or _kept(r) != [0]:
        return
    with editor.before(r):
        fused = editor.call(quantize.quantize_rows, x, bits, signed, like=q)
        replace(q, editor.item(fused, 0, name=q.name, bits=bits, signed=signed))
        for scale in [user for user in r.users if is_call(user, quantize.quant_scale)]:
            if scale.args[1:] == (bits, signed, 1):
                replace(scale, editor.item(fused, 1, name=scale.name))
        replace(r, editor.item(fused, 2, name=r.name))
