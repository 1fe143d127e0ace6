"""A binary of the CUDA target on a GPU: TVM's CUDA runtime, the code that fits, the stream.

The pip package of TVM holds a CUDA runtime of its own (libtvm_runtime_cuda.so), which needs the
driver (libcuda.so.1) and CUDA's runtime library (libcudart.so.13, from nvidia-cuda-runtime). TVM
tries to load it when it is imported and says nothing when that fails; here it is loaded when a GPU
is first used, with libcudart found in the pip package, and what is missing is told.

Nothing is compiled: a device takes the cubin of its own family, and else the PTX of an older one,
which the driver translates.
"""

import ctypes
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

import torch
import tvm
import tvm_ffi
from tvm import relax

from sqcompile.errors import TargetUnavailableError
from sqcompile.runtime import machines
from sqcompile.runtime.executable import Binary

INDEX = "device.json"
"""The image that says what the others are."""
_CREATE = "ffi.Module.create.cuda"
_DRIVER = "libcuda.so.1"
LIBRARY = "libcudart.so.13"
_PLUGIN = "libtvm_runtime_cuda.so"
_NO_DRIVER = """there is no NVIDIA driver here ({error})
  run on a machine with an NVIDIA GPU and its driver (580 or newer); compiling needs neither, and
  `sqcompile MODEL.PY --target cuda --verify` runs the kernels without one."""
_OLDEST_DRIVER = 13
"""CUDA's major version that the driver must know: the runtime library's."""
_OLD_DRIVER = """the NVIDIA driver here is for CUDA {major}.{minor}, older than 13.0
  install driver 580 or newer; nvidia-smi shows which there is."""
_NO_LIBRARY = """CUDA's runtime library cannot be loaded ({error})
  install it with `pip install sqcompile[cuda]`."""


class Image(NamedTuple):
    """The code of a binary that a device loads: the architecture it was generated for, and its
    form, "cubin" or "ptx"."""

    architecture: str
    form: str


def chosen(architectures: Iterable[str], capability: int) -> Image:
    """What a device of compute capability `capability` (86 for 8.6) loads.

    A cubin runs on devices of its major number from its own minor number on, PTX on every newer
    device. Raises TargetUnavailableError when all of them are too new.
    """
    numbers = {int(name.removeprefix("sm_")): name for name in architectures}
    older = [number for number in numbers if number <= capability]
    same = [number for number in older if number // 10 == capability // 10]
    if same:
        return Image(numbers[max(same)], "cubin")
    if older:
        return Image(numbers[max(older)], "ptx")
    raise TargetUnavailableError(
        f"this GPU is an sm_{capability}; the code is for {', '.join(numbers.values())}\n"
        "  compile it with --arch for this one or an older one; the oldest there is is sm_75."
    )


def load_runtime() -> None:
    """Load TVM's CUDA runtime into this process, if it is not there yet.

    Raises TargetUnavailableError, with what to do, when a library is missing or the driver too old.
    """
    if tvm_ffi.get_global_func(_CREATE, allow_missing=True) is not None:
        return
    try:
        driver = ctypes.CDLL(_DRIVER, ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise TargetUnavailableError(_NO_DRIVER.format(error=error)) from error
    _require_recent(driver)
    try:
        _load_library()
        ctypes.CDLL(str(Path(tvm.__file__).parent / "lib" / _PLUGIN))
    except OSError as error:
        raise TargetUnavailableError(_NO_LIBRARY.format(error=error)) from error


def _require_recent(driver: ctypes.CDLL) -> None:
    """Raise TargetUnavailableError for a driver that shows no GPU to the runtime library."""
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    major, rest = divmod(version.value, 1000)
    if major < _OLDEST_DRIVER:
        raise TargetUnavailableError(_OLD_DRIVER.format(major=major, minor=rest // 10))


def _load_library() -> None:
    """libcudart from the pip package, or else where the system's loader finds it."""
    try:
        place = distribution("nvidia-cuda-runtime").locate_file(f"nvidia/cu13/lib/{LIBRARY}")
    except PackageNotFoundError:
        place = Path()
    try:
        ctypes.CDLL(LIBRARY, ctypes.RTLD_GLOBAL)
    except OSError:
        ctypes.CDLL(str(place), ctypes.RTLD_GLOBAL)


def capability(index: int) -> int:
    """The compute capability of GPU number `index`, 86 for 8.6.

    Raises TargetUnavailableError when there is no such GPU, or no driver.
    """
    load_runtime()
    device = tvm.cuda(index)
    if not device.exist:
        raise TargetUnavailableError(
            f"there is no GPU number {index}: the driver shows none of that number\n"
            "  CUDA_VISIBLE_DEVICES may hide it; nvidia-smi lists what there is."
        )
    return int(str(device.compute_version).replace(".", ""))


def described_device(index: int = 0) -> str:
    """GPU number `index` in words: "NVIDIA A100-SXM4-40GB, sm_80".

    Raises TargetUnavailableError when there is no such GPU, or no driver.
    """
    number = capability(index)
    return f"{tvm.cuda(index).device_name}, sm_{number}"


def machine(binary: Binary, index: int) -> Any:
    """A virtual machine with the binary's functions on GPU number `index`.

    Tensors of the machine are in the GPU's memory, taken from a pool that TVM keeps.
    """
    number = capability(index)
    kernels = json.loads(binary.images[INDEX])["architectures"]
    image = chosen(kernels, number)
    module = machines.executable_module(binary.bytecode)
    launchers = machines.linked([binary.images[f"{image.architecture}/launchers.o"]])
    for name, kernel in kernels[image.architecture].items():
        if not kernel["launches"]:  # its results are empty
            continue
        code = binary.images[f"{image.architecture}/{name}.{image.form}"]
        place = f"{image.architecture}/{name}.cu of the run folder"
        launchers.import_module(_device_module(code, image.form, kernel["functions"], place))
    module.import_module(launchers)
    return relax.VirtualMachine(module, tvm.cuda(index))


def _device_module(code: bytes, form: str, functions: Any, place: str) -> Any:
    """TVM's module of one kernel's machine code; the driver sees it when it is first launched.

    TVM shows `place` when a launch fails, where it would show the CUDA source it compiled.
    """
    told = json.dumps({"tvm_version": tvm.__version__, "func_info": functions})
    known = tvm_ffi.get_global_func("runtime.LoadMetaDataFromJSON")(told)
    create = tvm_ffi.get_global_func(_CREATE)
    return create(code + b"\0" if form == "ptx" else code, form, known, {"cuda": place})


class _Calls:
    """The calls on one GPU, one after the other, and the stream of the last one."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.last: torch.cuda.Stream | None = None

    def on(self, stream: torch.cuda.Stream) -> None:
        """The next call is on `stream`, behind all that the last one's stream was given."""
        if self.last is not None and self.last != stream:
            stream.wait_stream(self.last)
        self.last = stream


_calls: dict[int, _Calls] = {}
"""By number of the GPU."""


@contextmanager
def torch_stream(index: int) -> Iterator[None]:
    """A context in which TVM launches on torch's current stream of GPU number `index`.

    TVM gives freed memory to whoever asks next, on any stream: that is in order on one stream. A
    call on another stream than the one before it waits, on the GPU, for what that stream was given.
    TVM leaves the GPU of its last call the current one of the thread; torch's is put back.
    """
    calls = _calls.setdefault(index, _Calls())
    with calls.lock, torch.cuda.device(index):
        stream = torch.cuda.current_stream(index)
        calls.on(stream)
        with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda", index), stream.cuda_stream):
            yield
