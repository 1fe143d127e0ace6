"""ONNX: export of a compiled step's integer graphs, import of models as torch modules.

Importing this package imports neither onnx nor torch; using a name below does.
"""

from importlib import import_module
from typing import Any

_LAZY = {
    "export": "sqcompile.onnx.export",
    "GRAPHS": "sqcompile.onnx.export",
    "OnnxModule": "sqcompile.onnx.module",
    "load": "sqcompile.onnx.module",
}

__all__ = sorted(_LAZY)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'sqcompile.onnx' has no attribute '{name}'")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
