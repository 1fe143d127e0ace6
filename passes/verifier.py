"""What must hold between passes: checked after every one of them."""

from collections.abc import Callable

import torch
from torch.fx import GraphModule, Node

from sqcompile.errors import SqError
from sqcompile.ops import norm_float, norm_gradient, quantize, quantize_pair
from sqcompile.ops.table import find
from sqcompile.passes.bound_accumulators import INT32_LIMIT, shift_of
from sqcompile.passes.contraction import FLOAT_PRODUCTS, REDUCTIONS
from sqcompile.passes.editing import arguments, calls
from sqcompile.recipe import WIDEST_ACTIVATION

INTEGER = (torch.int8, torch.uint8)
_WIDEST = {"weight": 8, "activation": WIDEST_ACTIVATION, "gradient": 32}
"""Bits of a product's first operand with its shift, by kind."""


class BrokenInvariant(SqError):
    """A pass left a graph that breaks a rule of the house: a bug of the compiler."""


def verify(module: GraphModule, established: frozenset[str]) -> None:
    """Check a graph after a pass; `established` names the invariants that hold from here on.

    Always: the graph is well formed, every node has a value, and ops of the table have the
    shapes and dtypes that their meta function gives. Raises BrokenInvariant naming the node.
    """
    module.graph.lint()
    for node in module.graph.nodes:
        if node.op == "call_function":
            _has_value(node)
            _agrees_with_meta(node)
    for name in established:
        CHECKS[name](module)


def _fail(node: Node, what: str) -> None:
    raise BrokenInvariant(f"{node.format_node()}\n  {what}\n  {node.meta.get('stack_trace', '')}")


def _has_value(node: Node) -> None:
    gives = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.returns
    if "val" not in node.meta and gives:  # an assertion gives nothing
        _fail(node, "has no shape and dtype")


def _agrees_with_meta(node: Node) -> None:
    entry = find(node.target)
    if entry is None or entry.meta_function is None:
        return
    given = torch.fx.node.map_arg(tuple(arguments(node).values()), lambda n: n.meta["val"])
    expected, actual = entry.outputs(*given), node.meta["val"]
    both = zip(expected, _listed(actual), strict=True)
    for position, ((shape, dtype), value) in enumerate(both):
        if shape != tuple(value.shape) or dtype != value.dtype:
            _fail(node, f"output {position} is {value.dtype}{list(value.shape)}, by its definition "
                  f"{dtype}{list(shape)}")  # fmt: skip


def _listed(value: object) -> list[torch.Tensor]:
    return list(value) if isinstance(value, (list, tuple)) else [value]  # type: ignore[list-item]


def _products_have_precision(module: GraphModule) -> None:
    for node in calls(module, *FLOAT_PRODUCTS):
        if "sq" not in node.meta:
            _fail(node, "is a product without a precision")


def _no_float_product(module: GraphModule) -> None:
    for node in calls(module, *FLOAT_PRODUCTS):
        _fail(node, "is a product that reads floats")
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in REDUCTIONS:
            _reads_integers(node)


def _reads_integers(node: Node) -> None:
    spec = node.meta["sq"]
    for operand, source in zip(spec.operands, node.args[:2], strict=True):
        assert isinstance(source, Node)
        dtype = source.meta["val"].dtype
        if dtype not in INTEGER:
            _fail(node, f"reads {source.name}, which is {dtype}")
        bits, signed = operand.stored_bits, operand.signed
        if source.meta.get("bits") != bits or source.meta.get("signed") != signed:
            _fail(node, f"expects {source.name} in {bits} bits, signed {signed}")
    first = spec.operands[0]
    shift, given = shift_of(first, spec), arguments(node)
    done = given["shift_groups" if "shift_groups" in given else "groups"] - 1
    if done != shift or (given["exponent"] is None) != (shift == 0):
        _fail(node, f"shifts by {done} bits at most, its operand by {shift}")
    if first.stored_bits + shift > _WIDEST[first.kind]:
        _fail(node, f"shifts {first.stored_bits} bits by {shift}")


def _no_float_norm(module: GraphModule) -> None:
    for node in calls(
        module,
        norm_float.batch_norm,
        norm_float.layer_norm,
        norm_float.group_norm,
        norm_float.batch_norm_backward,
        norm_float.layer_norm_backward,
        norm_float.group_norm_backward,
    ):
        _fail(node, "is a norm in float")


def _no_dangling_quantizer(module: GraphModule) -> None:
    for node in calls(module, quantize.quantize, quantize.quantize_stochastic):
        if not node.users:
            _fail(node, "quantises what nothing reads")
    for node in calls(module, quantize.shift_quantize):
        _reads_outputs(node, 0)
    for node in calls(
        module,
        quantize_pair.shift_quantize_pair,
        norm_gradient.l1_batch_norm_backward_quantize,
    ):
        _reads_outputs(node, 0, quantize_pair.PER_QUANTIZER)


def _reads_outputs(node: Node, *places: int) -> None:
    if not {item.args[1] for item in node.users}.issuperset(places):
        _fail(node, "quantises what nothing reads")


def _bounded(module: GraphModule) -> None:
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in REDUCTIONS:
            bound = node.meta.get("bound")
            if bound is None or bound >= INT32_LIMIT:
                _fail(node, f"has accumulators bounded by {bound}, not below 2^31")


CHECKS: dict[str, Callable[[GraphModule], None]] = {
    "products have a precision": _products_have_precision,
    "products read integers": _no_float_product,
    "norms read integers": _no_float_norm,
    "no dangling quantiser": _no_dangling_quantizer,
    "accumulators are bounded": _bounded,
}
