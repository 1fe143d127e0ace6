"""Replace every float product by quantisers, an integer product and a dequantise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.fx import GraphModule, Node

from sqcompile.ops import conv, product, product_float
from sqcompile.ops.philox import stream_id
from sqcompile.ops.quantize import (
    absmax,
    clip_range,
    group_exponent,
    group_scale,
    outer_scale,
    quant_scale,
    quantize,
    quantize_stochastic,
)
from sqcompile.passes.assign_precision import Operand, ProductSpec
from sqcompile.passes.contraction import FLOAT_PRODUCTS, Contraction, contraction
from sqcompile.passes.editing import (
    Editor,
    arguments,
    calls,
    copy_graph,
    finish,
    is_call,
    replace,
    shape,
    target_of,
    value,
)
from sqcompile.passes.quantize_softmax import integers_of

aten = torch.ops.aten


def quantize_operands(module: GraphModule) -> GraphModule:
    """After this pass every product reads integers and yields int32 accumulators, followed by
    sq.dequantize. Weights and activations round to nearest even, but for what is integers times a
    scale already (softmax); gradients round stochastically with an outer scale on the free axes and
    a group exponent on the reduced axis (ShiftQuant). With groups an activation has a group
    exponent on the axis that its forward product reduces. Every quantised value has its bits and
    sign in meta["bits"] and meta["signed"]."""
    graph = copy_graph(module)
    editor = Editor(graph)
    rng = next(n for n in graph.graph.find_nodes(op="placeholder") if n.name == "rng")
    for node in calls(graph, *FLOAT_PRODUCTS):
        with editor.before(node):
            replace(node, _integer_product(editor, node, rng))
    return finish(graph)


def _integer_product(editor: Editor, node: Node, rng: Node) -> Node:
    spec: ProductSpec = node.meta["sq"]
    sources = [node.args[0], node.args[1]]
    integers: list[Node] = []
    scales: list[Node] = []
    shifts = _NO_SHIFTS
    for position, (source, operand) in enumerate(zip(sources, spec.operands, strict=True)):
        assert isinstance(source, Node)
        axes = contraction(node, position)
        if operand.kind == "gradient":
            found = _quantize_gradient(editor, source, spec, axes, rng, node)
        elif operand.tokens:
            found = _quantize_tokens(editor, source, operand, node)
        elif operand.groups > 1:
            found = _quantize_grouped(editor, source, operand, spec, node)
        else:
            found = _quantize_nearest(editor, source, operand, node)
        if found.shifts is not _NO_SHIFTS:
            shifts = found.shifts
        integers.append(found.q)
        scales += [_onto_result(editor, scale, axes, node) for scale in found.scales]
    call = _PRODUCTS[node.target](node, integers, shifts)
    acc = editor.call(*call, like=node, sq=spec, name=f"{spec.role}_acc")
    bias = _bias(editor, node)
    return editor.call(
        product.dequantize, acc, combined(editor, scales, node), bias, like=node, sq=spec
    )


@dataclass(frozen=True)
class _Shifts:
    """The exponents by which a product shifts its first operand, and their number of groups."""

    exponent: Node | None
    groups: int


_NO_SHIFTS = _Shifts(None, 1)


@dataclass(frozen=True)
class _Integers:
    """A quantised operand: its integers, its scales, the shifts that the product gives it."""

    q: Node
    scales: list[Node]
    shifts: _Shifts = _NO_SHIFTS


def _quantize_nearest(editor: Editor, source: Node, operand: Operand, node: Node) -> _Integers:
    ready = integers_of(source)
    if ready is not None:
        return _Integers(ready[0], [] if operand.folded else [ready[1]])
    reduced = [axis for axis in range(len(shape(source))) if axis not in operand.axes]
    r = _clipped(editor, editor.call(absmax, source, None, reduced, like=node), operand, node)
    q = _nearest(editor, source, operand, node, r)
    if operand.folded:
        return _Integers(q, [])
    grid = (operand.bits, operand.signed)
    return _Integers(q, [editor.call(quant_scale, r, *grid, 1, like=node)])


def _quantize_grouped(
    editor: Editor, source: Node, operand: Operand, spec: ProductSpec, node: Node
) -> _Integers:
    """ShiftQuant of an activation. fprop reduces the grouped axis and shifts; wgrad has it free,
    and reads the same integers with a scale for every channel."""
    every = list(range(len(shape(source))))
    free = [axis for axis in every if axis != operand.group_axis]
    per_channel = editor.call(absmax, source, None, free, like=node)
    whole = editor.call(absmax, per_channel, None, every, like=node)
    exponent = editor.call(group_exponent, per_channel, operand.groups, like=node)
    r = _clipped(editor, whole, operand, node)
    q = _nearest(editor, source, operand, node, r, exponent)
    grid = (operand.bits, operand.signed)
    if spec.role == "fprop":
        scale = editor.call(quant_scale, r, *grid, operand.groups, like=node)
        return _Integers(q, [scale], _Shifts(exponent, operand.groups))
    return _Integers(q, [editor.call(group_scale, r, exponent, *grid, like=node)])


def _quantize_tokens(editor: Editor, source: Node, operand: Operand, node: Node) -> _Integers:
    """ShiftQuant of an activation whose exponents differ from tokens to tokens. wgrad reduces the
    tokens, so the integers carry their shifts, and all products read them without."""
    rows, features = shape(source)
    layout = [rows // operand.tokens, operand.tokens, features]
    blocks = editor.call(aten.view.default, source, layout, like=node)
    each = editor.call(absmax, blocks, None, [1], like=node)
    whole = editor.call(absmax, each, None, [0, 1, 2], like=node)
    exponent = editor.call(group_exponent, each, operand.groups, like=node)
    r = _clipped(editor, whole, operand, node)
    grid = (operand.bits, operand.signed)
    q = editor.call(quantize, blocks, r, *grid, exponent, operand.groups, like=node)
    q = editor.call(
        aten.view.default,
        q,
        [rows, features],
        like=node,
        name=f"{_short(source)}_q",
        bits=operand.stored_bits,
        signed=operand.signed,
    )
    scale = editor.call(quant_scale, r, *grid, operand.groups, like=node)
    return _Integers(q, [editor.call(aten.view.default, scale, [1, 1], like=node)])


def _clipped(editor: Editor, r: Node, operand: Operand, node: Node) -> Node:
    if operand.clip == 1.0:
        return r
    return editor.call(clip_range, r, operand.clip, like=node)


def _nearest(
    editor: Editor, source: Node, operand: Operand, node: Node, *range_and_groups: Node
) -> Node:
    r, *exponent = range_and_groups
    return editor.call(
        quantize,
        source,
        r,
        operand.bits,
        operand.signed,
        *exponent,
        like=node,
        name=f"{_short(source)}_q",
        bits=operand.bits,
        signed=operand.signed,
    )


def _quantize_gradient(
    editor: Editor, g: Node, spec: ProductSpec, axes: Contraction, rng: Node, node: Node
) -> _Integers:
    every = list(range(len(shape(g))))
    bits, groups = spec.operands[0].bits, spec.groups
    outer = None
    if spec.outer_scales:
        reduced = [axis for axis in every if axis not in axes.outer_axes]
        outer = editor.call(absmax, g, None, reduced, like=node)
    exponent = None
    if groups > 1:
        kept = {*axes.inner, *_batch(axes)}
        free = [axis for axis in every if axis not in kept]
        per_channel = editor.call(absmax, g, outer, free, like=node)
        r = editor.call(absmax, per_channel, None, every, like=node)
        exponent = editor.call(group_exponent, per_channel, groups, like=node)
    else:
        r = editor.call(absmax, g, outer, every, like=node)
    q = editor.call(
        quantize_stochastic,
        g,
        r,
        outer,
        exponent,
        rng,
        bits,
        _stream(spec),
        like=node,
        name=f"{_short(g)}_q",
        bits=bits,
        signed=True,
    )
    scales = [editor.call(quant_scale, r, bits, True, groups, like=node)]
    if outer is not None:
        scales.append(editor.call(outer_scale, outer, like=node))
    return _Integers(q, scales, _NO_SHIFTS if exponent is None else _Shifts(exponent, groups))


def _stream(spec: ProductSpec) -> int:
    """dgrad and wgrad of a product with a weight round one gradient, by the same draws: their
    results are never multiplied with each other, so that the shared error biases nothing."""
    shared = spec.role == "wgrad" or spec.operands[1].kind == "weight"
    return stream_id(spec.module, "backward" if shared else spec.role, "gradient", spec.occurrence)


def _batch(axes: Contraction) -> tuple[int, ...]:
    """The batch axis of a batched product: each batch has group exponents of its own."""
    return (0,) if len(axes.outer) == 2 else ()


def _short(node: Node) -> str:
    return node.name.removesuffix("_q")


def _onto_result(editor: Editor, scale: Node, axes: Contraction, node: Node) -> Node:
    """Reshape a scale kept on an operand's axes so that it broadcasts to the product."""
    sizes = shape(scale)
    if is_call(node, product_float.conv_weight_grad) and not axes.outer and prod(sizes) > 1:
        return _onto_weight(editor, scale, node)
    layout = [1] * len(shape(node))
    for axis, result in axes.outer:
        layout[result] = sizes[axis]
    if layout == sizes:
        return scale
    return editor.call(aten.view.default, scale, layout, like=node)


