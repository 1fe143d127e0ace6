"""Prove that no accumulator overflows, or split the reduction until none does."""

from torch.fx import GraphModule, Node

from sqcompile.errors import CaptureError
from sqcompile.ops.quantize import limits
from sqcompile.passes.assign_precision import Operand, ProductSpec
from sqcompile.passes.contraction import REDUCTIONS
from sqcompile.passes.editing import arguments, copy_graph, finish, set_arguments, update_value

INT32_LIMIT = 2**31
BIASED = 255
"""Largest stored value of a signed operand that a target stores biased by 128."""


def bound_accumulators(module: GraphModule) -> GraphModule:
    """After this pass every product has meta["bound"] < 2^31: the largest that a partial sum, or
    the offset of a biased operand, can become in one int32 accumulator, from the largest values
    the operands can be stored as, shifts included. Where the whole reduction does not fit,
    `k_chunk` splits it and the chunks are added in int64."""
    graph = copy_graph(module)
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target not in REDUCTIONS:
            continue
        reduction = REDUCTIONS[node.target]
        length, per_unit = reduction.length(node), reduction.unit(node)
        each = _stored_product(node.meta["sq"])
        if length * each < INT32_LIMIT:
            node.meta["bound"] = length * each
            continue
        units = (INT32_LIMIT - 1) // (each * per_unit)
        if units == 0:
            raise CaptureError(
                f"{node.meta.get('stack_trace', '')}\n  {node.target} adds {per_unit} products of "
                f"up to {each} in one unit of its reduction, which does not fit int32\n"
                "  use fewer bits or groups for this layer (a recipe rule), or a smaller input."
            )
        set_arguments(node, {**arguments(node), "k_chunk": units})
        update_value(node)
        node.meta["bound"] = units * per_unit * each
    return finish(graph)


def largest_accumulator(node: Node) -> int:
    """The largest magnitude that a product's true result can have."""
    first, second = node.meta["sq"].operands
    length: int = REDUCTIONS[node.target].length(node)
    return length * _largest(first, node.meta["sq"]) * _largest(second, node.meta["sq"])


def shift_of(operand: Operand, spec: ProductSpec) -> int:
    """The bits by which a product shifts an operand at most: wgrad takes activations as they are
    stored, and what is stored with its shifts has them."""
    if operand.kind == "gradient":
        return spec.groups - 1
    if operand.tokens:
        return 0
    return operand.groups - 1 if spec.role == "fprop" else 0


def _largest(operand: Operand, spec: ProductSpec) -> int:
    return limits(operand.stored_bits, operand.signed)[1] << shift_of(operand, spec)


def _stored_product(spec: ProductSpec) -> int:
    """Largest product of two stored operands, whichever of the signed ones a target biases."""
    first, second = (_largest(operand, spec) for operand in spec.operands)
    biased_first = max(first, BIASED) if spec.operands[0].signed else first
    biased_second = max(second, BIASED) if spec.operands[1].signed else second
    return max(biased_first * second, first * biased_second)
