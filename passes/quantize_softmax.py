"""Let softmax give integers: what the product behind it reads, and what its gradient reads."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from sqcompile.ops import pack, product_float, softmax
from sqcompile.passes.assign_precision import ProductSpec
from sqcompile.passes.contraction import FLOAT_PRODUCTS, contraction
from sqcompile.passes.editing import (
    Editor,
    arguments,
    calls,
    copy_graph,
    finish,
    is_call,
    shape,
    tainted,
)
from sqcompile.passes.editing import replace as put
from sqcompile.recipe import Recipe

aten = torch.ops.aten
_VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.clone.default)
Grid = tuple[tuple[int, ...], int, bool]
"""Shape, bits and sign of a softmax's integers."""


def quantize_softmax(module: GraphModule, recipe: Recipe) -> GraphModule:
    """After this pass no softmax crosses to backward in float. Where it is the operand of a product
    over its rows, by way of views and dropout, sq.softmax_quantize gives it in the product's bits
    with a scale a row: the operand is those integers times that scale (see `integers_of`). Its
    gradient reads the same integers, or some of `activation_saved_bits` where no product does."""
    graph = copy_graph(module)
    editor = Editor(graph)
    backward = tainted(graph)
    for node in calls(graph, softmax.softmax):
        one = _Softmax(editor, node, backward)
        for source, path in list(_followed(node)):
            if _by_rows(source):
                one.operand(source, path)
        one.gradients(recipe.activation_saved_bits)
    return finish(graph)


def integers_of(source: Node) -> tuple[Node, Node] | None:
    """(integers, scale) of an operand that is their product, None for a value to quantise."""
    if not is_call(source, aten.mul.Tensor):
        return None
    q, scale = source.args[:2]
    found = isinstance(q, Node) and isinstance(scale, Node) and "bits" in q.meta
    return (q, scale) if found else None  # type: ignore[return-value]


def _followed(node: Node) -> Iterator[tuple[Node, list[Node]]]:
    """What products may read as the rows of `node`, with the nodes from there: views that keep
    rows, products with a number, masks that put zeros."""
    waiting: list[tuple[Node, list[Node]]] = [(node, [])]
    while waiting:
        source, path = waiting.pop()
        yield source, path
        waiting += [(user, [*path, user]) for user in source.users if _keeps_rows(source, user)]


def _keeps_rows(source: Node, user: Node) -> bool:
    if is_call(user, *_VIEWS):
        return shape(user)[-1:] == shape(source)[-1:]
    if is_call(user, aten.mul.Tensor):
        return user.args[0] is source and isinstance(user.args[1], float)
    if is_call(user, aten.where.ScalarOther):
        given = arguments(user)
        same = given["self"] is source and shape(given["condition"]) == shape(source)
        return same and given["other"] == 0
    return False


def _readers(source: Node) -> list[tuple[Node, int]]:
    """The products that read a value, and as which operand."""
    return [
        (user, position)
        for user in source.users
        if is_call(user, *FLOAT_PRODUCTS)
        for position in (0, 1)
        if user.args[position] is source
    ]


def _by_rows(source: Node) -> bool:
    """Whether forward products read a value, and reduce its rows."""
    last = len(shape(source)) - 1
    forward = [pair for pair in _readers(source) if pair[0].meta["sq"].role == "fprop"]
    return bool(forward) and all(
        is_call(node, product_float.matmul) and contraction(node, position).inner == (last,)
        for node, position in forward
    )


@dataclass
class _Softmax:
    """One softmax, and the integers of it that there are."""

    editor: Editor
    node: Node
    backward: set[Node]
    made: dict[Grid, tuple[Node, Node]] = field(default_factory=dict)

    def quantized(self, grid: Grid) -> tuple[Node, Node]:
        """(q, scale) of a shape that keeps the rows, in some bits."""
        if grid not in self.made:
            sizes, bits, signed = grid
            with self.editor.after(self.node):
                x = self._viewed(self.node.args[0], sizes)
                both = self.editor.call(softmax.softmax_quantize, x, bits, signed, like=self.node)
                q = self.editor.item(both, 0, bits=bits, signed=signed)
                self.made[grid] = q, self.editor.item(both, 1)
        return self.made[grid]

    def operand(self, source: Node, path: list[Node]) -> None:
        """Let the products that read `source` read integers; backward applies masks again."""
        rows = tuple(range(len(shape(source)) - 1))
        for node, position in _readers(source):
            spec: ProductSpec = node.meta["sq"]
            operands = list(spec.operands)
            own = operands[position] = replace(operands[position], axes=rows, groups=1)
            node.meta["sq"] = replace(spec, operands=(operands[0], operands[1]))
            q, scale = self.quantized((tuple(shape(source)), own.bits, own.signed))
            late: dict[str, Any] = {"backward": True} if node in self.backward else {}
            with self.editor.before(node):
                for step in path:
                    if is_call(step, aten.mul.Tensor):
                        scale = self.editor.call(
                            aten.mul.Tensor, scale, step.args[1], like=step, **late
                        )
                    elif is_call(step, aten.where.ScalarOther):
                        mask = self._mask(arguments(step)["condition"], shape(q), late)
                        q = self.editor.call(
                            aten.where.ScalarOther, mask, q, 0, like=step,
                            bits=own.bits, signed=own.signed, **late,
                        )  # fmt: skip
                both = self.editor.call(aten.mul.Tensor, q, scale, like=self.node, **late)
            node.update_arg(position, both)

    def gradients(self, bits: int) -> None:
        """Let the gradient read the widest integers, unless backward has the float anyway."""
        readers = [user for user in self.node.users if is_call(user, softmax.softmax_backward)]
        others = [u for u in self.node.users if u in self.backward and u not in readers]
        if not readers or any(not is_call(user, *FLOAT_PRODUCTS) for user in others):
            return
        grid = max(self.made, key=lambda one: one[1] - one[2], default=None)
        grid = grid or (tuple(shape(self.node)), bits, False)
        q, scale = self.quantized(grid)
        for reader in readers:
            with self.editor.before(reader):
                g = self._viewed(reader.args[0], grid[0])
                call = (softmax.softmax_quantized_backward, g, q, scale)
                new = self.editor.call(*call, like=reader)
                put(reader, self._viewed(new, shape(reader)))

    def _viewed(self, x: object, sizes: object) -> Node:
        assert isinstance(x, Node) and isinstance(sizes, (list, tuple))
        if shape(x) == list(sizes):
            return x
        return self.editor.call(aten.view.default, x, list(sizes), like=x)

    def _mask(self, mask: Node, sizes: list[int], late: dict[str, Any]) -> Node:
        if is_call(mask, pack.unpack_mask):
            return self.editor.call(pack.unpack_mask, mask.args[0], sizes, like=mask, **late)
        if shape(mask) == sizes:
            return mask
        return self.editor.call(aten.view.default, mask, sizes, like=mask, **late)
