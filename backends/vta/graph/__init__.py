"""The VTA target: products become programs of the accelerator, the rest is the CPU's kernels."""

from sqcompile.backends.cpu import compiled_for
from sqcompile.backends.vta.graph.table import KERNELS

__all__ = ["KERNELS", "compiled_for"]
