"""CUDA kernels as OpenCL C, run by a CPU's OpenCL: one program for the kernels of many cases.

The kernels are those of the CUDA target after the CUDA target's passes; only the text is another.
What they call by CUDA's names has OpenCL's meaning here, once.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from tvm.target import Target
from tvm.tirx.build import codegen_build

from sqcompile.backends.cuda import split as splitting
from sqcompile.backends.cuda.split import SplitKernel
from sqcompile.backends.kernels import KernelSpec
from tests.backends.cuda.emulated import split_kernels

OPTIONS = ["-cl-std=CL1.2", "-cl-fp32-correctly-rounded-divide-sqrt"]
_INTRINSICS = re.compile(r"\bsq_\w+")
"""Functions of backends/cuda/intrinsics.py, which are PTX: tensor cores, copies that run on their
own, atomics."""
_CONSTANT = re.compile(r"(0x[0-9a-f.]+p[+-]\d+)f/\*-?(\d\.\d+e[+-]\d+)\*/")
_DIGITS = re.compile(r"(\d\.\d+e[+-]\d+)f")
_SHUFFLE = "__shfl_xor_sync"
_BODY = re.compile(r"(__kernel[^{]*\{)")
_PRELUDE = """
#pragma OPENCL FP_CONTRACT OFF
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
#define __float_as_int(x) as_int((float)(x))
#define __int_as_float(x) as_float((int)(x))
#define __uint_as_float(x) as_float((uint)(x))
#define fabsf fabs
#define floorf floor
#define ceilf ceil
#define truncf trunc
#define sqrtf sqrt
#define rintf rint
#define nearbyintf rint
#define SHUFFLE(T) \\
static inline T __attribute__((overloadable)) \\
shuffled(__local ulong* memory, T value, int distance) { \\
  __local T* lanes = (__local T*)memory; \\
  size_t lane = get_local_id(0); \\
  lanes[lane] = value; \\
  barrier(CLK_LOCAL_MEM_FENCE); \\
  T other = lanes[lane ^ distance]; \\
  barrier(CLK_LOCAL_MEM_FENCE); \\
  return other; \\
}
SHUFFLE(int)
SHUFFLE(uint)
SHUFFLE(long)
SHUFFLE(ulong)
SHUFFLE(float)
#define __shfl_xor_sync(every, value, distance, width) shuffled(shuffle_memory, value, distance)
"""
"""Barriers stand in for a warp's exchange: every thread of a block reaches every shuffle."""
_SHUFFLE_MEMORY = r"\1 __local ulong shuffle_memory[256];"


@dataclass(frozen=True)
class _Text:
    """Code of another kind in the place of CUDA's."""

    text: str

    def inspect_source(self, kind: str) -> str:
        return self.text


def _as_opencl(device: Any, on: Any) -> _Text:
    made = codegen_build(device, Target("opencl"))
    text = str(made.inspect_source("cl") or made.inspect_source())
    return _Text(_exact(text, str(codegen_build(device, on).inspect_source("cuda"))))


def _exact(text: str, cuda: str) -> str:
    """The source with its constants as they are. TVM prints seven digits of them for OpenCL; for
    CUDA the hexadecimal number, with those digits in a comment, in the same order."""
    numbers = _CONSTANT.findall(cuda)
    assert [digits for _, digits in numbers] == _DIGITS.findall(text), "other constants than CUDA's"
    exact = iter(numbers)
    return _DIGITS.sub(lambda _: f"{next(exact)[0]}f", text)


def in_opencl(specs: Mapping[str, KernelSpec]) -> dict[str, SplitKernel]:
    """The kernel of every spec, with OpenCL source."""
    with patch.object(splitting, "codegen_build", _as_opencl):
        return split_kernels(specs)


def without_opencl(kernels: Mapping[str, SplitKernel]) -> dict[str, list[str]]:
    """The kernels that call PTX, and what of it; nothing else is left out."""
    found = {}
    for name, kernel in kernels.items():
        _, mark, body = kernel.source.partition("__kernel")  # the definitions stand before
        calls = sorted(set(_INTRINSICS.findall(mark + body)))
        if calls:
            found[name] = calls
    return found


def program_text(kernels: Mapping[str, SplitKernel]) -> str:
    """One source of all."""
    parts = [_PRELUDE]
    for kernel in kernels.values():
        text = kernel.source
        parts.append(_BODY.sub(_SHUFFLE_MEMORY, text) if _SHUFFLE in text else text)
    return "\n".join(parts)


class OpenCL:
    """Kernels by name in one program on the first device of PoCL."""

    def __init__(self, kernels: Mapping[str, SplitKernel], device: Any) -> None:
        import pyopencl as cl

        self.cl, self.kernels = cl, dict(kernels)
        self.context = cl.Context([device])
        self.queue = cl.CommandQueue(self.context)
        self.program = cl.Program(self.context, program_text(kernels)).build(options=OPTIONS)

    def _buffer(self, size: int) -> Any:
        return self.cl.Buffer(self.context, self.cl.mem_flags.READ_WRITE, max(size, 1))

    def run(self, name: str, tensors: Sequence[torch.Tensor]) -> None:
        """Call a kernel: inputs, then the outputs, which it writes."""
        kernel = self.kernels[name]
        arrays = [one.numpy() for one in tensors]
        held = [self._buffer(array.nbytes) for array in arrays]
        workspaces = [self._buffer(size) for size in kernel.workspaces]
        filled = [(one, array) for one, array in zip(held, arrays, strict=True) if array.nbytes]
        for buffer, array in filled:
            self.cl.enqueue_copy(self.queue, buffer, array)
        for launch in kernel.launches:
            given = [held[one] if one >= 0 else workspaces[-1 - one] for one in launch.arguments]
            items = tuple(g * b for g, b in zip(launch.grid, launch.block, strict=True))
            entry = self.cl.Kernel(self.program, launch.function)
            entry(self.queue, items, launch.block, *given)
        for buffer, array in filled:
            self.cl.enqueue_copy(self.queue, array, buffer)
        self.queue.finish()
