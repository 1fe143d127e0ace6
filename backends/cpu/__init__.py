"""The CPU target: its kernels, and how they become object code."""

from sqcompile.backends.cpu import (
    copies,
    elementwise,
    norm,
    pack,
    philox,
    pool,
    quantize,
    reduce,
)
from sqcompile.backends.cpu.table import KERNELS

__all__ = [
    "KERNELS",
    "copies",
    "elementwise",
    "norm",
    "pack",
    "philox",
    "pool",
    "quantize",
    "reduce",
]
