"""How long every kernel of a compiled function takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from torch import Tensor

from sqcompile.runtime.executable import Binary, Executable


@dataclass(frozen=True)
class KernelTime:
    """One kernel of a function: how often a run calls it, and the milliseconds of all its calls
    together, the least of several runs."""

    kernel: str
    function: str
    calls: int
    milliseconds: float


def kernel_times(
    binary: Binary, function: str, tensors: Sequence[Tensor], *, runs: int = 5
) -> list[KernelTime]:
    """Every kernel of `function`, slowest first.

    The kernels run one by one with a Python call between them, which costs about a microsecond
    each: sums are a little above the time of the function itself.
    """
    executable = Executable(binary)
    seconds: dict[str, list[float]] = {}
    calls: dict[str, int] = {}
    best: dict[str, float] = {}
    start = 0.0

    def instrument(_function: Any, symbol: str, before: bool, *_rest: Any) -> int:
        nonlocal start
        if before:
            start = perf_counter()
        else:
            seconds.setdefault(str(symbol), []).append(perf_counter() - start)
        return 0

    executable.instrument(instrument)
    for _ in range(runs):
        seconds.clear()
        executable.function(function)(*tensors)
        for kernel, parts in seconds.items():
            if not kernel.startswith("vm."):
                best[kernel] = min(best.get(kernel, float("inf")), sum(parts))
                calls[kernel] = len(parts)
    found = [KernelTime(name, function, calls[name], best[name] * 1e3) for name in best]
    return sorted(found, key=lambda row: -row.milliseconds)
