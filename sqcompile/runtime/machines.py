"""From code to a virtual machine on a device, one entry a target."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import tvm
import tvm_ffi
import tvm_ffi_orcjit
from tvm import relax

from sqcompile.errors import TargetUnavailableError, UsageError
from sqcompile.runtime.stopwatch import HostStopwatch, Stopwatch

if TYPE_CHECKING:
    from sqcompile.runtime.executable import Binary


class Loader(NamedTuple):
    """How a target's code is loaded: torch's name of the device, what raises without one,
    `machine(binary, index)`, a context in which kernels go to torch's current stream, what measures
    time there, the device in words, the module that has `machine` and `distinct_architectures` for
    computers without the device, what runs the code on every computer ("" where that takes the
    device), and why its steps are not timed."""

    device: str
    require: Callable[[], None]
    machine: "Callable[[Binary, int], Any]"
    on_current_stream: Callable[[int], AbstractContextManager[Any]] = lambda _: nullcontext()
    stopwatch: Callable[[], Stopwatch] = HostStopwatch
    described: Callable[[], str] = lambda: ""
    emulator: str = ""
    executor: str = ""
    untimed: str = ""


def register(target: str, loader: Loader) -> None:
    """Say how the code of a target is loaded; the other half is `backends.targets.register`.

    Raises ValueError when the target has a loader already.
    """
    if target in _LOADERS:
        raise ValueError(f"target '{target}' has a loader already")
    _LOADERS[target] = loader


def _loader(name: str) -> Loader:
    """The row of a target or device; an installed package may bring the target.

    Raises UsageError when there is none.
    """
    if name not in _LOADERS:
        import_module("sqcompile.backends.targets").get(name)
    return _LOADERS[name]


def device_type(target: str) -> str:
    """What torch calls the device of a target: "cpu", "cuda"."""
    return _loader(target).device


def require(device: str) -> None:
    """Raise TargetUnavailableError, with what to do, when this machine has no such device."""
    _loader(device).require()


def load(binary: "Binary", index: int) -> Any:
    """A virtual machine with a binary's functions on device number `index`.

    Raises TargetUnavailableError when the device is not there.
    """
    return _loader(binary.target).machine(binary, index)


def stopwatch(device: str) -> Stopwatch:
    """What measures time on torch's current stream of a device.

    Raises TargetUnavailableError, with what to do, when this machine has no such device.
    """
    require(device)
    return _loader(device).stopwatch()


def described(device: str) -> str:
    """A device in words, as far as they differ from its name: "NVIDIA A100-SXM4-40GB, sm_80"."""
    return _loader(device).described()


def executor(target: str) -> str:
    """What runs the code of a target on every computer; "" where that takes the device."""
    return _loader(target).executor


def require_timed(target: str) -> None:
    """Raise for a target whose steps cannot be timed: TargetUnavailableError without its device,
    UsageError where something stands in for it."""
    require(device_type(target))
    if _loader(target).untimed:
        raise UsageError(f"steps for target {target} are not timed: {_loader(target).untimed}")


def present(device: str) -> bool:
    """Whether this machine has such a device."""
    try:
        require(device)
    except TargetUnavailableError:
        return False
    return True


def emulated_parts(binary: "Binary") -> list[str]:
    """The architectures whose kernels an emulator has to run to have run all of them."""
    found: list[str] = import_module(_loader(binary.target).emulator).distinct_architectures(binary)
    return found


def load_emulated(binary: "Binary", part: str | None) -> Any:
    """A virtual machine on the CPU in which an emulator runs the kernels, those of one
    architecture where the binary has several."""
    return import_module(_loader(binary.target).emulator).machine(binary, part)


def on_current_stream(device: str, index: int) -> AbstractContextManager[Any]:
    """Kernels that are called inside run on torch's current stream of the device."""
    return _loader(device).on_current_stream(index)


def executable_module(bytecode: bytes) -> Any:
    """VM bytecode as TVM's module, which functions are imported into."""
    return tvm_ffi.get_global_func("ffi.Module.load_from_bytes.relax.VMExecutable")(bytecode)


def linked(objects: "list[bytes]") -> Any:
    """Object files as a module: placed by an in-process linker."""
    return tvm_ffi_orcjit.default_session().load_module(objects)


def on_cpu(binary: "Binary", index: int) -> Any:
    """A virtual machine on the CPU with a binary's bytecode and object code."""
    module = executable_module(binary.bytecode)
    if binary.objects:
        module.import_module(linked(list(binary.objects)))
    return relax.VirtualMachine(module, tvm.cpu(index))


def _vta(binary: "Binary", index: int) -> Any:
    return import_module("sqcompile.runtime.vta").machine(binary, index)


def _require_cuda() -> None:
    import_module("sqcompile.runtime.cuda").capability(0)


def _cuda(binary: "Binary", index: int) -> Any:
    return import_module("sqcompile.runtime.cuda").machine(binary, index)


def _cuda_stream(index: int) -> AbstractContextManager[Any]:
    stream: AbstractContextManager[Any] = import_module("sqcompile.runtime.cuda").torch_stream(
        index
    )
    return stream


def _cuda_stopwatch() -> Stopwatch:
    def stream() -> int:
        return torch.cuda.current_stream(0).cuda_stream

    watch: Stopwatch = import_module("sqcompile.runtime.cuda_events").CudaStopwatch(stream)
    return watch


def _described_cuda() -> str:
    found: str = import_module("sqcompile.runtime.cuda").described_device()
    return found


_LOADERS = {
    "cpu": Loader("cpu", lambda: None, on_cpu, executor="cpu"),
    "cuda": Loader(
        "cuda",
        _require_cuda,
        _cuda,
        _cuda_stream,
        _cuda_stopwatch,
        _described_cuda,
        "sqcompile.backends.cuda.emulated",
    ),
    "vta": Loader(
        "cpu",
        lambda: None,
        _vta,
        executor="vta-simulator",
        untimed="a simulator runs them; report.json has the cycles",
    ),
}
