"""Every op of the integer graphs: importing this package imports its modules, which register
their ops in the table."""

from importlib import import_module
from pkgutil import iter_modules

from sqcompile.ops.table import OPS, Op, find, op

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["OPS", "Op", "find", "op"]
