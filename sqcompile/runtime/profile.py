"""How long every kernel of a compiled function takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sqcompile.bench.times import Times
from sqcompile.runtime import machines
from sqcompile.runtime.executable import Binary, Executable
from sqcompile.runtime.stopwatch import Stopwatch


@dataclass(frozen=True)
class KernelTime(Times):
    """One kernel of a function: how often a run calls it, and the milliseconds of all its calls
    together: the least of several runs, and what `Times` says of them."""

    kernel: str
    function: str
    calls: int
    milliseconds: float


def kernel_times(
    binary: Binary, function: str, tensors: Sequence[Tensor], *, warmup: int = 0, runs: int = 5
) -> list[KernelTime]:
    """Every kernel of `function`, slowest first.

    The kernels run one by one with a Python call between them, which costs about a microsecond
    each: sums are a little above the time of the function itself. On a GPU a kernel's time has
    the gaps between its launches, and what the device waits for the host's calls.
    """
    executable = Executable(binary)
    marks = Marks(machines.stopwatch(executable.device))
    executable.instrument(marks.instrument)
    taken: dict[str, list[list[float]]] = {}
    for turn in range(warmup + runs):
        executable.function(function)(*tensors)
        for name, seconds in marks.taken().items():
            if turn >= warmup:
                taken.setdefault(name, []).append(seconds)
    rows = [_time(name, function, found) for name, found in taken.items()]
    return sorted(rows, key=lambda row: -row.milliseconds)


def _time(kernel: str, function: str, taken: Sequence[Sequence[float]]) -> KernelTime:
    """From the seconds of every call, run by run."""
    sums = [sum(seconds) for seconds in taken]
    least = min(sums) * 1e3
    return KernelTime(
        **vars(Times.of(sums)),
        kernel=kernel,
        function=function,
        calls=len(taken[0]),
        milliseconds=least,
    )


class Marks:
    """An instrument of a virtual machine that sets marks before and after every kernel."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self._stopwatch = stopwatch
        self._start: Any = None
        self._marks: dict[str, list[tuple[Any, Any]]] = {}

    def instrument(self, _function: Any, symbol: str, before: bool, *_rest: Any) -> int:
        """What the machine calls, also around functions of its own."""
        name = str(symbol)
        if name.startswith("vm."):
            return 0
        if before:
            self._start = self._stopwatch.mark()
        else:
            self._marks.setdefault(name, []).append((self._start, self._stopwatch.mark()))
        return 0

    def taken(self) -> dict[str, list[float]]:
        """The seconds of every call of every kernel since the last time."""
        marks, self._marks = self._marks, {}
        return {
            name: [self._stopwatch.seconds(*pair) for pair in pairs]
            for name, pairs in marks.items()
        }
