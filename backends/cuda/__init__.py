"""The CUDA target: its kernels.

Every module of this folder is imported here, because the modules register their kernels when
they are.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from tvm.target import Target

from sqcompile.backends.cuda.table import KERNELS

__all__ = ["KERNELS", "compiled_for"]

DEFAULT_ARCH = "sm_75"
"""The oldest architecture that kernels are written for."""


def compiled_for(target: Any) -> Target:
    """The TVM target of an architecture, with the host that launches."""
    arch = getattr(target, "arch", "") or DEFAULT_ARCH
    return Target({"kind": "cuda", "arch": arch}, host="llvm")


for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
