"""Runs a compiled binary on the stub driver, in a process of its own: the driver stays loaded.

    python -m tests.backends.cuda.on_stub STUB_FOLDER BINARY_FOLDER

prints one JSON document of what happened. BINARY_FOLDER holds the files of `modules.two_floats`
for several architectures, compiled by another process.
"""

import ctypes
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi

from sqcompile.errors import TargetUnavailableError
from sqcompile.runtime.cuda_events import CudaStopwatch
from sqcompile.runtime.executable import Binary, Executable
from sqcompile.runtime.profile import Marks
from tests.backends.cuda.modules import two_floats_values

N = 1000
STREAM = 0x5150
"""The address of a stream."""
COUNTS = (
    "launches",
    "waits",
    "allocations",
    "frees",
    "to_device",
    "to_host",
    "on_device",
    "modules",
)
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_uint),
    ctypes.c_uint,
    ctypes.POINTER(ctypes.POINTER(ctypes.c_uint64)),
    ctypes.c_void_p,
)


def _scaled_sum(a: Any, b: Any, out: Any) -> None:
    out[:] = a * np.float32(1.1) + b


def _doubled(a: Any, between: Any) -> None:
    between[:] = a * np.float32(2)


def _reversed(between: Any, out: Any) -> None:
    out[:] = between[::-1] + np.float32(1)


_BODIES: dict[str, Callable[..., None]] = {
    "scaled_sum_kernel": _scaled_sum,
    "reversed_blocks_kernel": _doubled,
    "reversed_blocks_kernel_1": _reversed,
}
"""What the device functions compute: the stub executes no machine code."""


class Stub:
    """The stub driver in this process: its counters, and the launches since the last `clear`."""

    def __init__(self, folder: str) -> None:
        self._driver = ctypes.CDLL(f"{folder}/libcuda.so.1", ctypes.RTLD_GLOBAL)
        ctypes.CDLL(f"{folder}/libcudart.so.13", ctypes.RTLD_GLOBAL)
        self._driver.stub_count.restype = ctypes.c_long
        self._callback = _CALLBACK(self._launched)  # kept alive here
        self._driver.stub_set_callback(self._callback)
        self._begun: dict[str, int] = {}
        self.clear()

    def clear(self) -> None:
        self.launches: list[dict[str, Any]] = []
        self._begun = self._counts()

    def counts(self) -> dict[str, int]:
        return {name: count - self._begun[name] for name, count in self._counts().items()}

    def _counts(self) -> dict[str, int]:
        return {name: self._driver.stub_count(place) for place, name in enumerate(COUNTS)}

    def _launched(
        self,
        image: int,
        ptx: int,
        name: bytes,
        grid: Any,
        block: Any,
        shared: int,
        arguments: Any,
        stream: int | None,
    ) -> int:
        body = _BODIES[name.decode()]
        pointers = [arguments[place][0] for place in range(body.__code__.co_argcount)]
        self.launches.append(
            {
                "function": name.decode(),
                "form": "ptx" if ptx else "cubin",
                "grid": grid[0:3],
                "block": block[0:3],
                "shared": shared,
                "stream": stream or 0,
                "pointers": pointers,
            }
        )
        if os.environ.get("STUB_FAILS"):
            return 1
        body(*(np.frombuffer((ctypes.c_float * N).from_address(p), np.float32) for p in pointers))
        return 0


def _run(executable: Executable, index: int = 0) -> dict[str, Any]:
    """One forward on device tensors -> whether the bits are right, and the tensors' addresses."""
    inputs, expected = two_floats_values(N)
    tensors = [tvm.runtime.tensor(value, tvm.cuda(index)) for value in inputs]
    results = executable.machine(index)["forward"](*tensors)
    addresses = [tensor.data_ptr() for tensor in tensors]
    values = [result.numpy() for result in results]
    return {
        "equal": [v.tobytes() == e.tobytes() for v, e in zip(values, expected, strict=True)],
        "devices": [str(result.device) for result in results],
        "inputs": addresses,
    }


def _timed(executable: Executable, stub: Stub) -> dict[str, Any]:
    """The time of every kernel of a call, and what an event that nobody waits for gives."""
    inputs, _ = two_floats_values(N)
    tensors = [tvm.runtime.tensor(value, tvm.cuda(0)) for value in inputs]
    streams: list[int] = []

    def stream() -> int:
        streams.append(STREAM)
        return STREAM

    watch = CudaStopwatch(stream)
    marks = Marks(watch)
    executable.instrument(marks.instrument)
    stub.clear()
    start = watch.mark()
    with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda", 0), STREAM):
        executable.machine()["forward"](*tensors)
    end = watch.mark()
    waits = stub.counts()["waits"]
    return {
        "waits of the call": waits,
        "kernels": marks.taken(),
        "call": watch.seconds(start, end),
        "marks": len(streams),
        "waits of reading": stub.counts()["waits"] - waits,
    }


def _refusal(action: Callable[[], Any]) -> str:
    try:
        action()
    except TargetUnavailableError as error:
        return str(error)
    return ""


def main(stub_folder: str, binary_folder: str) -> dict[str, Any]:
    place = Path(binary_folder)
    files = {
        str(file.relative_to(place)): file.read_bytes()
        for file in place.rglob("*")
        if file.is_file()
    }
    binary = Binary.from_files(files)
    found: dict[str, Any] = {"no driver": _refusal(lambda: Executable(binary).machine())}
    stub = Stub(stub_folder)
    os.environ["STUB_DRIVER"] = "12080"
    found["old driver"] = _refusal(lambda: Executable(binary).machine())
    del os.environ["STUB_DRIVER"]
    os.environ["STUB_DEVICES"] = "0"
    found["no device"] = _refusal(lambda: Executable(binary).machine())
    os.environ["STUB_DEVICES"] = "1"

    executable = Executable(binary)
    found["first"] = _run(executable) | {"launches": list(stub.launches)}
    _again(executable, stub, found)
    found["timed"] = _timed(Executable(binary), stub)
    for capability in ("70", "75", "86", "120"):
        os.environ["STUB_CAPABILITY"] = capability
        stub.clear()
        other = Executable(binary)
        refused = _refusal(other.machine)
        found[capability] = {"refused": refused} if refused else _run(other)
        found[capability] |= {"launches": list(stub.launches)}
    os.environ["STUB_CAPABILITY"] = "80"
    os.environ["STUB_FAILS"] = "1"
    try:
        _run(Executable(binary))
    except RuntimeError as error:
        found["failed launch"] = str(error)
    found["compilers"] = [
        name
        for name in sys.modules
        if name.startswith(("cuda.bindings.nvrtc", "sqcompile.backends", "sqcompile.passes"))
    ]
    return found


def _again(executable: Executable, stub: Stub, found: dict[str, Any]) -> None:
    """A second call on a stream of its own, everything allocated: what does it ask of the
    driver?"""
    inputs, _ = two_floats_values(N)
    tensors = [tvm.runtime.tensor(value, tvm.cuda(0)) for value in inputs]
    forward = executable.machine()["forward"]
    for _ in range(2):  # the machine holds on to the results of one call
        forward(*tensors)
    stub.clear()
    with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda", 0), STREAM):
        results = forward(*tensors)
    found["again"] = {
        "counts": stub.counts(),
        "launches": list(stub.launches),
        "results": len(results),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
