"""The CUDA target: its kernels, and how they become machine code.

Every module of this folder is imported here, because the modules register their kernels when
they are.
"""

from importlib import import_module
from pkgutil import iter_modules

from sqcompile.backends.cuda.architectures import compiled_for
from sqcompile.backends.cuda.table import KERNELS

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["KERNELS", "compiled_for"]
