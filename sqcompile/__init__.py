"""sqcompile: a PyTorch model's training step in sub-8-bit integers, compiled through TVM.

Importing this package imports neither torch nor tvm; using a name below does.
"""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_HERE = Path(__file__).resolve().parent
_BESIDE = ("passes", "backends")
if not any((_HERE / name).is_dir() for name in _BESIDE) and all(
    (_HERE.parent / name / "__init__.py").is_file() for name in _BESIDE
):
    # A checkout, where sqcompile.passes and sqcompile.backends stand beside this folder. Python
    # finds it before an installed wheel when it is the current folder.
    __path__.append(str(_HERE.parent))

# OpenMP reads this when torch is first imported. Its idle workers would spin on the cores that
# TVM's need next (sqcompile.runtime.threads has the figures); a value that is set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_LAZY = {
    "compile": "sqcompile.api",
    "load": "sqcompile.runtime.artifact",
    "verify": "sqcompile.runtime.verify",
    "torch_backend": "sqcompile.dynamo",
    "training_state": "sqcompile.runtime.clocks",
    "load_training_state": "sqcompile.runtime.clocks",
    "Recipe": "sqcompile.recipe",
    "Rule": "sqcompile.recipe",
    "set_num_threads": "sqcompile.runtime.threads",
    "get_num_threads": "sqcompile.runtime.threads",
}

__all__ = ["__version__", *sorted(_LAZY)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'sqcompile' has no attribute '{name}'")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
