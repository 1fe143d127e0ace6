"""Let images stay channels last from one convolution to the next."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from sqcompile.ops.elementwise import sqrt
from sqcompile.ops.lookup import take, take_backward
from sqcompile.ops.reduce import ordered_sum
from sqcompile.ops.resample import resample
from sqcompile.passes.editing import (
    Editor,
    arguments,
    copy_graph,
    finish,
    is_call,
    replace,
    shape,
    target_of,
    update_value,
    value,
)

aten = torch.ops.aten

ELEMENTWISE = {
    target_of(op)
    for op in (
        aten.relu.default,
        aten.leaky_relu.default,
        aten.leaky_relu_backward.default,
        aten.hardtanh.default,
        aten.hardtanh_backward.default,
        aten.threshold_backward.default,
        aten.clamp.default,
        aten.where.self,
        aten.where.ScalarOther,
        aten.neg.default,
        aten.abs.default,
        aten.sgn.default,
        aten.sign.default,
        aten.reciprocal.default,
        aten.logical_not.default,
        aten.logical_and.default,
        aten.logical_or.default,
        aten._to_copy.default,
        aten.clone.default,
        sqrt,
        *(
            getattr(getattr(aten, name), overload)
            for name in ("add", "sub", "mul", "div", "gt", "ge", "lt", "le", "eq", "ne")
            for overload in ("Tensor", "Scalar")
        ),
    )
}
"""Ops whose result at an index depends on their arguments there, up to broadcasting."""


def channels_last(module: GraphModule) -> GraphModule:
    """After this pass no elementwise op, sum, concatenation, padding, slice or op along an axis
    reads an image that was permuted to channels first: it computes channels last and its result
    is permuted, and permutes that undo each other are gone. What is left is where the model's own
    layout shows: its inputs, outputs and reshapes; no view reads a permuted tensor, which PyTorch
    would refuse: those are reshapes."""
    graph = copy_graph(module)
    images = _Images(Editor(graph))
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and not node._erased:
            images.visit(node)
    _reshape_strided(graph)
    return finish(graph)


def _reshape_strided(graph: GraphModule) -> None:
    """Make a reshape of every view of a tensor that is not row-major when the graph runs eagerly:
    torch's views have strides, and its elementwise ops hand them on."""
    strided: set[Node] = set()
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        inherits = any(source in strided for source in node.all_input_nodes)
        if inherits and is_call(node, aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
            node.args = (node.args[0], shape(node))
        elif node.target in STRIDED or (inherits and node.target in ELEMENTWISE | HANDING_ON):
            strided.add(node)


STRIDED = {
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.expand.default,
    aten.slice.Tensor,
    aten.select.int,
}
"""Ops whose result is a view with other strides."""
HANDING_ON = {
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.alias.default,
    aten.detach.default,
}
"""Ops beside the elementwise ones whose result has the strides of their argument."""


TO_FIRST = [0, 3, 1, 2]
"""The permutation from (N, H, W, C) to (N, C, H, W)."""
TO_LAST = [0, 2, 3, 1]
"""The permutation from (N, C, H, W) to (N, H, W, C)."""
RANK = 4


def permuted_last(editor: Editor, x: Node, like: Node) -> Node:
    """x (N, C, H, W) as (N, H, W, C)."""
    return editor.call(aten.permute.default, x, TO_LAST, like=like)


def permuted_first(editor: Editor, x: Node, like: Node) -> Node:
    """x (N, H, W, C) as (N, C, H, W)."""
    return editor.call(aten.permute.default, x, TO_FIRST, like=like)


def _source(argument: object) -> Node | None:
    """The channels-last image that `argument` shows channels first, None for anything else."""
    return _permuted(argument, TO_FIRST)


def _permuted(argument: object, order: list[int]) -> Node | None:
    """x when `argument` is x.permute(order)."""
    if not is_call(argument, aten.permute.default):
        return None
    assert isinstance(argument, Node)
    source, axes = argument.args
    assert isinstance(source, Node) and isinstance(axes, (list, tuple))
    found = [int(axis) % len(axes) for axis in axes]  # type: ignore[arg-type]
    return source if found == order else None


def _copied_for_its_layout(node: Node) -> bool:
    """Whether a clone of an image shown channels first is there for its strides alone: tensors
    of the graph have none. One that the model returns stays."""
    return _source(node.args[0]) is not None and all(user.op != "output" for user in node.users)


class _Images:
    """The rewrites, and which tensors have a channels-last form already."""

    def __init__(self, editor: Editor) -> None:
        self.editor = editor
        self.known: dict[Node, Node] = {}

    def visit(self, node: Node) -> None:
        """Rewrite one call when it reads an image channels first."""
        source = _permuted(node, TO_LAST)
        if source is not None:
            replace(node, self.last(source, node))
        elif is_call(node, aten.clone.default) and _copied_for_its_layout(node):
            replace(node, node.args[0])  # type: ignore[arg-type]
        elif node.target in ELEMENTWISE:
            if any(_source(a) is not None and shape(a) == shape(node) for a in node.args):  # type: ignore[arg-type]
                self._stand_for(node, self._elementwise(node))
        elif node.target in RULES and any(_source(x) is not None for x in _tensors(node)):
            RULES[node.target](self, node)

    def last(self, x: Node, like: Node) -> Node:
        """x, of at most four axes, channels last, for `like` to read: without a copy where x is
        made of something that is, or of something small."""
        if x not in self.known:
            self.known[x] = self._last(x, like)
        return self.known[x]

    def _last(self, x: Node, like: Node) -> Node:
        source = _source(x)
        if source is not None:
            return source
        whole = len(shape(x)) == RANK
        if whole and x.target in ELEMENTWISE and len(x.users) == 1:
            return self._elementwise(x)
        if whole and is_call(x, aten.expand.default):
            (inner,) = x.all_input_nodes
            if len(shape(inner)) == RANK:
                moved = self.last(inner, like)
                with self.editor.after(x):
                    return self.editor.call(x.target, moved, _reordered(shape(x)), like=x)
        with self.editor.after(x):
            if not whole:
                sizes = [1] * (RANK - len(shape(x))) + shape(x)
                x = self.editor.call(aten.view.default, x, sizes, like=like)
            return permuted_last(self.editor, x, like)

    def _elementwise(self, node: Node) -> Node:
        """The same op on channels-last operands."""
        moved = [
            self.last(a, node) if isinstance(a, Node) and value(a).dim() > 0 else a
            for a in node.args
        ]
        return self._again(node, moved)

    def _again(self, node: Node, args: Sequence[Any]) -> Node:
        """The same call on other arguments."""
        with self.editor.after(node):
            new = node.graph.node_copy(node, lambda n: n)
        new.args = tuple(args)
        update_value(new)
        return new

    def _stand_for(self, node: Node, new: Node) -> None:
        """Let `new`, permuted to channels first, stand where `node` stood."""
        with self.editor.after(new):
            first = permuted_first(self.editor, new, node)
        replace(node, first)

    def reduced(self, node: Node) -> None:
        """A sum: over the same axes of the channels-last tensor."""
        x, axes, keepdim = node.args
        assert isinstance(axes, (list, tuple))
        moved = sorted(TO_FIRST[int(axis)] for axis in axes)  # type: ignore[arg-type]
        new = self._again(node, (_source(x), moved, keepdim))
        if keepdim:
            self._stand_for(node, new)
            return
        left = [axis for axis in range(RANK) if axis not in moved]
        order = [left.index(axis) for axis in TO_FIRST if axis in left]
        if order != sorted(order):
            with self.editor.after(new):
                new = self.editor.call(aten.permute.default, new, order, like=node)
        replace(node, new)

    def joined(self, node: Node) -> None:
        """A concatenation: along the axis's place, all parts channels last."""
        given = arguments(node)
        parts = [self.last(part, node) for part in given["tensors"]]
        self._stand_for(node, self._again(node, (parts, TO_FIRST[given["dim"] % RANK])))

    def padded(self, node: Node) -> None:
        """A constant padding: widths are listed from the last axis on, in pairs."""
        given = arguments(node)
        widths = list(given["pad"]) + [0] * (2 * RANK - len(given["pad"]))
        pairs = [widths[2 * i : 2 * i + 2] for i in range(RANK)]
        moved = [width for pair in _reordered(pairs[::-1])[::-1] for width in pair]
        new = self._again(node, (_source(given["self"]), moved, given["value"]))
        self._stand_for(node, new)

    def sliced(self, node: Node) -> None:
        """A slice: of the axis's place."""
        given = arguments(node)
        axis = TO_FIRST[given["dim"] % RANK]
        rest = (given["start"], given["end"], given["step"])
        self._stand_for(node, self._again(node, (_source(given["self"]), axis, *rest)))

    def along(self, node: Node) -> None:
        """An op along one axis: along the axis's place."""
        given = arguments(node)
        first, *rest = given.values()
        moved = {"axis": TO_FIRST[given["axis"]]}
        names = list(given)[1:]
        new = [moved.get(name, value) for name, value in zip(names, rest, strict=True)]
        self._stand_for(node, self._again(node, (_source(first), *new)))

    def turned(self, node: Node) -> None:
        """A flip: of the axes' places."""
        source, axes = node.args
        moved = [TO_FIRST[int(axis) % RANK] for axis in axes]  # type: ignore[union-attr, arg-type]
        self._stand_for(node, self._again(node, (_source(source), moved)))


def _reordered(values: Sequence[Any]) -> list[Any]:
    """One value an axis, from channels first to channels last."""
    return [values[axis] for axis in TO_LAST]


def _tensors(node: Node) -> Sequence[object]:
    """The tensors that an op with a rule reads: one, or the parts of a concatenation."""
    first = node.args[0]
    return first if isinstance(first, (list, tuple)) else (first,)


RULES: dict[object, Callable[[_Images, Node], None]] = {
    target_of(ordered_sum): _Images.reduced,
    aten.cat.default: _Images.joined,
    aten.constant_pad_nd.default: _Images.padded,
    aten.slice.Tensor: _Images.sliced,
    aten.flip.default: _Images.turned,
    target_of(take): _Images.along,
    target_of(take_backward): _Images.along,
    target_of(resample): _Images.along,
}
