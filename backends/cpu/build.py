"""From a lowered module to object code: the kernels through LLVM, the calls as VM bytecode.

Objects are position independent and need no C compiler to load: an in-process linker
(apache-tvm-ffi-orcjit) places them.
"""

import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from sqcompile.backends import vm
from sqcompile.backends.cpu.host import host_cpu, vector_features
from sqcompile.backends.lower import KernelRecord
from sqcompile.backends.targets import Target
from sqcompile.errors import UsageError
from sqcompile.runtime import cache
from sqcompile.runtime.executable import Binary
from sqcompile.runtime.threads import get_num_threads

_PARTS = 8
"""How many pieces kernels are compiled in. The same on every machine, and so is the code; more
than cores, because kernels take unequal times."""


def mcpu_of(target: Target) -> str:
    """The LLVM CPU that `target` compiles for: its own, or this machine's.

    Raises UsageError for a CPU that LLVM does not know.
    """
    if not target.mcpu:
        return host_cpu()
    generic = tvm.target.Target("llvm")
    known = [str(name) for name in tvm.target.codegen.llvm_get_cpu_archlist(generic)]
    if target.mcpu not in known:
        close = ", ".join(get_close_matches(target.mcpu, known, n=3)) or "x86-64-v3"
        raise UsageError(f"LLVM knows no CPU '{target.mcpu}'; close to it: {close}")
    return target.mcpu


def llvm_target(target: Target) -> Any:
    """`target` as TVM names it."""
    return tvm.target.Target({"kind": "llvm", "mcpu": mcpu_of(target)})


def build(module: tvm.IRModule, target: Target, images: dict[str, bytes] | None = None) -> Binary:
    """Compile every function and kernel of a lowered module; 0.02 to 0.4 s a kernel, as many at
    once as there are threads (`sqcompile.set_num_threads`). `images` are what another target
    has beside the CPU's code.

    Raises UsageError for a CPU that LLVM does not know.
    """
    chosen = llvm_target(target)
    with chosen:
        calls, kernels = vm.calls_and_kernels(module)
    bytecode = vm.bytecode_of(calls, chosen)
    parts = min(_PARTS, len(kernels))
    listed = list(kernels.items())
    modules = [tvm.IRModule(dict(listed[part::parts])) for part in range(parts)]
    with ThreadPoolExecutor(get_num_threads()) as pool:
        compiled = list(pool.map(partial(_compiled, target=chosen), modules))
    return Binary.of(
        bytecode,
        vm.ports_of(module),
        [code for code, _ in compiled],
        {f"kernels_{part}.ll": ir for part, (_, ir) in enumerate(compiled)},
        images,
        target.name,
        sorted(vector_features(mcpu_of(target))),
    )


def _compiled(kernels: tvm.IRModule, target: Any) -> tuple[bytes, str]:
    """Object code and LLVM IR. Nearly all of it is LLVM's work, without Python's lock, in an LLVM
    context of its own: two threads took 8.2 s for what one took 15.1 s for."""
    library = tirx.build(kernels, target=target)
    return vm.written(library, "o"), str(library.inspect_source("ll"))


def machines(target: Target) -> list[Target]:
    """One: kernels are generated for the CPU that is compiled for."""
    return [target]


def identity(target: Target) -> str:
    """What of the target's options decides the code."""
    return mcpu_of(target)


def listings(binary: Binary) -> dict[str, str]:
    """The assembly of all LLVM IR of a binary, as files; kept in the cache like code."""
    key = cache.key_of("\n".join(["assembly", *binary.sources.values()]))
    kept = cache.load_files(key)
    if kept is None:
        with ThreadPoolExecutor(get_num_threads()) as pool:
            texts = pool.map(assembly, binary.sources.values())
            names = (f"{Path(name).stem}.s" for name in binary.sources)
            kept = {name: text.encode() for name, text in zip(names, texts, strict=True)}
        cache.store_files(key, kept)
    return {name: content.decode() for name, content in kept.items()}


def accelerator(binary: Binary, records: Sequence[KernelRecord], macs: Mapping[str, int]) -> None:
    """None: all products have kernels."""


def kernel_rows(
    binary: Binary, records: Sequence[KernelRecord], macs: Mapping[str, int]
) -> list[dict[str, Any]]:
    """None: what is to be known of a kernel for the CPU is its assembly and its time."""
    return []


def assembly(llvm_ir: str) -> str:
    """The assembly of a binary's LLVM IR, generated when asked for: it costs a third of a build.

    The IR is optimised and names its CPU, so this is the code that the object files hold.
    """
    with tempfile.TemporaryDirectory(prefix="sqcompile-") as folder:
        path = Path(folder, "kernels.ll")
        path.write_text(llvm_ir)
        return str(tvm_ffi.load_module(str(path)).inspect_source("asm"))
