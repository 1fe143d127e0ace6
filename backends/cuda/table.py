"""The GPU's kernel table; the modules of this folder fill it when the package is imported."""

from sqcompile.backends.kernels import KernelTable

KERNELS = KernelTable("cuda")
