"""A binary for GPUs on a machine without one: its PTX in the emulator, the rest on the CPU.

The virtual machine runs the same bytecode with memory of the CPU; a kernel's launches, as
device.json lists them, go to the emulator one after the other.
"""

import ctypes
import json
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax

from sqcompile.backends.cuda.emulator import Module, emulate
from sqcompile.backends.cuda.emulator.batch import compile_together
from sqcompile.errors import SqError, UsageError
from sqcompile.runtime import machines
from sqcompile.runtime.cuda import INDEX
from sqcompile.runtime.executable import Binary
from sqcompile.runtime.threads import get_num_threads

Bytes = np.ndarray[Any, Any]


def distinct_architectures(binary: Binary) -> list[str]:
    """The architectures whose kernels differ from those of all before: another one runs the same
    source."""
    seen: list[dict[str, Any]] = []
    found = []
    for name, kernels in _index(binary).items():
        sources = {one: binary.sources.get(f"{name}/{one}.cu", "") for one in kernels}
        if sources not in seen:
            seen.append(sources)
            found.append(name)
    return found


def machine(binary: Binary, architecture: str | None = None) -> Any:
    """A virtual machine on the CPU whose kernels run in the emulator, by default those of the
    newest architecture.

    Raises UsageError for an architecture that the binary has no code for, PtxError for PTX that
    the emulator does not know, TargetUnavailableError without a C++ compiler; the machine raises
    a Fault for what a kernel does wrong.
    """
    index = _index(binary)
    name = architecture or list(index)[-1]
    if name not in index:
        raise UsageError(f"the code is for {', '.join(index)}, not for {name}")
    texts = {
        kernel: binary.images[f"{name}/{kernel}.ptx"].decode()
        for kernel, told in index[name].items()
        if told["launches"]
    }
    modules = {kernel: emulate(text) for kernel, text in texts.items()}
    compile_together(*modules.values(), threads=get_num_threads())
    failures: list[SqError] = []
    kernels = {
        kernel: _launcher(modules.get(kernel), told, failures)
        for kernel, told in index[name].items()
    }
    return Machine(_linked(binary, kernels), failures)


class Machine:
    """A virtual machine whose functions raise what a kernel raised: errors lose their class on
    their way through TVM."""

    def __init__(self, machine: Any, failures: list[SqError]) -> None:
        self._machine = machine
        self._failures = failures

    def __getitem__(self, name: str) -> Callable[..., Any]:
        function = self._machine[name]

        def run(*tensors: Any) -> Any:
            self._failures.clear()
            try:
                return function(*tensors)
            except RuntimeError:
                if self._failures:
                    raise self._failures[0] from None
                raise

        return run

    def set_instrument(self, hook: Any) -> None:
        """As the virtual machine's own."""
        self._machine.set_instrument(hook)


def _index(binary: Binary) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(binary.images[INDEX])["architectures"]
    return found


def _linked(binary: Binary, kernels: dict[str, Callable[..., None]]) -> Any:
    """The machine looks its kernels up when it is made: among TVM's global functions, where they
    are only for that moment."""
    module = machines.executable_module(binary.bytecode)
    known = {name: tvm_ffi.get_global_func(name, allow_missing=True) for name in kernels}
    for name, kernel in kernels.items():
        tvm_ffi.register_global_func(name, kernel, override=True)
    try:
        return relax.VirtualMachine(module, tvm.cpu())
    finally:
        for name, before in known.items():
            tvm_ffi.registry.remove_global_func(name)
            if before is not None:
                tvm_ffi.register_global_func(name, before)


def _launcher(
    module: Module | None, told: dict[str, Any], failures: list[SqError]
) -> Callable[..., None]:
    """A function that runs a kernel's launches on the tensors that the machine gives it, and
    notes what they raise."""

    def run(*tensors: Any) -> None:
        if module is None:
            return
        try:
            _launch(module, told, [_memory(tensor) for tensor in tensors])
        except SqError as error:
            failures.append(error)
            raise

    return run


def _launch(module: Module, told: dict[str, Any], tensors: Sequence[Bytes]) -> None:
    spaces = [module.memory.alloc(size, "a workspace") for size in told["workspaces"]]
    try:
        for launch in told["launches"]:
            given = [tensors[n] if n >= 0 else spaces[-1 - n] for n in launch["arguments"]]
            module.launch(
                launch["function"], launch["grid"], launch["block"], given, shared=launch["shared"]
            )
    finally:
        for space in spaces:
            module.memory.free(space)


def _memory(tensor: Any) -> Bytes:
    """A tensor's bytes where they lie; a copy of none for an empty one, which has no address."""
    size = prod(tensor.shape) * tvm.DataType(str(tensor.dtype)).itemsize
    if not size:
        return np.empty(0, np.uint8)
    return np.frombuffer((ctypes.c_uint8 * size).from_address(tensor.data_ptr()), np.uint8)
