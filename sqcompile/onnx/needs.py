"""The onnx package, which is an extra: its absence is told in words, not by a traceback."""

from types import ModuleType

from sqcompile.errors import TargetUnavailableError


def onnx_package() -> ModuleType:
    """The package `onnx`. Raises TargetUnavailableError, with what to install, without it."""
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
        import onnx.shape_inference
    except ImportError as error:
        raise TargetUnavailableError(
            f"ONNX models need the package onnx ({error})\n  pip install 'sqcompile[onnx]'"
        ) from error
    return onnx
