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


class _Loader(NamedTuple):
    """How a target's code is loaded: torch's name of the device, what raises without one,
    `machine(binary, index)`, a context in which kernels go to torch's current stream, what measures
    time there, the device in words, the module that has `machine` and `distinct_architectures` for
    computers without the device, what runs the code on every computer ("" where that takes the
    device), and why its steps are not timed."""

    device: str
    require: Callable[[], None]
    machine: "Callable[[Binary, int], Any]"
    on_current_stream: Callable[[int], AbstractContextManager[Any]]
    stopwatch: Callable[[], Stopwatch]
    described: Callable[[], str]
    emulator: str = ""
    executor: str = ""
    untimed: str = ""


def device_type(target: str) -> str:
    """What torch calls the device of a target: "cpu", "cuda"."""
    return _LOADERS[target].device


def require(device: str) -> None:
    """Raise TargetUnavailableError, with what to do, when this machine has no such device."""
    _LOADERS[device].require()


def load(binary: "Binary", index: int) -> Any:
    """A virtual machine with a binary's functions on device number `index`.

    Raises TargetUnavailableError when the device is not there.
    """
    return _LOADERS[binary.target].machine(binary, index)


def stopwatch(device: str) -> Stopwatch:
    """What measures time on torch's current stream of a device.

    Raises TargetUnavailableError, with what to do, when this machine has no such device.
    """
    require(device)
    return _LOADERS[device].stopwatch()


def described(device: str) -> str:
    """A device in words, as far as they differ from its name: "NVIDIA A100-SXM4-40GB, sm_80"."""
    return _LOADERS[device].described()


def executor(target: str) -> str:
    """What runs the code of a target on every computer; "" where that takes the device."""
    return _LOADERS[target].executor


def require_timed(target: str) -> None:
    """Raise for a target whose steps cannot be timed: TargetUnavailableError without its device,
    UsageError where something stands in for it."""
    require(device_type(target))
    if _LOADERS[target].untimed:
        raise UsageError(f"steps for target {target} are not timed: {_LOADERS[target].untimed}")


def present(device: str) -> bool:
    """Whether this machine has such a device."""
    try:
        require(device)
    except TargetUnavailableError:
        return False
    return True


def emulated_parts(binary: "Binary") -> list[str]:
    """The architectures whose kernels an emulator has to run to have run all of them."""
    found: list[str] = import_module(_LOADERS[binary.target].emulator).distinct_architectures(
        binary
    )
    return found


def load_emulated(binary: "Binary", part: str | None) -> Any:
    """A virtual machine on the CPU in which an emulator runs the kernels, those of one
    architecture where the binary has several."""
    return import_module(_LOADERS[binary.target].emulator).machine(binary, part)


def on_current_stream(device: str, index: int) -> AbstractContextManager[Any]:
    """Kernels that are called inside run on torch's current stream of the device."""
    return _LOADERS[device].on_current_stream(index)


def executable_module(bytecode: bytes) -> Any:
    """VM bytecode as TVM's module, which functions are imported into."""
    return tvm_ffi.get_global_func("ffi.Module.load_from_bytes.relax.VMExecutable")(bytecode)


def linked(objects: "list[bytes]") -> Any:
    """Object files as a module: placed by an in-process linker."""
    return tvm_ffi_orcjit.default_session().load_module(objects)


def _cpu(binary: "Binary", index: int) -> Any:
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
    "cpu": _Loader(
        "cpu",
        lambda: None,
        _cpu,
        lambda _: nullcontext(),
        HostStopwatch,
        lambda: "",
        executor="cpu",
    ),
    "cuda": _Loader(
        "cuda",
        _require_cuda,
        _cuda,
        _cuda_stream,
        _cuda_stopwatch,
        _described_cuda,
        "sqcompile.backends.cuda.emulated",
    ),
    "vta": _Loader(
        "cpu",
        lambda: None,
        _vta,
        lambda _: nullcontext(),
        HostStopwatch,
        lambda: "",
        executor="vta-simulator",
        untimed="a simulator runs them; report.json has the cycles",
    ),
}
