"""Matrix products beside PyTorch's: plain ones, and what group shifts add to a plain one."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from kernel_timing import Comparison, Run, compiled, traced
from torch import Tensor

from sqcompile.ops.product import shift_matmul_dequantize
from sqcompile.passes.assign_precision import Operand, ProductSpec

SHAPES = (
    (1024, 1024, 1024),
    (4096, 256, 576),
    (256, 2304, 4096),
    (4096, 576, 256),
    (8192, 64, 576),
)
"""Rows, columns, reduction."""


@dataclass(frozen=True)
class Case:
    """Operands of a product: a [m, k], unsigned or not, and b [n, k] (fprop, `transposed`) or
    [k, n] (dgrad) of some bits, and ShiftQuant groups of a."""

    bits: tuple[int, int]
    unsigned: bool
    transposed: bool
    groups: int = 1

    @property
    def label(self) -> str:
        """How the table names it."""
        a = f"{'u' if self.unsigned else 's'}{self.bits[0]}"
        groups = f" G={self.groups}" if self.groups > 1 else ""
        return f"{a} x s{self.bits[1]}{'^T' if self.transposed else ''}{groups}"


def comparisons(family: str) -> Iterator[Comparison]:
    """The comparisons of "gemm" (with torch) or "shift_gemm" (with our product without groups)."""
    for shape in SHAPES:
        if family == "gemm":
            yield _with_torch(shape, Case((8, 8), True, True))
            yield _with_torch(shape, Case((8, 8), False, True))
            continue
        for bits, groups in ((4, 4), (6, 3), (8, 4)):
            yield _with_plain(shape, Case((bits, bits), False, False, groups))


def product(shape: tuple[int, int, int], case: Case) -> tuple[Run, tuple[Tensor, ...]]:
    """Our kernel on random operands, and a and b."""
    m, n, k = shape
    highest = 2 ** (case.bits[0] - 1) - 1
    low, high = (0, 2 * highest + 1) if case.unsigned else (-highest, highest)
    a = torch.randint(low, high + 1, (m, k), dtype=torch.uint8 if case.unsigned else torch.int8)
    other = 2 ** (case.bits[1] - 1) - 1
    size = (n, k) if case.transposed else (k, n)
    b = torch.randint(-other, other + 1, size, dtype=torch.int8)
    exponent = torch.randint(0, case.groups, (1, k), dtype=torch.int8)
    scale = torch.rand(n)
    given = (a, b, exponent, scale) if case.groups > 1 else (a, b, scale)

    def call(*tensors: Tensor) -> Tensor:
        e = tensors[2] if case.groups > 1 else None
        rest = (e, case.groups, False, case.transposed, 0, [tensors[-1]], None, False)
        return shift_matmul_dequantize(tensors[0], tensors[1], *rest)

    graph = traced(call, *given)
    for node in graph.graph.nodes:
        if node.target is shift_matmul_dequantize.target:
            kinds = "activation" if case.unsigned else "gradient", "weight"
            operands = (
                Operand(kinds[0], case.bits[0], not case.unsigned),
                Operand(kinds[1], case.bits[1], True),
            )
            node.meta["sq"] = ProductSpec("", "fprop", operands, case.groups, False, 0)
    run = compiled(graph)
    return lambda: run(*given), (a, b)


def _with_torch(shape: tuple[int, int, int], case: Case) -> Comparison:
    m, n, k = shape
    ours, (a, b) = product(shape, case)
    signed = (a.to(torch.int16) - 128 if case.unsigned else a).to(torch.int8)
    row_major = b.t().contiguous()
    floats, halves = (a.float(), b.float()), (a.bfloat16(), b.bfloat16())
    peers: dict[str, dict[str, Run]] = {
        "int_mm": {
            "a @ b^T": lambda: torch._int_mm(signed, b.t()),
            "a @ b": lambda: torch._int_mm(signed, row_major),
        },
        "bf16": {
            "a @ b^T": lambda: halves[0] @ halves[1].t(),
            "a @ b": _plain(halves[0], halves[1].t().contiguous()),
        },
        "fp32": {
            "a @ b^T": lambda: floats[0] @ floats[1].t(),
            "a @ b": _plain(floats[0], floats[1].t().contiguous()),
        },
    }
    return Comparison("gemm", _label(shape, case), ours, peers, 2.0 * m * n * k)


def _plain(a: Tensor, b: Tensor) -> Run:
    return lambda: a @ b


def _with_plain(shape: tuple[int, int, int], case: Case) -> Comparison:
    m, n, k = shape
    ours, _ = product(shape, case)
    plain, _ = product(shape, Case(case.bits, case.unsigned, case.transposed))
    peers = {"plain": {"groups=1": plain}}
    return Comparison("shift_gemm", _label(shape, case), ours, peers, 2.0 * m * n * k)


def _label(shape: tuple[int, int, int], case: Case) -> str:
    return f"{'x'.join(map(str, shape))} {case.label}"
