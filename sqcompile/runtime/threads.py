"""One number of threads for TVM's kernels and torch's own operators.

What was found (TVM 0.27, torch 2.13, a machine with two cores):

- TVM sizes its pool to half of the cores on x86, taking the others for hyper-threads: one thread
  here. TVM_NUM_THREADS is the largest size of a pool. It is read when a calling thread launches
  its first parallel kernel, not at import, and every calling thread has a pool of its own.
- runtime.config_threadpool(1, n) changes how many of a pool work, up to that size, at any time,
  but for the calling thread only: whoever runs kernels calls `apply` first.
- It also pins the calling thread to one core, which threads started later inherit, torch's OpenMP
  threads among them: they then share that core. TVM_BIND_THREADS=0 prevents it.
- TVM_THREAD_POOL_SPIN_COUNT is how long an idle worker spins before it sleeps. With the default a
  worker that `set_num_threads(1)` retired still took all of the other core; with 2000 it takes
  none, and no speed was lost.

Eight parallel kernels (sqrt of 512 x 512) and one torch product (512 x 512), alternating, in ms:
                                 1 thread    2 threads
    kernels / product alone    0.38 / 2.8   0.20 / 1.4
    alternating                       3.1          2.0
    alternating, busy machine     3.3-4.4        14-20     (7 when TVM's workers never spin)
The last row is OpenMP's spinning: on a machine that others use, fewer threads are faster, or
OMP_WAIT_POLICY=PASSIVE, which OpenMP reads when torch is first imported and `import sqcompile`
sets unless it is set. A whole step of examples/digits_resnet.py (forward, loss, backward, SGD, two
threads, busy machine) took 16, 36 and 45 ms in three runs without it, 14 ms in each of four with.
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
