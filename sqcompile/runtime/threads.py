"""One number of threads for TVM's kernels and torch's own operators.

What was measured (TVM 0.27, torch 2.13, two cores; CPU time per thread):

- TVM sizes its pool to half of the cores on x86, taking the rest for hyper-threads: 1 of 2 here,
  so a parallel kernel ran in 0.19 ms with the default and in 0.10 ms with two threads.
- TVM_NUM_THREADS is the largest size of a pool. It is read when a calling thread launches its
  first parallel kernel, not at import, and every calling thread has a pool of its own.
- runtime.config_threadpool(1, n) changes how many of them work, up to that size, at any time, for
  the pool of the calling thread only; `apply` is therefore called by whoever runs kernels.
- It also pins the calling thread to the first core, and torch's OpenMP threads, which start later,
  inherit that: two of them then share one core. TVM_BIND_THREADS=0 prevents it.
- TVM_THREAD_POOL_SPIN_COUNT is how long idle workers spin. OpenMP's workers spin after an operator
  too, and on a busy machine a 512 x 512 torch product took 16 ms with two spinning threads against
  6 ms with OMP_WAIT_POLICY=passive and 3.3 ms with one thread. Spinning costs most when torch and
  TVM alternate, so TVM's workers sleep soon.
"""

import os
import sys
import threading

from sqcompile.errors import UsageError

_DEFAULTS = {"TVM_BIND_THREADS": "0", "TVM_THREAD_POOL_SPIN_COUNT": "2000"}
_BIG_CORES = 1
"""TVM's affinity mode "fastest cores first"; without binding it only carries the number."""


def _cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def _environment() -> int:
    """Set what TVM reads when its pools start -> the number of threads to begin with."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    given = os.environ.get("TVM_NUM_THREADS", "")
    wanted = int(given) if given.isdigit() and int(given) > 0 else _cores()
    os.environ["TVM_NUM_THREADS"] = str(max(wanted, _cores()))
    return wanted


_count = _environment()
_thread = threading.local()


def set_num_threads(count: int) -> None:
    """Run kernels, and torch's own operators, in `count` threads from now on.

    Results do not depend on it. Raises UsageError unless 1 <= count <= the CPUs of this process
    (or TVM_NUM_THREADS, when that was set higher).
    """
    global _count
    most = int(os.environ["TVM_NUM_THREADS"])
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= most:
        raise UsageError(f"the number of threads is 1 to {most} here, not {count!r}")
    _count = count
    import torch

    torch.set_num_threads(count)
    if "tvm" in sys.modules:
        apply()


def get_num_threads() -> int:
    """The number of threads that kernels run in."""
    return _count


def apply() -> None:
    """Make the calling thread's pool follow the setting; called before every run of kernels."""
    if getattr(_thread, "count", None) != _count:
        import tvm_ffi

        tvm_ffi.get_global_func("runtime.config_threadpool")(_BIG_CORES, _count)
        _thread.count = _count
