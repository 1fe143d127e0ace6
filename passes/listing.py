"""The records of a graph's nodes (`sqcompile.passes.entries`)."""

import math
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from sqcompile._torch_compat import module_path
from sqcompile.passes.assign_precision import Operand, ProductSpec
from sqcompile.passes.editing import arguments, tainted
from sqcompile.passes.entries import CONSTANT, ITEM, OUTPUT, PLACEHOLDER, Code, Entry, Ref, Tensor
from sqcompile.passes.printing import dtype_name, op_name, source_line

_PLAIN = (bool, int, float, str, type(None))

_OF_CHANNELS = ("sq.conv", "sq.conv_input_grad", "sq.conv_weight_grad", "sq.group_norm")
"""Ops whose `groups` are of channels, not ShiftQuant's."""


def listing(module: GraphModule, part: str = "") -> list[Entry]:
    """A record of every node, in order; `part` is what all of them belong to, "forward" or
    "backward", empty for a joint graph."""
    backward = set() if part else tainted(module)
    return [
        _entry(node, part or ("backward" if node in backward else "forward"))
        for node in module.graph.nodes
    ]


def _entry(node: Node, part: str) -> Entry:
    value = node.meta.get("val") if node.op != "output" else ()
    several = isinstance(value, (tuple, list))
    values: Iterable[Any] = value if isinstance(value, (tuple, list)) else (value,)
    calls = node.op == "call_function"
    return Entry(
        node.name,
        _op(node),
        _args(node),
        tuple(map(_tensor, values)),
        several,
        node.meta.get("bits"),
        _operands(node),
        shift_groups(node) if calls else None,
        node.meta.get("role", ""),
        node.meta.get("module") or (module_path(node) if calls else ""),
        source_line(node) if calls else "",
        "" if node.op == "output" else part,
    )


def _op(node: Node) -> str:
    if node.op == "call_function":
        return ITEM if node.target is operator.getitem else op_name(node)
    return {"placeholder": PLACEHOLDER, "output": OUTPUT, "get_attr": CONSTANT}[node.op]


def _args(node: Node) -> tuple[tuple[str, Any], ...]:
    if node.op == "get_attr":
        return (("", Code(str(node.target))),)
    if node.op == "placeholder":
        return ()
    target = node.target
    names = (
        [argument.name for argument in target._schema.arguments]
        if isinstance(target, torch._ops.OpOverload)
        else [""] * len(node.args)
    )
    positional = zip(names, node.args, strict=False)
    return tuple((name, _plain(value)) for name, value in [*positional, *node.kwargs.items()])


def _plain(value: Any) -> Any:
    if isinstance(value, Node):
        return Ref(value.name)
    if isinstance(value, (tuple, list)):
        return tuple(_plain(one) for one in value)
    if isinstance(value, float) and not math.isfinite(value):
        return Code(repr(value))
    return value if isinstance(value, _PLAIN) else Code(str(value))


def _tensor(value: Any) -> Tensor:
    if isinstance(value, torch.Tensor):
        return Tensor(dtype_name(value.dtype), tuple(map(int, value.shape)))
    return Tensor(type(value).__name__, ())


def _operands(node: Node) -> tuple[str, ...]:
    spec = node.meta.get("sq")
    return tuple(map(operand_bits, spec.operands)) if isinstance(spec, ProductSpec) else ()


def operand_bits(operand: Operand) -> str:
    """`u4`: sign and bits of what a product reads; `s4<<2` where its integers carry shifts."""
    shifts = f"<<{operand.groups - 1}" if operand.tokens else ""
    return f"{'s' if operand.signed else 'u'}{operand.bits}{shifts}"


def shift_groups(node: Node) -> int | None:
    """The ShiftQuant groups that a call makes exponents of or shifts by; None for one that has
    nothing to do with them."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "sq":
        return None
    given = arguments(node)
    if "exponent" in given:
        exponent = given["exponent"]
        if not isinstance(exponent, Node):
            return None
        groups = given.get("shift_groups", given.get("groups"))
        return groups if isinstance(groups, int) and groups > 1 else _made_with(exponent)
    groups = given.get("groups")
    return groups if isinstance(groups, int) and op_name(node) not in _OF_CHANNELS else None


def _made_with(exponent: Node) -> int | None:
    """The number of groups of the call that gave an exponent."""
    maker = exponent.args[0] if exponent.target is operator.getitem else exponent
    return shift_groups(maker) if isinstance(maker, Node) else None
