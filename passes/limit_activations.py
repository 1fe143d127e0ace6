"""Let activations end at a multiple of their mean magnitude, and gradients beyond that be zero."""

from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from sqcompile.ops import product_float
from sqcompile.ops.reduce import ordered_sum
from sqcompile.passes.assign_precision import ProductSpec
from sqcompile.passes.contraction import FLOAT_PRODUCTS
from sqcompile.passes.editing import (
    Editor,
    arguments,
    calls,
    copy_graph,
    finish,
    is_call,
    shape,
    update_value,
)

aten = torch.ops.aten


def limit_activations(module: GraphModule) -> GraphModule:
    """After this pass (it needs what assign_precision leaves) an activation x whose operand has a
    limit stands in its products as clamp(x, -end, end), where end is the limit times the mean
    magnitude of the elements that are not zero, and their input gradient is zero where |x| > end:
    end counts as a constant. Products that read one x with one limit read one clamped x."""
    graph = copy_graph(module)
    editor = Editor(graph)
    limited: dict[tuple[Node, float], _Limited] = {}
    insides: dict[tuple[str, int], Node] = {}
    for node in calls(graph, *FLOAT_PRODUCTS):
        spec: ProductSpec = node.meta["sq"]
        for position, operand in enumerate(spec.operands):
            if not operand.limit:
                continue
            x = node.args[position]
            assert isinstance(x, Node)
            if (x, operand.limit) not in limited:
                with editor.before(node):
                    limited[x, operand.limit] = _limited(editor, x, operand.limit, operand.signed)
            found = limited[x, operand.limit]
            node.update_arg(position, found.x)
            if spec.role == "fprop":
                with editor.before(node):
                    inside = _as_gradient(editor, node, found.inside)
                insides[spec.module, spec.occurrence] = inside
        stops = insides.get((spec.module, spec.occurrence))
        if spec.role == "dgrad" and stops is not None and spec.operands[1].kind == "weight":
            _stop_gradient(editor, node, stops)
    return finish(graph)


@dataclass(frozen=True)
class _Limited:
    """x as products read it, and where it is x."""

    x: Node
    inside: Node


def _limited(editor: Editor, x: Node, limit: float, signed: bool) -> _Limited:
    magnitude = editor.call(aten.abs.default, x, like=x) if signed else x
    end = _end(editor, x, magnitude, limit)
    inside = editor.call(aten.le.Tensor, magnitude, end, like=x, name=f"{x.name}_inside")
    beyond = end
    if signed:
        positive = editor.call(aten.gt.Scalar, x, 0, like=x)
        negative = editor.call(aten.neg.default, end, like=x)
        beyond = editor.call(aten.where.self, positive, end, negative, like=x)
    kept = editor.call(aten.where.self, inside, x, beyond, like=x, name=f"{x.name}_limited")
    return _Limited(kept, inside)


def _end(editor: Editor, x: Node, magnitude: Node, limit: float) -> Node:
    """(sum * limit) / count, with all axes of size 1; of zeros alone it is 0 / 1."""
    every = list(range(len(shape(x))))
    total = editor.call(ordered_sum, magnitude, every, True, like=x)
    there = editor.call(aten.ne.Scalar, x, 0, like=x)
    for axes in (every[1:-1], every[:1], every[-1:]):  # in parallel over images, in vectors
        if axes:
            there = editor.call(aten.sum.dim_IntList, there, axes, True, like=x)
    count = editor.call(aten._to_copy.default, there, like=x)
    count.kwargs = {"dtype": torch.float32}
    update_value(count)
    count = editor.call(aten.clamp.default, count, 1.0, like=x)
    end = editor.call(aten.mul.Tensor, total, limit, like=x)
    return editor.call(aten.div.Tensor, end, count, like=x, name=f"{x.name}_end")


def _as_gradient(editor: Editor, fprop: Node, inside: Node) -> Node:
    """`inside` in the layout of the input gradient: rows of features, where x may be read with its
    axes swapped."""
    if is_call(fprop, product_float.matmul) and arguments(fprop)["transpose_a"]:
        return editor.call(aten.permute.default, inside, [1, 0], like=inside)
    return inside


def _stop_gradient(editor: Editor, gradient: Node, inside: Node) -> None:
    """Let a gradient be zero outside. Where a mask alone reads it, that mask becomes both."""
    reader = next(iter(gradient.users)) if len(gradient.users) == 1 else None
    if reader is not None and is_call(reader, aten.where.ScalarOther):
        kept, value, other = reader.args
        if isinstance(kept, Node) and value is gradient and other == 0:
            with editor.after(inside if kept < inside else kept):
                both = editor.call(aten.logical_and.default, kept, inside, like=kept)
            reader.update_arg(0, both)
            return
    with editor.after(gradient):
        stopped = editor.call(aten.where.ScalarOther, inside, gradient, 0, like=gradient)
    gradient.replace_all_uses_with(stopped, delete_user_cb=lambda user: user is not stopped)
