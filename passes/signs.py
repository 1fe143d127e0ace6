"""What is known of signs: scales that are never negative, readers that see no sign of a zero."""

import operator

import torch
from torch.fx import Node

from sqcompile.ops import quantize
from sqcompile.passes.editing import arguments, target_of

aten = torch.ops.aten

_SCALES = {
    target_of(one)
    for one in (quantize.quant_scale, quantize.group_scale, quantize.outer_scale, quantize.absmax)
}
_ITEMS = {
    target_of(quantize.quantize_rows): (1, 2),
    target_of(quantize.shift_quantize): (2, 3, 4),
}
"""The outputs of ops with several that are scales or absmaxes."""
_SAME = {
    aten.view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.unsqueeze.default,
    aten.expand.default,
}
_BLIND = {
    target_of(quantize.quantize),
    target_of(quantize.quantize_stochastic),
    target_of(quantize.absmax),
    aten.gt.Scalar,
}


def never_negative(node: object) -> bool:
    """Is a float operand, whatever the inputs, a tensor without a negative number and a -0? It is a
    number above 0, a scale of a quantiser, or such ones multiplied."""
    if isinstance(node, int | float):
        return node > 0
    if not isinstance(node, Node) or node.op != "call_function":
        return False
    if node.target is operator.getitem:
        source, index = node.args
        return isinstance(source, Node) and index in _ITEMS.get(source.target, ())
    if node.target is aten.mul.Tensor:
        return all(map(never_negative, node.args))
    if node.target in _SAME:
        return never_negative(node.args[0])
    return node.target in _SCALES


def sees_no_zeros_sign(user: Node, one: Node) -> bool:
    """Does a reader of `one`, which is its first argument, give the same for 0 and -0?"""
    return user.target in _BLIND and next(iter(arguments(user).values())) is one
