"""From lowered modules to a Binary for GPUs: one module for every architecture.

Calls become VM bytecode, the same for all architectures. A kernel becomes a launcher for the host,
through LLVM, and code for the GPU, through NVRTC: a cubin and the PTX it was made from. A binary
holds for each architecture, in a folder of its name,

    launchers.o     host functions, for any CPU of this machine's family
    KERNEL.cubin    what a GPU of the architecture loads
    KERNEL.ptx      what the driver of a newer GPU translates
    KERNEL.cu       the CUDA source, and KERNEL.log, what ptxas said: for readers

and device.json: what TVM's runtime must know of the device functions, and every kernel's launches.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import tvm
from tvm.tirx.build import codegen_build

from sqcompile.backends import vm
from sqcompile.backends.cuda import architectures, sass
from sqcompile.backends.cuda.nvrtc import Compiled, compile_all, nvrtc_version
from sqcompile.backends.cuda.report import kernel_rows
from sqcompile.backends.cuda.split import SplitKernel, split
from sqcompile.backends.lower import KernelRecord
from sqcompile.backends.targets import Target
from sqcompile.errors import SqError
from sqcompile.runtime.cuda import INDEX
from sqcompile.runtime.executable import Binary

__all__ = [
    "accelerator",
    "build",
    "identity",
    "kernel_rows",
    "listings",
    "machines",
]


def machines(target: Target) -> list[Target]:
    """The target once for every architecture: each has kernels of its own."""
    return architectures.machines(target)


def identity(target: Target) -> str:
    """What of the target's options decides the code; TargetUnavailableError without a compiler."""
    names = ",".join(one.name for one in architectures.parse(target.arch))
    return f"{names}{' int4' if target.int4 else ''} nvrtc {nvrtc_version()}"


def build(*modules: tvm.IRModule, target: Target) -> Binary:
    """Compile lowered modules, one for each of `target.machines()`, in their order.

    Raises UsageError for an architecture that does not exist, TargetUnavailableError without the
    packages of sqcompile[cuda].
    """
    chosen = architectures.parse(target.arch)
    nvrtc_version()
    splitter = _Splitter()
    bytecode: bytes | None = None
    images: dict[str, bytes] = {}
    sources: dict[str, str] = {}
    index: dict[str, Any] = {}
    for architecture, module in zip(chosen, modules, strict=True):
        tvm_target = architectures.cuda_target(architecture)
        with tvm_target:
            calls, kernels = vm.calls_and_kernels(module)
        found = vm.bytecode_of(calls, tvm.target.Target("llvm"))
        if bytecode not in (None, found):
            raise SqError(f"the calls for {architecture.name} differ: a bug in sqcompile")
        bytecode = found
        parts = {
            variable.name_hint: splitter.split(variable.name_hint, kernel, tvm_target)
            for variable, kernel in kernels.items()
        }
        launching = {name: part.source for name, part in parts.items() if part.launches}
        compiled = compile_all(launching, [architecture])
        index[architecture.name] = {name: _described(part) for name, part in parts.items()}
        images[f"{architecture.name}/launchers.o"] = splitter.launchers(parts)
        for (name, _), code in compiled.items():
            _add(images, sources, f"{architecture.name}/{name}", code)
    assert bytecode is not None
    images[INDEX] = json.dumps({"architectures": index}).encode()
    return Binary.of(bytecode, vm.ports_of(modules[0]), [], sources, images, "cuda")


def _add(images: dict[str, bytes], sources: dict[str, str], stem: str, code: Compiled) -> None:
    images[f"{stem}.cubin"] = code.cubin
    images[f"{stem}.ptx"] = code.ptx.encode()
    sources[f"{stem}.cu"] = code.source
    sources[f"{stem}.log"] = code.log


def _described(part: SplitKernel) -> dict[str, Any]:
    """A kernel in device.json."""
    return {
        "functions": part.functions,
        "launches": [asdict(launch) for launch in part.launches],
        "workspaces": list(part.workspaces),
    }


class _Splitter:
    """Splits kernels and compiles launchers, once for architectures whose kernels are equal."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, str], SplitKernel] = {}
        self._objects: dict[tuple[int, ...], bytes] = {}

    def split(self, name: str, kernel: Any, target: Any) -> SplitKernel:
        """`split`, or its earlier result for an equal kernel."""
        key = name, tvm.ir.save_json(kernel)
        if key not in self._parts:
            self._parts[key] = split(name, kernel, target)
        return self._parts[key]

    def launchers(self, parts: Mapping[str, SplitKernel]) -> bytes:
        """The host functions of these kernels as an object file."""
        key = tuple(id(part) for part in parts.values())
        if key not in self._objects:
            self._objects[key] = _launchers(list(parts.values()))
        return self._objects[key]


def _launchers(parts: Sequence[SplitKernel]) -> bytes:
    host = tvm.IRModule({})
    for part in parts:
        host.update(part.host)
    return vm.written(codegen_build(host, tvm.target.Target("llvm")), "o")


def accelerator(binary: Binary, records: Sequence[KernelRecord], macs: Mapping[str, int]) -> None:
    """None: all products have kernels."""


def listings(binary: Binary) -> dict[str, str]:
    """The machine code of every kernel and architecture as text, KERNEL.sass; none when the
    disassembler is not installed."""
    if not sass.installed():
        return {}
    texts: dict[str, str] = {}
    for architecture in json.loads(binary.images[INDEX])["architectures"]:
        cubins = {
            name.removesuffix(".cubin"): code
            for name, code in binary.images.items()
            if name.startswith(f"{architecture}/") and name.endswith(".cubin")
        }
        found = sass.disassemble(cubins, architecture)
        texts |= {f"{name}.sass": text for name, text in found.items()}
    return texts
