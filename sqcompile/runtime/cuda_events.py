"""Time on a GPU by CUDA's events: marks on a stream, which the device itself stamps.

A call for a GPU returns before its work is done, so that a clock of the host would measure calls.
Between two marks there is also what the device waited for: the host, when its calls are slower
than the kernels.
"""

import ctypes
from collections.abc import Callable
from typing import Any

from sqcompile.errors import SqError
from sqcompile.runtime.cuda import LIBRARY, load_runtime


class CudaStopwatch:
    """Marks on the stream that `stream()` tells, by its address.

    Raises TargetUnavailableError, with what to do, where there is no driver.
    """

    def __init__(self, stream: Callable[[], int]) -> None:
        load_runtime()
        self._library = ctypes.CDLL(LIBRARY)
        self._stream = stream

    def mark(self) -> "Event":
        """An event behind all that the stream was given."""
        event = Event(self._library)
        event.record(self._stream())
        return event

    def seconds(self, start: "Event", end: "Event") -> float:
        """Between two events; waits for the later one."""
        return end.since(start)


class Event:
    """An event of CUDA's runtime library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._handle = ctypes.c_void_p()
        self._call("cudaEventCreate", ctypes.byref(self._handle))

    def record(self, stream: int) -> None:
        """Stamp it when the stream comes here."""
        self._call("cudaEventRecord", self._handle, ctypes.c_void_p(stream))

    def since(self, start: "Event") -> float:
        """Seconds from `start`; waits until the device has come here."""
        self._call("cudaEventSynchronize", self._handle)
        milliseconds = ctypes.c_float()
        self._call("cudaEventElapsedTime", ctypes.byref(milliseconds), start._handle, self._handle)
        return milliseconds.value / 1e3

    def __del__(self) -> None:
        if self._handle:
            self._library.cudaEventDestroy(self._handle)

    def _call(self, name: str, *arguments: Any) -> None:
        failed = getattr(self._library, name)(*arguments)
        if failed:
            raise SqError(f"the GPU cannot be timed: {name} gives error {failed}")
