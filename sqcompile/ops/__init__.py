"""Every op of the integer graphs: importing this package registers them all."""

from sqcompile.ops import (
    conv,
    elementwise,
    norm,
    norm_float,
    norm_fused,
    norm_gradient,
    pack,
    philox,
    pool,
    product,
    product_float,
    quantize,
    quantize_pair,
    reduce,
)
from sqcompile.ops.table import OPS, Op, find, op

__all__ = [
    "OPS",
    "Op",
    "conv",
    "elementwise",
    "find",
    "norm",
    "norm_float",
    "norm_fused",
    "norm_gradient",
    "op",
    "pack",
    "philox",
    "pool",
    "product",
    "product_float",
    "quantize",
    "quantize_pair",
    "reduce",
]
