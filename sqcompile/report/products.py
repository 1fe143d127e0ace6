"""The multiply-accumulates of a step: every product, its size, and whether it is in integers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils.flop_counter import flop_registry

from sqcompile.passes.assign_precision import ProductSpec
from sqcompile.passes.editing import arguments, shape
from sqcompile.passes.listing import operand_bits
from sqcompile.passes.printing import op_name, source_line

_INTEGERS = (torch.int8, torch.uint8)
_SUFFIXES = ("_sums", "_absmax", "_dequantize")
"""What names of products end with that do more than multiply, the last part first."""


@dataclass(frozen=True)
class Product:
    """One product of a graph.

    pass_: "forward" or "backward"; op: short name; role: fprop, dgrad, wgrad or "" when unknown;
    module: dotted path; line: the user's source line; shapes: operands and result; macs:
    multiply-accumulates, padding counted like data; operands: ("u4", "s4"), sign and bits, with
    "<<2" where the integers carry shifts of so many bits, or dtypes of a product in float;
    groups: ShiftQuant groups; integer: reads integers; window: stride, padding, dilation and
    channel groups of a convolution, else empty.
    """

    node: str
    pass_: str
    op: str
    role: str
    module: str
    line: str
    shapes: tuple[tuple[int, ...], ...]
    macs: int
    operands: tuple[str, str]
    groups: int
    integer: bool
    window: tuple[Any, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The product as JSON-able data."""
        data = dict(vars(self))
        data["pass"] = data.pop("pass_")
        data["shapes"] = [list(sizes) for sizes in self.shapes]
        data["operands"] = list(self.operands)
        data["window"] = list(self.window)
        return data


def products(graph: GraphModule, which: str) -> list[Product]:
    """Every product of a forward or backward graph (`which`), in order; those left in float
    included, whichever op they are."""
    return [_product(node, which, macs, operands) for node, macs, operands in _found(graph)]


def _found(graph: GraphModule) -> Iterator[tuple[Node, int, tuple[Node, Node]]]:
    for node in graph.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target.namespace == "sq":
            name = node.target._schema.name.split("::")[1]
            for suffix in _SUFFIXES:
                name = name.removesuffix(suffix)
            if name in _MACS:
                yield node, _MACS[name](node), (node.args[0], node.args[1])
        elif node.target.overloadpacket in flop_registry:
            operands = [n for n in node.all_input_nodes if n.meta["val"].dim() > 1]
            yield node, _aten_macs(node), (operands[0], operands[-1])


def _aten_macs(node: Node) -> int:
    """Multiply-accumulates of an ATen op that no pass rewrote, by torch's own count."""
    assert isinstance(node.target, torch._ops.OpOverload)
    count = flop_registry[node.target.overloadpacket]
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    return int(count(*args, **kwargs, out_val=node.meta["val"])) // 2


def _product(node: Node, which: str, macs: int, operands: tuple[Node, Node]) -> Product:
    spec = node.meta.get("sq")
    integer = all(operand.meta["val"].dtype in _INTEGERS for operand in operands)
    described = [_dtype(operand) for operand in operands]
    if integer and isinstance(spec, ProductSpec):
        described = [operand_bits(operand) for operand in spec.operands]
    return Product(
        node.name,
        which,
        op_name(node),
        node.meta.get("role", ""),
        node.meta.get("module", ""),
        source_line(node),
        (*(tuple(shape(operand)) for operand in operands), tuple(_result_shape(node))),
        macs,
        (described[0], described[1]),
        _groups(node),
        integer,
        _window(node),
    )


def _window(node: Node) -> tuple[Any, ...]:
    given = arguments(node)
    if "dilation" not in given:
        return ()
    return (*(list(given[name]) for name in ("stride", "padding", "dilation")), given["groups"])


def _dtype(node: Node) -> str:
    return str(node.meta["val"].dtype).removeprefix("torch.")


def _result_shape(node: Node) -> list[int]:
    value = node.meta["val"]
    return list((value[0] if isinstance(value, tuple | list) else value).shape)


def _groups(node: Node) -> int:
    """ShiftQuant groups that the op shifts by: 1 without exponents."""
    given = arguments(node)
    if given.get("exponent") is None:
        return 1
    return int(given["shift_groups"] if "shift_groups" in given else given["groups"])


def _matmul(node: Node) -> int:
    given = arguments(node)
    inner = shape(given["a"])[-2 if given["transpose_a"] else -1]
    return prod(_result_shape(node)) * inner


def _fprop(node: Node) -> int:
    return prod(_result_shape(node)) * prod(shape(arguments(node)["w"])[1:])


def _dgrad(node: Node) -> int:
    given = arguments(node)
    return prod(shape(given["g"])) * prod(shape(given["w"])[1:])


def _wgrad(node: Node) -> int:
    return prod(shape(arguments(node)["g"])) * prod(shape(node)[1:])


_MACS: dict[str, Callable[[Node], int]] = {
    "shift_matmul": _matmul,
    "matmul": _matmul,
    "conv_fprop": _fprop,
    "conv": _fprop,
    "conv_dgrad": _dgrad,
    "conv_input_grad": _dgrad,
    "conv_wgrad": _wgrad,
    "conv_weight_grad": _wgrad,
}
"""How to count, by op; float forms count like the integer ones."""
