"""What the CPU can do at most, measured with PyTorch: the roofs of a roofline."""

from collections.abc import Callable
from time import perf_counter

import torch

_COPIED = 1 << 26
"""Bytes of a copy: more than caches hold."""
_SIDE = 1024
"""Of the square int8 matrices that are multiplied."""
_RUNS = 5


def cpu_roofs() -> dict[str, float]:
    """{"bytes_per_s": of a large copy, read and written; "macs_per_s": of torch._int_mm}, the best
    of a few runs with the current number of threads."""
    source = torch.zeros(_COPIED, dtype=torch.uint8)
    target = torch.empty_like(source)
    matrix = torch.ones(_SIDE, _SIDE, dtype=torch.int8)
    return {
        "bytes_per_s": 2 * _COPIED / _best(lambda: target.copy_(source)),
        "macs_per_s": _SIDE**3 / _best(lambda: torch._int_mm(matrix, matrix)),
    }


def _best(call: Callable[[], object]) -> float:
    times = []
    for _ in range(_RUNS):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return min(times)