def _onto_weight(editor: Editor, scale: Node, node: Node) -> Node:
    """A scale of every input channel, (1, 1, 1, C), in the layout of a weight's gradient
    (O, C / groups, KH, KW): outputs of a channel group have the channels of that group."""
    outputs, width = shape(node)[:2]
    groups = arguments(node)["groups"]
    each = outputs // groups
    if groups > 1 and each > 1:
        scale = editor.call(aten.view.default, scale, [groups, 1, width], like=node)
        scale = editor.call(aten.expand.default, scale, [groups, each, width], like=node)
        return editor.call(aten.reshape.default, scale, [outputs, width, 1, 1], like=node)
    return editor.call(aten.view.default, scale, [groups, width, 1, 1], like=node)


def combined(editor: Editor, scales: Sequence[Node], like: Node) -> list[Node]:
    """Multiply scales together on the small tensors, unless that would make a large one."""
    result: list[Node] = []
    for scale in sorted(scales, key=lambda node: prod(shape(node))):
        if result:
            both = torch.broadcast_shapes(value(result[-1]).shape, value(scale).shape)
            if prod(both) == max(prod(shape(result[-1])), prod(shape(scale))):
                result[-1] = editor.call(aten.mul.Tensor, result[-1], scale, like=like)
                continue
        result.append(scale)
    return result


