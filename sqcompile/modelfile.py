"""A user's model file: what it must define, and whose line it was when it fails.

A model file is Python code that runs in this process, like any script; or an ONNX model, which is
data: it has a model and the shapes of its inputs, and nothing of it is executed.
"""

import importlib.util
import linecache
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sqcompile.errors import CaptureError, SqError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

MINIMUM = """\
from torch import nn
import torch

def make_model():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))

def example_inputs():
    return (torch.randn(8, 16),)
"""
"""The smallest model file, for messages and help."""


@dataclass(frozen=True)
class ModelFile:
    """A loaded model file; `path` is as the user wrote it."""

    path: Path
    module: ModuleType

    def make_model(self) -> "nn.Module":
        """A new model from make_model(), or the file's `model`.

        Raises CaptureError when make_model() fails or returns something else, UsageError when
        the file defines neither.
        """
        from torch import nn

        if "make_model" in vars(self.module):
            model = self.call("make_model")
            what = "make_model() returned"
        elif "model" in vars(self.module):
            model, what = vars(self.module)["model"], "`model` is"
        else:
            raise self._missing("make_model", "a function that returns a torch.nn.Module")
        if not isinstance(model, nn.Module):
            raise CaptureError(f"{self.path}: {what} {type(model).__name__}, not a torch.nn.Module")
        return model

    def example_inputs(self) -> "tuple[Any, ...]":
        """The positional arguments of one call of the model: example_inputs() of the file.

        Raises CaptureError when it fails or returns no tuple of arguments, UsageError when the
        file does not define it.
        """
        inputs = self.call("example_inputs", needs="a function that returns a tuple of tensors")
        if not isinstance(inputs, tuple | list) or not inputs:
            raise CaptureError(
                f"{self.path}: example_inputs() returned {type(inputs).__name__}"
                f"{' without elements' if isinstance(inputs, tuple | list) else ''}\n"
                "  return the model's arguments as a tuple: (x,) for one."
            )
        return tuple(inputs)

    def has(self, name: str) -> bool:
        """Whether the file defines a function `name`."""
        return callable(vars(self.module).get(name))

    def batches(self, name: str = "data") -> "Iterator[tuple[tuple[Any, ...], Tensor]]":
        """((inputs...), target) of every batch of one epoch from data() or eval_data().

        A batch is (input, target) or ((input, ...), target). Raises as `call`; CaptureError when
        iterating fails or a batch is no pair.
        """
        source = self.call(name, needs="a function that returns an iterable of (input, target)")
        with self._blamed(name):
            iterator = iter(source)
        while True:
            with self._blamed(name):
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise CaptureError(
                    f"{self.path}: {name}() gave {type(batch).__name__} as a batch\n"
                    "  a batch is a pair (input, target), or ((input, ...), target)."
                )
            inputs, target = batch
            yield tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), target

    def call(self, name: str, *args: Any, needs: str = "a function") -> Any:
        """Call the file's function `name`.

        Raises UsageError when there is none; CaptureError, with the line of the file that
        failed, when it raises.
        """
        function: Callable[..., Any] | None = vars(self.module).get(name)
        if not callable(function):
            raise self._missing(name, needs)
        with self._blamed(name):
            return function(*args)

    def _missing(self, name: str, needs: str) -> UsageError:
        functions = [key for key, value in vars(self.module).items() if callable(value)]
        close = get_close_matches(name, functions, n=1, cutoff=0.7)
        hint = f"\n  it has '{close[0]}': did you mean that?" if close else ""
        return UsageError(f"{self.path} does not define {name}: {needs}{hint}")

    @contextmanager
    def _blamed(self, what: str) -> Iterator[None]:
        with blame(self.path, f"{what}()"):
            yield


def load(path: str | Path, *, dims: Mapping[str, int] | None = None) -> ModelFile:
    """A model file, by its suffix: Python code is executed, an ONNX model is read.

    dims: sizes of an ONNX model's dynamic dimensions. Raises UsageError when there is no such
    file, and what its loader raises.
    """
    path = Path(path)
    _check_path(path)
    return _LOADERS[path.suffix](path, dims or {})


def _load_python(path: Path, dims: Mapping[str, int]) -> ModelFile:
    """Run a model file in a module namespace of its own; its folder can be imported from. Raises
    CaptureError with the failing line when it raises."""
    if dims:
        raise UsageError(f"{path} fixes its own shapes: --dim is for ONNX models")
    place = path.resolve()
    name = f"sqcompile_model_{place.stem}_{sha256(str(place).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(place.parent) not in sys.path:
        sys.path.insert(0, str(place.parent))
    sys.modules[name] = module
    linecache.checkcache(str(place))
    try:
        with blame(path, "the model file"):
            spec.loader.exec_module(module)
    except CaptureError:
        del sys.modules[name]
        raise
    return ModelFile(path, module)


def _load_onnx(path: Path, dims: Mapping[str, int]) -> ModelFile:
    """An ONNX model as what a model file defines: a model, and random inputs of its shapes."""
    from sqcompile.onnx import module as onnx_model

    module = ModuleType(path.stem)
    vars(module).update(
        make_model=partial(onnx_model.load, path, dims=dict(dims)),
        example_inputs=partial(onnx_model.example_inputs, path, dict(dims)),
    )
    return ModelFile(path, module)


_LOADERS = {".py": _load_python, ".onnx": _load_onnx}


def _check_path(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give a model file (.py)")
    if not path.is_file():
        siblings = _model_files(path.parent)
        close = get_close_matches(path.name, siblings, n=1)
        hint = f"; did you mean {path.parent / close[0]}?" if close else ""
        raise UsageError(f"there is no model file {path}{hint}")
    if path.suffix not in _LOADERS:
        raise UsageError(
            f"{path} is not a .py file, nor .onnx; a model file is Python code, e.g.\n{MINIMUM}"
        )


def _model_files(folder: Path) -> Iterable[str]:
    files = folder.iterdir() if folder.is_dir() else ()
    return [file.name for file in files if file.suffix in _LOADERS]


@contextmanager
def blame(path: Path, what: str) -> Iterator[None]:
    """Turn whatever user code raises inside into a CaptureError that starts with the innermost
    line of the file at `path` (as the user wrote it) that was running."""
    try:
        yield
    except SqError:
        raise
    except SyntaxError as error:
        raise CaptureError(_syntax(path, error)) from error
    except (Exception, SystemExit) as error:
        raise CaptureError(_failure(path, what, error)) from error


def _syntax(path: Path, error: SyntaxError) -> str:
    same = error.filename is not None and Path(error.filename).resolve() == path.resolve()
    shown = path if same else error.filename
    return (
        f"{shown}:{error.lineno}  {(error.text or '').strip()}\n"
        f"  {type(error).__name__}: {error.msg}"
    )


def _failure(path: Path, what: str, error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = path.resolve()
    line = next((f for f in reversed(frames) if Path(f.filename).resolve() == place), None)
    where = f"{path}:{line.lineno}  {line.line}" if line else str(path)
    lines = str(error).strip().splitlines() or ["(no message)"]
    text = f"{where}\n  {what} raised {type(error).__name__}: {lines[0]}"
    text += "".join(f"\n  {rest}" for rest in lines[1:])
    return f"{text}\n  {_remedy(error)}"


def _remedy(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"install {error.name}, or put its file beside the model file."
    if isinstance(error, SystemExit):
        return 'guard what a script runs with `if __name__ == "__main__":`.'
    return "run the file with python to debug it; --debug shows the whole traceback."
