"""Give every product its place in the model, its role and the bits of its operands."""

import operator
from dataclasses import dataclass, replace

import torch
from torch.fx import GraphModule, Node

from sqcompile import _torch_compat as compat
from sqcompile.errors import CaptureError
from sqcompile.ops import functions, lookup, pool, product_float, reduce, resample, softmax
from sqcompile.passes.contraction import FLOAT_PRODUCTS, contraction
from sqcompile.passes.editing import (
    arguments,
    calls,
    copy_graph,
    finish,
    is_call,
    parameter,
    shape,
    tainted,
)
from sqcompile.recipe import Precision, Recipe

aten = torch.ops.aten


@dataclass(frozen=True)
class Operand:
    """How one operand of a product is quantised.

    kind: "weight", "activation" or "gradient"; axes: those that keep a scale of their own;
    folded: the scale is in the other operand already; clip: the grid's range as a share of the
    absmax; limit: where an activation ends, in mean magnitudes, 0 for nowhere; groups: ShiftQuant
    groups of an activation, with an exponent for every index of group_axis, which the forward
    product reduces. tokens: rows of a linear layer's activation that share exponents, where not all
    do; its integers then carry their shifts.
    """

    kind: str
    bits: int
    signed: bool
    axes: tuple[int, ...] = ()
    folded: bool = False
    clip: float = 1.0
    groups: int = 1
    group_axis: int = 0
    tokens: int = 0
    limit: float = 0.0

    @property
    def stored_bits(self) -> int:
        """Of the integers that products read."""
        return self.bits + self.groups - 1 if self.tokens else self.bits


@dataclass(frozen=True)
class ProductSpec:
    """A product's place (dotted module path), role (fprop, dgrad, wgrad), operands in argument
    order, and the number of ShiftQuant groups of its gradient.

    occurrence: which of the module's products of this role it is; of the two gradients of a
    product with a weight, which of the module's forward products theirs is.
    """

    module: str
    role: str
    operands: tuple[Operand, Operand]
    groups: int
    outer_scales: bool
    occurrence: int


def assign_precision(module: GraphModule, recipe: Recipe) -> GraphModule:
    """After this pass every product has a ProductSpec in meta["sq"], and "module" and "role" in
    its metadata; a backward product has those of the forward product it belongs to."""
    graph = copy_graph(module)
    backward = tainted(graph)
    products = calls(graph, *FLOAT_PRODUCTS)
    forward = [node for node in products if node not in backward]
    weights = _weights(graph)
    partners: dict[int, tuple[Node, Precision]] = {}
    occurrences: dict[tuple[str, str], int] = {}
    for position, node in enumerate(forward):
        path = _path(node)
        precision = recipe.precision(path, position == 0, position == len(forward) - 1)
        operands = tuple(_forward_operand(node, i, weights, precision, recipe) for i in (0, 1))
        occurrence = _next(occurrences, path, "fprop")
        _attach(node, path, "fprop", operands, 1, recipe, occurrence)
        partners[node.meta["seq_nr"]] = node, precision
    for node in products:
        if node in backward:
            _backward(node, partners, weights, recipe, occurrences)
    return finish(graph)


def _attach(
    node: Node,
    path: str,
    role: str,
    operands: tuple[Operand, ...],
    groups: int,
    recipe: Recipe,
    occurrence: int,
) -> None:
    first, second = operands
    node.meta["sq"] = ProductSpec(
        path, role, (first, second), groups, recipe.outer_scales, occurrence
    )
    node.meta["module"], node.meta["role"] = path, role


def _next(occurrences: dict[tuple[str, str], int], path: str, role: str) -> int:
    found = occurrences[path, role] = occurrences.get((path, role), -1) + 1
    return found


def _path(node: Node) -> str:
    """The module that owns the weight, else the module whose forward made the call."""
    second = node.args[1]
    name = parameter(second) if isinstance(second, Node) else None
    return name.rpartition(".")[0] if name else compat.module_path(node)


def _weights(graph: GraphModule) -> set[Node]:
    """Values that come from parameters and constants alone: what weights are."""
    found: set[Node] = set()
    for node in graph.graph.nodes:
        computed = node.op in ("call_function", "get_attr")
        if parameter(node) is not None or (
            computed and all(source in found for source in node.all_input_nodes)
        ):
            found.add(node)
    return found


