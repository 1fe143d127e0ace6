"""Replace every float product by quantisers, an integer product and a dequantise."""

from collections.abc import Callable, Sequence
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
    scale already (softmax); gradients round stochastically
    with an outer scale on the free axes and a group exponent on the reduced axis (ShiftQuant).
    Every quantised value has its bits and sign in meta["bits"] and meta["signed"]."""
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
    exponent: Node | None = None
    for position, (source, operand) in enumerate(zip(sources, spec.operands, strict=True)):
        assert isinstance(source, Node)
        axes = contraction(node, position)
        rank = len(shape(node))
        if operand.kind == "gradient":
            q, exponent, found = _quantize_gradient(editor, source, spec, axes, rng, node)
        else:
            q, found = _quantize_nearest(editor, source, operand, node)
        integers.append(q)
        scales += [_onto_result(editor, scale, axes, rank, node) for scale in found]
    call = _PRODUCTS[node.target](node, integers, exponent, spec)
    acc = editor.call(*call, like=node, sq=spec, name=f"{spec.role}_acc")
    bias = _bias(editor, node)
    return editor.call(
        product.dequantize, acc, combined(editor, scales, node), bias, like=node, sq=spec
    )


def _quantize_nearest(
    editor: Editor, source: Node, operand: Operand, node: Node
) -> tuple[Node, list[Node]]:
    ready = integers_of(source)
    if ready is not None:
        return ready[0], [] if operand.folded else [ready[1]]
    reduced = [axis for axis in range(len(shape(source))) if axis not in operand.axes]
    r = editor.call(absmax, source, None, reduced, like=node)
    if operand.clip != 1.0:
        r = editor.call(clip_range, r, operand.clip, like=node)
    q = editor.call(
        quantize,
        source,
        r,
        operand.bits,
        operand.signed,
        like=node,
        name=f"{_short(source)}_q",
        bits=operand.bits,
        signed=operand.signed,
    )
    if operand.folded:
        return q, []
    return q, [editor.call(quant_scale, r, operand.bits, operand.signed, 1, like=node)]


def _quantize_gradient(
    editor: Editor, g: Node, spec: ProductSpec, axes: Contraction, rng: Node, node: Node
) -> tuple[Node, Node | None, list[Node]]:
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
    return q, exponent, scales


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


def _onto_result(editor: Editor, scale: Node, axes: Contraction, rank: int, like: Node) -> Node:
    """Reshape a scale kept on an operand's axes so that it broadcasts to the product."""
    sizes = shape(scale)
    layout = [1] * rank
    for axis, result in axes.outer:
        layout[result] = sizes[axis]
    if layout == sizes:
        return scale
    return editor.call(aten.view.default, scale, layout, like=like)


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


def _matmul(node: Node, q: list[Node], exponent: Node | None, spec: ProductSpec) -> Call:
    given = arguments(node)
    groups = spec.groups if exponent is not None else 1
    transposes = (given["transpose_a"], given["transpose_b"])
    return (product.shift_matmul, *q, exponent, groups, *transposes, 0)


def _geometry(node: Node) -> tuple[Any, ...]:
    given = arguments(node)
    return tuple(given[name] for name in ("stride", "padding", "dilation", "groups"))


def _fprop(node: Node, q: list[Node], exponent: Node | None, spec: ProductSpec) -> Call:
    return (conv.conv_fprop, *q, *_geometry(node), 0)


def _dgrad(node: Node, q: list[Node], exponent: Node | None, spec: ProductSpec) -> Call:
    groups = spec.groups if exponent is not None else 1
    return (conv.conv_dgrad, *q, exponent, groups, shape(node), *_geometry(node), 0)


def _wgrad(node: Node, q: list[Node], exponent: Node | None, spec: ProductSpec) -> Call:
    groups = spec.groups if exponent is not None else 1
    return (conv.conv_wgrad, *q, exponent, groups, shape(node), *_geometry(node), 0)


_PRODUCTS: dict[object, Callable[[Node, list[Node], Node | None, ProductSpec], Call]] = {
    target_of(product_float.matmul): _matmul,
    target_of(product_float.conv): _fprop,
    target_of(product_float.conv_input_grad): _dgrad,
    target_of(product_float.conv_weight_grad): _wgrad,
}
