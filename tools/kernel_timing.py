"""Timing of compiled kernels against PyTorch, in one process and in turns.

A `Comparison` is one line of `tools/bench_kernels.py`: what we run, and the peers a user would
take instead. All of them run in turns, so that a busy moment of the machine meets all, and the
best of several rounds counts: a kernel is never faster than it is, but often slower.
"""

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter

import tvm

from sqcompile.backends import targets
from sqcompile.backends.lower import KernelRecord
from sqcompile.bench.kernel import MADE, compiled, traced
from sqcompile.runtime import threads

__all__ = ["MADE", "Comparison", "Row", "compile_seconds", "compiled", "traced"]

Run = Callable[[], object]

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""glibc's mallopt parameters."""


def keep_memory() -> bool:
    """Let malloc keep freed memory for the next call -> whether this C library could be told.

    Our runtime plans a graph's memory once. PyTorch asks malloc for every result, and by default
    large ones come fresh from the kernel, whose page faults take up to half of a norm's time
    (LayerNorm 1024 x 1024 forward and backward: 3.3 ms with them, 1.4 ms without). Peers are timed
    without.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(
            libc.mallopt(_MMAP_THRESHOLD, 1 << 30) and libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        )
    except (OSError, AttributeError):
        return False


@dataclass(frozen=True)
class Comparison:
    """A kernel and its peers on one shape.

    name: the family ("gemm", "conv_fprop", ...); shape: as the table shows it; peers: forms of
    the same work by the name of the peer, the fastest form counts ("bf16": {"eager": ...,
    "compiled": ...}); operations: multiply-adds times two, for the share of the peak, 0 where a
    kernel multiplies no matrices.
    """

    name: str
    shape: str
    ours: Run
    peers: Mapping[str, Mapping[str, Run]]
    operations: float = 0.0


@dataclass(frozen=True)
class Row:
    """One measured comparison with one peer: best times in ms, ratio = peer / ours."""

    name: str
    shape: str
    threads: int
    ours: float
    peer: float
    ratio: float
    peer_name: str
    peer_form: str
    operations: float = field(default=0.0)


def best_times(
    runs: Mapping[str, Run], *, rounds: int = 10, seconds: float = 0.02
) -> dict[str, float]:
    """The best mean time of a call, in ms, of each run: `rounds` turns of `seconds` each."""
    repeats = {name: _repeats(run, seconds) for name, run in runs.items()}
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            start = perf_counter()
            for _ in range(repeats[name]):
                run()
            best[name] = min(best[name], (perf_counter() - start) / repeats[name] * 1e3)
    return best


def _repeats(run: Run, seconds: float) -> int:
    for _ in range(2):
        run()
    start = perf_counter()
    run()
    return max(1, int(seconds / max(perf_counter() - start, 1e-6)))


def measure(comparison: Comparison, count: int, rounds: int = 10) -> list[Row]:
    """Rows of one comparison with `count` threads: one for each peer, by its fastest form."""
    threads.set_num_threads(count)
    runs: dict[str, Run] = {"ours": comparison.ours}
    for peer, forms in comparison.peers.items():
        runs |= {f"{peer}/{form}": run for form, run in forms.items()}
    times = best_times(runs, rounds=rounds)
    rows = []
    for peer, forms in comparison.peers.items():
        form = min(forms, key=lambda f: times[f"{peer}/{f}"])
        ours, theirs = times["ours"], times[f"{peer}/{form}"]
        rows.append(
            Row(
                comparison.name,
                comparison.shape,
                count,
                ours,
                theirs,
                theirs / ours,
                peer,
                form,
                comparison.operations,
            )
        )
    return rows


def compile_seconds(record: KernelRecord) -> float:
    """How long one kernel takes alone, from its spec to object code."""
    target = targets.get("cpu")
    kernel = target.kernels[record.op]
    start = perf_counter()
    with target.compiled_for() as scope:
        function = kernel.generate(record.spec.without(kernel.run_time))
        tvm.compile(function.with_attr("global_symbol", "kernel"), target=scope)
    return perf_counter() - start
