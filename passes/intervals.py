"""What integers a value can hold, whatever the inputs: constants, limits, sums and choices."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from torch.fx import GraphModule, Node

from sqcompile.ops.lookup import take
from sqcompile.passes.editing import arguments, target_of, value

aten = torch.ops.aten

SAME_NUMBERS = (
    aten.view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.permute.default,
    aten.transpose.int,
    aten.expand.default,
    aten.flip.default,
    aten.clone.default,
    aten._to_copy.default,
)
"""Ops that give every number of their argument and no other, unless they round."""
Interval = tuple[int, int]
"""The lowest and the highest integer."""


class Intervals:
    """of(node): an interval of a graph's integer or truth value that holds all its elements.

    An op without a rule, and one that may leave its dtype and wrap, can give all of its dtype.
    """

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self._known: dict[Node, Interval] = {}

    def of(self, one: Any) -> Interval:
        """The interval of a node, or of a number among a node's arguments."""
        if not isinstance(one, Node):
            return one, one
        if one not in self._known:
            self._known[one] = self._found(one)
        return self._known[one]

    def _found(self, node: Node) -> Interval:
        low, high = most = _of_dtype(value(node).dtype)
        if node.op == "get_attr":
            held = getattr(self.module, str(node.target))
            found = (int(held.min()), int(held.max())) if held.numel() else most
        elif node.op == "call_function" and node.target in _RULES and _exact(node):
            found = _RULES[node.target](self, node, arguments(node))
        else:
            return most
        return found if low <= found[0] and found[1] <= high else most


def _of_dtype(dtype: torch.dtype) -> Interval:
    if dtype == torch.bool:
        return 0, 1
    limits = torch.iinfo(dtype)
    return limits.min, limits.max


def _exact(node: Node) -> bool:
    """Whether a call reads no floats: a NaN has no place in an interval."""
    given = arguments(node).values()
    return not any(isinstance(number, float) for number in given) and not any(
        value(source).dtype.is_floating_point for source in node.all_input_nodes
    )


Rule = Callable[[Intervals, Node, dict[str, Any]], Interval]


def _union(parts: Sequence[Interval]) -> Interval:
    return min(low for low, _ in parts), max(high for _, high in parts)


def _any_of(*names: str) -> Rule:
    """The elements of some arguments, tensors, numbers or lists of tensors."""

    def rule(known: Intervals, node: Node, given: dict[str, Any]) -> Interval:
        read = [given[name] for name in names]
        flat = [one for part in read for one in (part if isinstance(part, list) else [part])]
        return _union([known.of(one) for one in flat])

    return rule


def _combined(of: Callable[[int, int], int]) -> Rule:
    """An op of two operands that is monotonic in each: its corners."""

    def rule(known: Intervals, node: Node, given: dict[str, Any]) -> Interval:
        if given.get("alpha", 1) != 1:
            return _of_dtype(value(node).dtype)
        corners = product(known.of(given["self"]), known.of(given["other"]))
        ends = [of(a, b) for a, b in corners]
        return min(ends), max(ends)

    return rule


def _clamp(known: Intervals, node: Node, given: dict[str, Any]) -> Interval:
    low, high = known.of(given["self"])
    if given["min"] is not None:
        low, high = max(low, given["min"]), max(high, given["min"])
    if given["max"] is not None:
        low, high = min(low, given["max"]), min(high, given["max"])
    return low, high


def _negated(known: Intervals, node: Node, given: dict[str, Any]) -> Interval:
    low, high = known.of(given["self"])
    return -high, -low


def _magnitude(known: Intervals, node: Node, given: dict[str, Any]) -> Interval:
    low, high = known.of(given["self"])
    return max(low, -high, 0), max(-low, high)


def _summed(known: Intervals, node: Node, given: dict[str, Any]) -> Interval:
    low, high = known.of(given["self"])
    count = value(given["self"]).numel() // max(value(node).numel(), 1)
    return low * count, high * count


_ONE = _any_of("self")
_SUM, _DIFFERENCE = _combined(lambda a, b: a + b), _combined(lambda a, b: a - b)
_PRODUCT = _combined(lambda a, b: a * b)

_RULES: dict[object, Rule] = {
    **dict.fromkeys((*SAME_NUMBERS, aten.slice.Tensor, aten.select.int), _ONE),
    aten.full.default: _any_of("fill_value"),
    aten.cat.default: _any_of("tensors"),
    aten.constant_pad_nd.default: _any_of("self", "value"),
    aten.where.self: _any_of("self", "other"),
    aten.where.ScalarOther: _any_of("self", "other"),
    aten.where.Scalar: _any_of("self", "other"),
    target_of(take): _any_of("x"),
    aten.clamp.default: _clamp,
    aten.add.Tensor: _SUM,
    aten.add.Scalar: _SUM,
    aten.sub.Tensor: _DIFFERENCE,
    aten.sub.Scalar: _DIFFERENCE,
    aten.mul.Tensor: _PRODUCT,
    aten.mul.Scalar: _PRODUCT,
    aten.neg.default: _negated,
    aten.abs.default: _magnitude,
    aten.sum.default: _summed,
    aten.sum.dim_IntList: _summed,
}
"""What is behind an op: the integer ops that have kernels. A step has no kernel for others, such
as argmax, and comparisons are of the dtype bool."""
