"""From a lowered module to object code: the kernels through LLVM, the calls as VM bytecode.

Objects are position independent and need no C compiler to load: an in-process linker
(apache-tvm-ffi-orcjit) places them. Only the lowering that a flat call sequence needs runs;
Relax's operator fusion stays out, because it would put float operations of two ops into one
kernel, where LLVM may contract them.
"""

import tempfile
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import relax

from sqcompile.backends.cpu.host import host_cpu
from sqcompile.backends.targets import Target
from sqcompile.errors import UsageError
from sqcompile.runtime import cache
from sqcompile.runtime.executable import Binary, Port


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


def _lowering() -> Any:
    """The Relax passes from dataflow to VM calls, memory planned ahead."""
    steps = relax.transform
    return tvm.transform.Sequential(
        [
            steps.ToNonDataflow(),
            steps.RemovePurityChecking(),
            steps.CallTIRRewrite(),
            steps.StaticPlanBlockMemory(),
            steps.LowerAllocTensor(),
            steps.KillAfterLastUse(),
            steps.LowerRuntimeBuiltin(),
            steps.ComputePrimValue(),
            steps.VMShapeLower(),
            steps.AttachGlobalSymbol(),
        ]
    )


def _port(kind: Any) -> Port:
    return tuple(int(size) for size in kind.shape), str(kind.dtype)


def _ports(function: Any) -> tuple[list[Port], list[Port]]:
    inputs = [_port(parameter.ty) for parameter in function.params]
    return inputs, [_port(one) for one in function.ret_ty.fields]


def build(module: tvm.IRModule, target: Target) -> Binary:
    """Compile every function and kernel of a lowered module; 0.02 to 0.4 s a kernel.

    Raises UsageError for a CPU that LLVM does not know.
    """
    ports = {
        variable.name_hint: _ports(function)
        for variable, function in module.functions.items()
        if isinstance(function, relax.Function)
    }
    executable = relax.build(module, llvm_target(target), relax_pipeline=_lowering())
    with tempfile.TemporaryDirectory(prefix="sqcompile-") as folder:
        bytecode = Path(folder, "vm")
        executable.mod.write_to_file(str(bytecode), "ro")
        objects, sources = [], {}
        for index, kernels in enumerate(executable.mod.imports):
            path = Path(folder, f"kernels_{index}.o")
            kernels.write_to_file(str(path), "o")
            objects.append(path.read_bytes())
            sources[f"kernels_{index}.ll"] = kernels.inspect_source("ll")
        return Binary.of(bytecode.read_bytes(), ports, objects, sources)


def cached_build(module: tvm.IRModule, target: Target) -> Binary:
    """`build`, or what an earlier build of the same module for the same CPU left in the cache."""
    text = tvm.ir.save_json(module)
    return cache.cached(f"{mcpu_of(target)}\n{text}", lambda: build(module, target))


def assembly(llvm_ir: str) -> str:
    """The assembly of a binary's LLVM IR, generated when asked for: it costs a third of a build.

    The IR is optimised and names its CPU, so this is the code that the object files hold.
    """
    with tempfile.TemporaryDirectory(prefix="sqcompile-") as folder:
        path = Path(folder, "kernels.ll")
        path.write_text(llvm_ir)
        return str(tvm_ffi.load_module(str(path)).inspect_source("asm"))
