"""The CPU target: its kernels, and how they become object code."""

from sqcompile.backends.cpu import (
    batch_norm,
    batch_norm_backward,
    batch_norm_quantize,
    conv,
    copies,
    elementwise,
    epilogue,
    layer_norm,
    layer_norm_quantize,
    pack,
    philox,
    pool,
    products,
    quantize,
    reduce,
)
from sqcompile.backends.cpu.build import llvm_target as compiled_for
from sqcompile.backends.cpu.table import KERNELS

__all__ = [
    "KERNELS",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_quantize",
    "compiled_for",
    "conv",
    "copies",
    "elementwise",
    "epilogue",
    "layer_norm",
    "layer_norm_quantize",
    "pack",
    "philox",
    "pool",
    "products",
    "quantize",
    "reduce",
]
