"""Both gradients of a linear layer from floats to floats, beside bf16 with its casts.

dX: absmax and quantisation of the weight and of the gradient, product, scales. dW: the input was
saved in 4 bits, as forward leaves it, and is unpacked. The passes of a compiled step make both
graphs, so that this measures what a step runs.
"""

from collections.abc import Callable, Iterator
from functools import reduce

import torch
from kernel_timing import Comparison, compiled, traced
from torch import Tensor
from torch.fx import GraphModule

from sqcompile._torch_compat import Port
from sqcompile.ops.product_float import matmul
from sqcompile.passes.assign_precision import Operand, ProductSpec
from sqcompile.passes.bound_accumulators import bound_accumulators
from sqcompile.passes.editing import calls
from sqcompile.passes.fold_weight_scales import fold_weight_scales
from sqcompile.passes.fuse_epilogues import fuse_epilogues
from sqcompile.passes.fuse_quantizers import fuse_quantizers
from sqcompile.passes.pack_saved import pack_saved
from sqcompile.passes.partition import partition
from sqcompile.passes.quantize_operands import quantize_operands
from sqcompile.passes.share_quantized import share_quantized

SHAPES = ((1024, 1024, 1024), (4096, 256, 576), (8192, 64, 576), (4096, 512, 512))
"""(tokens, outputs, inputs)."""
PASSES = (
    fold_weight_scales,
    quantize_operands,
    share_quantized,
    fuse_quantizers,
    fuse_epilogues,
    bound_accumulators,
)
GRADIENT = Operand("gradient", 4, True)
WEIGHT = Operand("weight", 4, True, (0,))
ACTIVATION = Operand("activation", 4, True)

Run = Callable[[], object]


def comparisons(family: str) -> Iterator[Comparison]:
    """dX and dW of every shape."""
    for shape in SHAPES:
        tokens, outputs, inputs = shape
        g = torch.randn(tokens, outputs) * torch.rand(tokens, 1)
        w, x = torch.randn(outputs, inputs), torch.randn(tokens, inputs)
        rng = torch.tensor([1, 0, 0, 0])
        for label, make, other in (("dX", _dx, w), ("dW", _dw, x)):
            ours, bf16 = make(g, other, rng)
            yield Comparison(
                family,
                f"{label} {tokens}x{outputs}x{inputs}",
                ours,
                {"bf16": {"eager": bf16}},
                2.0 * tokens * outputs * inputs,
            )


def _dx(g: Tensor, w: Tensor, rng: Tensor) -> tuple[Run, Run]:
    def product(g: Tensor, w: Tensor, rng: Tensor) -> tuple[Tensor]:
        return (matmul(g, w, None, False, False),)

    run = compiled(_quantized(product, (g, w, rng), "dgrad", WEIGHT))
    return lambda: run(g, w, rng), lambda: (g.bfloat16() @ w.bfloat16()).float()


def _dw(g: Tensor, x: Tensor, rng: Tensor) -> tuple[Run, Run]:
    def product(g: Tensor, x: Tensor, rng: Tensor) -> tuple[Tensor]:
        return (matmul(g, x, None, True, False),)

    joint = _quantized(product, (g, x, rng), "wgrad", ACTIVATION)
    parts = partition(pack_saved(joint), [Port("grad", "w")])
    assert parts.backward is not None
    saved = compiled(parts.forward)(x, rng)
    run = compiled(parts.backward)
    half = x.bfloat16()
    return lambda: run(*saved, rng, g), lambda: (g.bfloat16().T @ half).float()


def _quantized(
    function: Callable[..., object], examples: tuple[Tensor, ...], role: str, other: Operand
) -> GraphModule:
    """The graph of a backward product after the passes: 4 bits, four groups, outer scales."""
    graph = traced(function, *examples)
    ports = (Port("tangent", "0"), Port("input", "0"), None)
    placeholders = graph.graph.find_nodes(op="placeholder")
    for node, port, name in zip(placeholders, ports, ("g", "other", "rng"), strict=True):
        node.name = name
        if port is not None:
            node.meta["port"] = port
    (product,) = calls(graph, matmul)
    product.meta["sq"] = ProductSpec("fc", role, (GRADIENT, other), 4, True, 0)
    product.meta["module"], product.meta["role"] = "fc", role
    return reduce(lambda done, one: one(done), PASSES, graph)
