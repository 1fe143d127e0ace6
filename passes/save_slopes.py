"""Quantise the slopes of smooth activations: backward multiplies by a few bits."""

import numpy as np
import torch
from torch.fx import GraphModule, Node

from sqcompile.ops import activation
from sqcompile.passes.editing import (
    Editor,
    arguments,
    calls,
    copy_graph,
    finish,
    is_call,
    replace,
    tainted,
    target_of,
)
from sqcompile.recipe import Recipe

aten = torch.ops.aten
Range = tuple[float, float, float]
"""(lowest, highest, flat): the least and the largest slope, and the slope of a flat end."""
RANGES: dict[object, Range] = {
    target_of(op): found
    for op, found in {
        activation.silu_slope: (-0.09984, 1.09984, 1.0),
        activation.hardswish_slope: (-0.5, 1.5, 1.0),
        activation.tanh_slope: (0.0, 1.0, 1.0),
        activation.sigmoid_slope: (0.0, 0.25, 0.25),
    }.items()
}
GELU: dict[bool, Range] = {False: (-0.128905, 1.128905, 1.0), True: (-0.128994, 1.128994, 1.0)}


def save_slopes(module: GraphModule, recipe: Recipe) -> GraphModule:
    """After this pass no slope crosses to backward in float: forward quantises it in
    `activation_saved_bits` on a grid that has 0 and the slope of a flat end exactly, and the
    gradient is multiplied by sq.slope_backward. A slope whose operands backward reads anyway is
    computed there, from them, and costs no memory."""
    graph = copy_graph(module)
    editor = Editor(graph)
    backward = tainted(graph)
    for node in calls(graph, *RANGES, activation.gelu_slope, activation.elu_slope):
        if all(_crosses(source, backward) for source in node.all_input_nodes):
            _move(node, backward)
            continue
        bits = recipe.activation_saved_bits
        low, high, levels, anchor = grid(*_range(node), bits)
        with editor.after(node):
            q = editor.call(
                activation.quantize_slope, node, levels / anchor, low, high,
                like=node, name=f"{node.name}_q", bits=bits, signed=False,
            )  # fmt: skip
        for user in list(node.users):
            if not is_call(user, aten.mul.Tensor):
                continue
            g = user.args[0]
            with editor.before(user):
                step = anchor / levels
                replace(user, editor.call(activation.slope_backward, g, q, low, step, like=user))
    return finish(graph)


def _crosses(source: Node, backward: set[Node]) -> bool:
    """Whether backward reads a value of forward."""
    return any(user in backward for user in source.users)


def _move(node: Node, backward: set[Node]) -> None:
    """Let backward compute a slope, before its reader."""
    node.meta["backward"] = True
    next(user for user in node.users if user in backward).prepend(node)


def _range(node: Node) -> Range:
    if is_call(node, activation.gelu_slope):
        return GELU[arguments(node)["approximate"]]
    if is_call(node, activation.elu_slope):
        given = arguments(node)
        curve = given["alpha"] * given["scale"] * given["input_scale"]
        return min(curve, 0.0), max(given["scale"], curve), given["scale"]
    return RANGES[node.target]


def grid(lowest: float, highest: float, flat: float, bits: int) -> tuple[int, int, int, float]:
    """(low, high, levels, anchor): the finest grid of 2^bits steps of anchor / levels, for slopes
    between steps low and high, on which `flat`, the anchor, is exact in float32. Where so few bits
    reach no `flat`, the whole range is the anchor."""
    for levels in range(int(2**bits * flat / (highest - min(lowest, 0.0))) + 2, 0, -1):
        low, high = round(lowest * levels / flat), round(highest * levels / flat)
        step = np.float32(flat / levels)
        if high - low < 2**bits and np.float32(levels) * step == np.float32(flat):
            return low, high, levels, flat
    return grid(lowest, highest, highest - lowest, bits)
