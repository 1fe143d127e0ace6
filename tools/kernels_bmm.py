"""Products of attention, one matrix a batch and head, beside PyTorch's bmm.

Integers of 4 bits, a scale for every batch and head, and ShiftQuant exponents of their own in the
gradients: a GPT of width 512 (8 heads, 4 x 128 tokens) and a ViT-Tiny (3 heads, 16 x 65 tokens).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from kernel_timing import Comparison, Run, compiled, traced
from torch import Tensor

from sqcompile.ops.product import shift_matmul_dequantize
from sqcompile.passes.assign_precision import Operand, ProductSpec

SHAPES = ((32, 128, 64), (48, 65, 64))
"""(Batches times heads, tokens, width of a head)."""
BITS, GROUPS = 4, 4


@dataclass(frozen=True)
class Product:
    """op(a) @ op(b): transpositions, and whether a is a gradient with groups."""

    label: str
    transposed: tuple[bool, bool]
    gradient: bool

    def sizes(self, tokens: int, width: int) -> tuple[int, int, int]:
        """m, n, k: what is `tokens` long and what is not."""
        return {
            "scores": (tokens, tokens, width),
            "d probabilities": (tokens, tokens, width),
            "d value": (width, tokens, tokens),
        }.get(self.label, (tokens, width, tokens))


PRODUCTS = (
    Product("scores", (False, True), False),
    Product("output", (False, False), False),
    Product("d probabilities", (False, True), True),
    Product("d value", (True, False), True),
    Product("d query", (False, False), True),
    Product("d key", (True, False), True),
)


def comparisons(family: str) -> Iterator[Comparison]:
    """Both products of attention and the four of their gradients."""
    for batch, tokens, width in SHAPES:
        for product in PRODUCTS:
            m, n, k = product.sizes(tokens, width)
            operands = _operands(product, batch, m, n, k)
            peers = {
                name: {"": _peer(product, *(one.to(dtype) for one in operands))}
                for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
            }
            label = f"{batch}x{m}x{n}x{k} {product.label}"
            yield Comparison(
                family, label, _ours(product, *operands), peers, 2.0 * batch * m * n * k
            )


def _operands(product: Product, batch: int, m: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    high = 2 ** (BITS - 1) - 1
    of_a, of_b = product.transposed
    a, b = (
        torch.randint(-high, high + 1, (batch, *shape), dtype=torch.int8)
        for shape in ((k, m) if of_a else (m, k), (n, k) if of_b else (k, n))
    )
    return a, b


def _ours(product: Product, a: Tensor, b: Tensor) -> Run:
    of_a, of_b = product.transposed
    groups = GROUPS if product.gradient else 1
    rows = a.shape[2 if of_a else 1]
    scales = [torch.rand(len(a), 1, 1)]
    given = [a, b]
    if product.gradient:
        scales.append(torch.rand(len(a), rows, 1))
        along = a.shape[1 if of_a else 2]
        size = (len(a), along, 1) if of_a else (len(a), 1, along)
        given.append(torch.randint(0, groups, size, dtype=torch.int8))
    given += scales

    def call(*tensors: Tensor) -> Tensor:
        exponent = tensors[2] if product.gradient else None
        last = list(tensors[-len(scales) :])
        rest = (exponent, groups, of_a, of_b, 0, last, None, False)
        return shift_matmul_dequantize(tensors[0], tensors[1], *rest)

    graph = traced(call, *given)
    for node in graph.graph.nodes:
        if node.target is shift_matmul_dequantize.target:
            kind = "gradient" if product.gradient else "activation"
            operands = Operand(kind, BITS, True), Operand("activation", BITS, True)
            role = "dgrad" if product.gradient else "fprop"
            node.meta["sq"] = ProductSpec("", role, operands, groups, False, 0)
    run = compiled(graph)
    return lambda: run(*given)


def _peer(product: Product, a: Tensor, b: Tensor) -> Run:
    of_a, of_b = product.transposed
    left = a.transpose(1, 2) if of_a else a
    right = b.transpose(1, 2) if of_b else b
    return lambda: torch.bmm(left, right)
