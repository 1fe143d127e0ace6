"""Kernels of many cases through NVRTC into one emulated module: each tool starts once."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from sqcompile.backends import targets
from sqcompile.backends.cuda import architectures
from sqcompile.backends.cuda.emulator import Module, emulate
from sqcompile.backends.cuda.emulator.batch import compile_together
from sqcompile.backends.cuda.nvrtc import ptx_of
from sqcompile.backends.cuda.split import SplitKernel, split
from sqcompile.backends.kernels import KernelSpec
from tests.backends.test_kernels import bits

ARCH = "sm_75"
"""The oldest architecture: what its PTX holds runs on all."""
_PACKAGES = {"cuda.bindings": "cuda-bindings", "nvidia.cu13": "nvidia-cuda-nvrtc"}
_FIRST_KERNEL = 'extern "C" __global__'


def split_kernels(
    specs: Mapping[str, KernelSpec], arch: str = ARCH, prefix: str = "k", int4: bool = False
) -> dict[str, SplitKernel]:
    """The kernel of every spec, split, by the names of `specs`; functions are called `prefix` and
    a number."""
    target = targets.get("cuda", arch=arch, int4=int4)
    found = {}
    with target.compiled_for() as on:
        for index, (name, spec) in enumerate(specs.items()):
            kernel = target.kernels[spec.op]
            function = kernel.generate(spec.without(kernel.run_time))
            symbol = f"{prefix}{index}"
            found[name] = split(symbol, function.with_attr("global_symbol", symbol), on)
    return found


def joined(sources: Sequence[str]) -> str:
    """One source of several: the longest of TVM's preambles serves all kernels."""
    sources = [source for source in sources if source]
    parts = [source.partition(_FIRST_KERNEL) for source in sources]
    preamble = max((head for head, _, _ in parts), key=len, default="")
    return "\n".join(
        ["#include <math_constants.h>", preamble, *(mark + body for _, mark, body in parts)]
    )


def missing() -> str:
    """What keeps kernels from being compiled and emulated here, or nothing."""
    for module, package in _PACKAGES.items():
        try:
            there = find_spec(module) is not None
        except ModuleNotFoundError:
            there = False
        if not there:
            return f"{package} is not installed"
    return "" if shutil.which("g++") else "g++ is not installed"


@dataclass
class Emulated:
    """Kernels by name, and the module that has their device functions."""

    kernels: dict[str, SplitKernel]
    module: Module

    def run(self, name: str, tensors: Sequence[torch.Tensor]) -> None:
        """Call a kernel: inputs, then the outputs, which it writes."""
        arrays = [one.numpy() for one in tensors]
        kernel = self.kernels[name]
        memory = self.module.memory
        workspaces = [memory.alloc(size) for size in kernel.workspaces]
        try:
            for launch in kernel.launches:
                given = [_argument(one, arrays, workspaces) for one in launch.arguments]
                self.module.launch(launch.function, launch.grid, launch.block, given, launch.shared)
        finally:
            for address in workspaces:
                memory.free(address)


def _argument(place: int, arrays: Sequence[np.ndarray[Any, Any]], workspaces: Sequence[int]) -> Any:
    return arrays[place] if place >= 0 else workspaces[-1 - place]


def emulated(specs: Mapping[str, KernelSpec], arch: str = ARCH, int4: bool = False) -> Emulated:
    """Generate, compile and translate the kernels of all specs."""
    kernels = split_kernels(specs, arch, int4=int4)
    source = joined([one.source for one in kernels.values()])
    module = emulate(ptx_of(source, architectures.get(arch)))
    compile_together(module)
    return Emulated(kernels, module)


def wrong(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Where bits differ; which NaN a NaN is differs between processors."""
    differ = bits(got) != bits(want)
    return differ & ~(got.isnan() & want.isnan()) if got.dtype == torch.float32 else differ
