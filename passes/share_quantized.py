"""Quantise a tensor that is quantised the same way twice only once."""

import operator

import torch
from torch.fx import GraphModule, Node

from sqcompile.ops import quantize
from sqcompile.ops.table import find
from sqcompile.passes.editing import copy_graph, finish, replace

aten = torch.ops.aten
_SHAPING = {
    aten.view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.expand.default,
    operator.getitem,
}
_FROM_SCALES = {aten.mul.Tensor}
_SCALES = (quantize.quant_scale, quantize.outer_scale, quantize.group_scale)
_PURE = {
    entry.target
    for entry in (
        quantize.absmax,
        quantize.clip_range,
        quantize.quantize,
        quantize.quantize_stochastic,
        quantize.quant_scale,
        quantize.outer_scale,
        quantize.group_exponent,
        quantize.group_scale,
    )
}


def share_quantized(module: GraphModule) -> GraphModule:
    """After this pass no two quantisers, scales or views have equal arguments: forward and
    backward read one quantised tensor. Stochastic quantisers of different streams stay apart."""
    graph = copy_graph(module)
    first: dict[str, Node] = {}
    for node in list(graph.graph.nodes):
        if not _shareable(node):
            continue
        key = f"{node.target}{node.args}{node.kwargs}"
        if key in first:
            replace(node, first[key])
        else:
            first[key] = node
    return finish(graph)


def _shareable(node: Node) -> bool:
    if node.op != "call_function":
        return False
    if node.target in _FROM_SCALES:
        return all(_is_scale(argument) for argument in node.args)
    return node.target in _PURE or node.target in _SHAPING


def _is_scale(argument: object) -> bool:
    if not isinstance(argument, Node):
        return False
    entry = find(argument.target)
    return entry in _SCALES or argument.target in _SHAPING
