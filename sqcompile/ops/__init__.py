"""Every op of the integer graphs: importing this package registers them all."""

from sqcompile.ops import (
    conv,
    dropout,
    elementwise,
    lookup,
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
    resample,
)
from sqcompile.ops.table import OPS, Op, find, op

__all__ = [
    "OPS",
    "Op",
    "conv",
    "dropout",
    "elementwise",
    "find",
    "lookup",
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
    "resample",
]
