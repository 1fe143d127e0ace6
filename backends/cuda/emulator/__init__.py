"""An emulator of NVIDIA GPUs for the PTX that NVRTC emits: `emulate(text).launch(...)`.

It translates PTX to C++, runs the threads of every block as fibers, and checks what a GPU does
not: bounds to the byte, races, barriers that not all threads reach, values that nobody wrote.
"""

from sqcompile.backends.cuda.emulator.faults import Fault, LaunchError, PtxError
from sqcompile.backends.cuda.emulator.memory import Memory
from sqcompile.backends.cuda.emulator.module import ALL, NONE, Checks, Module, emulate

__all__ = [
    "ALL",
    "NONE",
    "Checks",
    "Fault",
    "LaunchError",
    "Memory",
    "Module",
    "PtxError",
    "emulate",
]
