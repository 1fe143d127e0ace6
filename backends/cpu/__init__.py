"""The CPU target: its kernels, and how they become object code."""

from sqcompile.backends.cpu import (
    absmax,
    conv,
    copies,
    elementwise,
    epilogue,
    norm,
    pack,
    philox,
    pool,
    products,
    quantize,
    reduce,
    shift_quantize,
)
from sqcompile.backends.cpu.build import llvm_target as compiled_for
from sqcompile.backends.cpu.table import KERNELS

__all__ = [
    "KERNELS",
    "absmax",
    "compiled_for",
    "conv",
    "copies",
    "elementwise",
    "epilogue",
    "norm",
    "pack",
    "philox",
    "pool",
    "products",
    "quantize",
    "reduce",
    "shift_quantize",
]