def _bias(editor: Editor, node: Node) -> Node | None:
    bias = arguments(node).get("bias")
    if bias is None:
        return None
    assert isinstance(bias, Node)
    layout = [1] * len(shape(node))
    layout[-1] = shape(bias)[0]
    return editor.call(aten.view.default, bias, layout, like=node)


Call = tuple[Any, ...]


def _matmul(node: Node, q: list[Node], shifts: _Shifts) -> Call:
    given = arguments(node)
    transposes = (given["transpose_a"], given["transpose_b"])
    return (product.shift_matmul, *q, shifts.exponent, shifts.groups, *transposes, 0)


def _geometry(node: Node) -> tuple[Any, ...]:
    given = arguments(node)
    return tuple(given[name] for name in ("stride", "padding", "dilation", "groups"))


def _fprop(node: Node, q: list[Node], shifts: _Shifts) -> Call:
    given = () if shifts is _NO_SHIFTS else (shifts.exponent, shifts.groups)
    return (conv.conv_fprop, *q, *_geometry(node), 0, *given)


def _dgrad(node: Node, q: list[Node], shifts: _Shifts) -> Call:
    rest = (shape(node), *_geometry(node), 0)
    return (conv.conv_dgrad, *q, shifts.exponent, shifts.groups, *rest)


def _wgrad(node: Node, q: list[Node], shifts: _Shifts) -> Call:
    rest = (shape(node), *_geometry(node), 0)
    return (conv.conv_wgrad, *q, shifts.exponent, shifts.groups, *rest)


_PRODUCTS: dict[object, Callable[[Node, list[Node], _Shifts], Call]] = {
    target_of(product_float.matmul): _matmul,
    target_of(product_float.conv): _fprop,
    target_of(product_float.conv_input_grad): _dgrad,
    target_of(product_float.conv_weight_grad): _wgrad,
}