def _forward_operand(
    node: Node, position: int, weights: set[Node], precision: Precision, recipe: Recipe
) -> Operand:
    source = node.args[position]
    assert isinstance(source, Node)
    axes = contraction(node, position).outer_axes
    if source in weights:
        kept = axes if recipe.weight_granularity == "channel" else ()
        return Operand("weight", precision.weight_bits, True, kept)
    batch = (0,) if is_call(node, product_float.matmul) and len(axes) == 2 else ()
    unsigned = recipe.unsigned_activations and nonnegative(source)
    # products shift their first operand; groups of a batch would need a range for each
    beside_weight = position == 0 and not batch and node.args[1] in weights
    grouped = precision.activation_groups > 1 and beside_weight
    return Operand(
        "activation",
        precision.activation_bits,
        not unsigned,
        batch,
        clip=precision.activation_clip,
        groups=precision.activation_groups if grouped else 1,
        group_axis=contraction(node, position).inner[0] if grouped else 0,
        tokens=_tokens(node, recipe.activation_tokens) if grouped else 0,
        limit=precision.activation_limit if beside_weight else 0.0,
    )


def _tokens(node: Node, most: int) -> int:
    """Rows of a linear layer's input that share exponents. 0 where all do, and in a convolution."""
    if not most or not is_call(node, product_float.matmul):
        return 0
    source = node.args[0]
    assert isinstance(source, Node)
    return tokens_together(shape(source)[0], most)


def tokens_together(rows: int, most: int) -> int:
    """The largest number of rows, no larger than `most`, that divides all rows."""
    return max(count for count in range(1, min(most, rows) + 1) if rows % count == 0)


def _backward(
    node: Node,
    partners: dict[int, tuple[Node, Precision]],
    weights: set[Node],
    recipe: Recipe,
    occurrences: dict[tuple[str, str], int],
) -> None:
    found = partners.get(node.meta.get("seq_nr", -1))
    if found is None:
        raise CaptureError(
            f"{node.meta.get('stack_trace', '')}\n  a product of the backward pass "
            f"({node.target}) has no forward product; second derivatives are not supported."
        )
    partner, precision = found
    spec: ProductSpec = partner.meta["sq"]
    other = node.args[1]
    assert isinstance(other, Node)
    has_weight = any(operand.kind == "weight" for operand in spec.operands)
    is_wgrad = has_weight and other not in weights
    gradient = Operand("gradient", precision.gradient_bits, True)
    groups = precision.groups
    match = next((i for i in (0, 1) if partner.args[i] is other), None)
    if match is None:
        raise CaptureError(
            f"{node.meta.get('stack_trace', '')}\n  an operand of {node.target} in the backward "
            "pass is not the forward product's; report this model as a bug."
        )
    kept = spec.operands[match]
    role = "wgrad" if is_wgrad else "dgrad"
    occurrence = spec.occurrence if has_weight else _next(occurrences, spec.module, role)
    _attach(node, spec.module, role, (gradient, kept), groups, recipe, occurrence)


_SAME_SIGN = {
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.expand.default,
    aten.clone.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.flip.default,
    pool.max_pool2d.target,
    pool.avg_pool2d.target,
    lookup.take.target,
    reduce.ordered_sum.target,
    resample.resample.target,
}


_NEVER_NEGATIVE = (
    aten.relu.default,
    aten.abs.default,
    functions.exp,
    functions.sigmoid,
    softmax.softmax,
)


def nonnegative(node: Node) -> bool:
    """Whether a value is proven to have no negative element, from the ops that made it."""
    if node.op != "call_function":
        return False
    first = node.args[0] if node.args else None
    if is_call(node, *_NEVER_NEGATIVE):
        return True
    if is_call(node, aten.hardtanh.default, aten.clamp.default):
        ends = ("min_val", "max_val") if is_call(node, aten.hardtanh.default) else ("min", "max")
        low, high = (arguments(node)[name] for name in ends)
        return low is not None and float(low) >= 0.0 and (high is None or float(high) >= 0.0)
    if node.target in _SAME_SIGN or (node.target is operator.getitem and node.args[1] == 0):
        return isinstance(first, Node) and nonnegative(first)
    if is_call(node, aten.add.Tensor, aten.div.Tensor, aten.mul.Tensor):
        return all(
            nonnegative(a) if isinstance(a, Node) else float(a) >= 0.0  # type: ignore[arg-type]
            for a in node.args[:2]
        )
    if is_call(node, aten.where.ScalarOther):
        given = arguments(node)
        return nonnegative(given["self"]) and float(given["other"]) >= 0.0
    if is_call(node, aten.constant_pad_nd.default):
        assert isinstance(first, Node)
        return nonnegative(first) and float(arguments(node)["value"]) >= 0.0
    if is_call(node, aten.cat.default):
        return all(nonnegative(part) for part in arguments(node)["tensors"])
    return False


def folded(spec: ProductSpec, position: int) -> ProductSpec:
    """The spec with operand `position` marked as scaled elsewhere."""
    operands = list(spec.operands)
    operands[position] = replace(operands[position], folded=True)
    return replace(spec, operands=(operands[0], operands[1]))
