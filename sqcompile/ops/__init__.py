"""Every op of the integer graphs: importing this package registers them all."""

from sqcompile.ops import (
    activation,
    conv,
    elementwise,
    functions,
    loss,
    norm,
    norm_float,
    norm_fused,
    pack,
    philox,
    pool,
    product,
    product_float,
    quantize,
    reduce,
    softmax,
)
from sqcompile.ops.table import OPS, Op, find, op

__all__ = [
    "OPS",
    "Op",
    "activation",
    "conv",
    "elementwise",
    "find",
    "functions",
    "loss",
    "norm",
    "norm_float",
    "norm_fused",
    "op",
    "pack",
    "philox",
    "pool",
    "product",
    "product_float",
    "quantize",
    "reduce",
    "softmax",
]
