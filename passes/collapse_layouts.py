"""One form for what stands between a product and whatever reads it: a number, then one layout."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import torch
from torch.fx import GraphModule, Node

from sqcompile.ops.product_float import matmul
from sqcompile.passes import editing
from sqcompile.passes.editing import (
    Editor,
    arguments,
    copy_graph,
    finish,
    is_call,
    set_arguments,
    shape,
)
from sqcompile.walks import Walk, common_axes

aten = torch.ops.aten


def collapse_layouts(module: GraphModule) -> GraphModule:
    """After this pass a chain of views, permutes and clones with two permutes or more is a view, a
    permute and a view, and one that leaves all elements in order is a view. A number that
    multiplies a matrix product, wherever in such a chain, multiplies the product itself; one that
    multiplies an operand multiplies the result. A product reads an operand as it lies in memory,
    with its last axes swapped or not. A permute of a concatenation is one of its parts. Values do
    not change, but that a number multiplies a sum instead of its terms."""
    graph = copy_graph(module)
    chains = _Chains(Editor(graph))
    for node in list(graph.graph.nodes):
        if (
            not node._erased
            and _in_chain(node)
            and not all(u.target in LAYOUTS for u in node.users)
        ):
            chains.collapse(node)
    return finish(graph)


@dataclass(frozen=True)
class _Laid:
    """A value: `factor` times the elements of `root` along `walk`, over `permutes` permutes."""

    root: Node
    walk: Walk
    factor: float = 1.0
    permutes: int = 0


def _viewed(laid: _Laid, node: Node) -> _Laid:
    return replace(laid, walk=laid.walk.reshaped(shape(node)))


def _permuted(laid: _Laid, node: Node) -> _Laid | None:
    walk = laid.walk.permuted(_order(node))
    return replace(laid, walk=walk, permutes=laid.permutes + 1) if walk else None


def _order(node: Node) -> list[int]:
    """The axes of its argument in the order in which a permute, transpose or t leaves them."""
    rank = len(shape(node))
    order = list(range(rank))
    if is_call(node, aten.permute.default):
        return [int(axis) % rank for axis in node.args[1]]  # type: ignore[union-attr, arg-type]
    if rank > 1:
        a, b = (0, 1) if is_call(node, aten.t.default) else node.args[1:3]
        order[a], order[b] = order[b], order[a]  # type: ignore[index]
    return order


LAYOUTS: dict[object, Callable[[_Laid, Node], _Laid | None]] = {
    **dict.fromkeys(
        (
            aten.view.default,
            aten.reshape.default,
            aten._unsafe_view.default,
            aten.unsqueeze.default,
            aten.squeeze.default,
            aten.squeeze.dim,
            aten.squeeze.dims,
            aten.clone.default,
        ),
        _viewed,
    ),
    **dict.fromkeys((aten.permute.default, aten.transpose.int, aten.t.default), _permuted),
}
"""Ops that hand on every element once, and how they lay them."""


def multiplier(node: Node) -> float | None:
    """What a float tensor is multiplied by, if that is one number."""
    if not is_call(node, aten.mul.Tensor, aten.mul.Scalar):
        return None
    x, other = node.args
    number = isinstance(x, Node) and isinstance(other, (int, float))
    return float(other) if number and editing.value(x).dtype == torch.float32 else None  # type: ignore[arg-type]


def _in_chain(node: Node) -> bool:
    return node.op == "call_function" and (node.target in LAYOUTS or multiplier(node) is not None)


def _followed(node: Node, numbers: bool) -> _Laid:
    """What a chain that ends in `node` comes to; a product with a number begins one unless
    `numbers`."""
    if node.op == "call_function" and 0 not in (shape(node) if _in_chain(node) else [0]):
        source, number = node.args[0], multiplier(node)
        assert isinstance(source, Node)
        if number is None:
            laid = LAYOUTS[node.target](_followed(source, numbers), node)
            if laid is not None:
                return laid
        elif numbers:
            laid = _followed(source, numbers)
            return replace(laid, factor=laid.factor * number)
    return _Laid(node, Walk.whole(shape(node) if _is_tensor(node) else ()))


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _swapped(walk: Walk) -> Walk | None:
    """The last two axes in the other order."""
    rank = len(walk.shape)
    return walk.permuted([*range(rank - 2), rank - 1, rank - 2])


class _Chains:
    """The rewrites of a graph, and what they made already."""

    def __init__(self, editor: Editor) -> None:
        self.editor = editor
        self.made: dict[_Laid, Node] = {}
        self.scaled: dict[tuple[Node, float], Node] = {}
        self.results: dict[Node, Node] = {}

    def collapse(self, node: Node) -> None:
        """Put the chain that ends in a node in its form."""
        products = all(is_call(user, matmul) for user in node.users)
        laid = _followed(node, True)
        if not (is_call(laid.root, matmul) or products and not any(map(_biased, node.users))):
            laid = _followed(node, False)
        if laid.root is node:
            return
        if products:
            self._operand(node, laid)
        elif laid.factor != 1 or laid.permutes > 1 or (laid.permutes and _joins(laid)):
            editing.replace(node, self._emit(laid, node))

    def _operand(self, node: Node, laid: _Laid) -> None:
        """A chain that only products read."""
        turned = _swapped(laid.walk) if laid.walk.run == 1 else None
        turned = turned if turned and turned.run > 1 else None
        if not (turned or laid.factor != 1 or laid.permutes > 1):
            return
        walk = turned or laid.walk
        operand = self._emit(replace(laid, walk=walk, factor=1.0), node)
        for product in list(node.users):
            given = arguments(product)
            for side in "ab":
                if given[side] is node:
                    given[side] = operand
                    given[f"transpose_{side}"] ^= turned is not None
                    self._multiply(product, laid.factor)
            set_arguments(product, given)

    def _multiply(self, product: Node, factor: float) -> None:
        """Multiply a product's result."""
        if factor == 1:
            return
        if product not in self.results:
            with self.editor.after(product):
                result = self.editor.call(aten.mul.Tensor, product, 1.0, like=product)
            product.replace_all_uses_with(result, lambda user: user is not result)
            self.results[product] = result
        result = self.results[product]
        result.args = (product, result.args[1] * factor)  # type: ignore[operator]

    def _emit(self, laid: _Laid, node: Node) -> Node:
        """The nodes of a chain, before `node` if they are not there yet."""
        laid = replace(laid, permutes=0)
        if laid not in self.made:
            with self.editor.before(node):
                self.made[laid] = self._written(laid, node)
        return self.made[laid]

    def _written(self, laid: _Laid, like: Node) -> Node:
        root, walk = self._root(laid), laid.walk
        if walk.in_order:
            return self._reshaped(root, walk.shape, like)
        if (parts := self._parts(laid, like)) is not None:
            return self._reshaped(parts, walk.shape, like)
        memory = sorted(walk.axes, key=lambda axis: -axis[1])
        order = [memory.index(axis) for axis in walk.axes]
        root = self._reshaped(root, [extent for extent, _ in memory], like)
        moved = self.editor.call(aten.permute.default, root, order, like=like)
        return self._reshaped(moved, walk.shape, like)

    def _root(self, laid: _Laid) -> Node:
        if laid.factor == 1:
            return laid.root
        key = laid.root, laid.factor
        if key not in self.scaled:
            with self.editor.after(laid.root):
                self.scaled[key] = self.editor.call(
                    aten.mul.Tensor, laid.root, laid.factor, like=laid.root
                )
        return self.scaled[key]

    def _parts(self, laid: _Laid, like: Node) -> Node | None:
        """The concatenation of the permuted parts of one."""
        if not _joins(laid):
            return None
        given = arguments(laid.root)
        sizes = shape(laid.root)
        at, memory = given["dim"] % len(sizes), sorted(laid.walk.axes, key=lambda axis: -axis[1])
        fine = common_axes([[extent for extent, _ in memory], sizes])
        if fine is None or (axis := _place(fine, sizes, at)) is None:
            return None
        order = _fine_order(laid.walk, fine)
        parts = []
        for part in given["tensors"]:
            inner = _followed(part, is_call(_followed(part, True).root, matmul))
            cut = [shape(part)[at] if i == axis else n for i, n in enumerate(fine)]
            walk = inner.walk.reshaped(cut).permuted(order)
            if walk is None:
                inner, walk = _Laid(part, Walk.whole(cut)), Walk.whole(cut).permuted(order)
            assert walk is not None
            parts.append(self._emit(replace(inner, walk=walk), like))
        return self.editor.call(aten.cat.default, parts, order.index(axis), like=like)

    def _reshaped(self, x: Node, sizes: "tuple[int, ...] | list[int]", like: Node) -> Node:
        if shape(x) == list(sizes):
            return x
        return self.editor.call(aten.reshape.default, x, list(sizes), like=like)


def _biased(product: Node) -> bool:
    return arguments(product)["bias"] is not None


def _joins(laid: _Laid) -> bool:
    """Whether a chain is that of a concatenation, which nothing else reads."""
    whole = laid.factor == 1 and is_call(laid.root, aten.cat.default)
    return whole and len(laid.root.users) == 1 and not laid.walk.in_order


def _place(fine: list[int], sizes: list[int], axis: int) -> int | None:
    """The number of axis `axis` of `sizes` in a refinement of them; None where it is cut."""
    inside = prod(sizes[axis + 1 :])
    for number, extent in enumerate(fine):
        if extent == sizes[axis] and prod(fine[number + 1 :]) == inside:
            return number
    return None


def _fine_order(walk: Walk, fine: list[int]) -> list[int]:
    """Which axis of `fine`, a refinement of a walk's memory, stands where in its order."""
    steps = [prod(fine[number + 1 :]) for number in range(len(fine))]
    return [
        number
        for extent, stride in walk.axes
        for number, step in enumerate(steps)
        if stride <= step < stride * extent
    ]
