"""The calls of a lowered module as bytecode of TVM's virtual machine; every target has them.

Only the lowering that a flat call sequence needs runs; Relax's operator fusion stays out, because
it would put float operations of two ops into one kernel, where a compiler may contract them.
"""

import tempfile
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, tirx

from sqcompile.runtime.executable import Port


def calls_and_kernels(module: tvm.IRModule) -> tuple[tvm.IRModule, dict[Any, Any]]:
    """A lowered module as VM calls, memory planned ahead, and its kernels by global variable; to
    be called with the target in scope."""
    lowered = _lowering()(module)
    kernels = {v: f for v, f in lowered.functions.items() if isinstance(f, tirx.PrimFunc)}
    calls = {v: f for v, f in lowered.functions.items() if v not in kernels}
    return tvm.IRModule(calls, attrs=lowered.attrs), kernels


def bytecode_of(calls: tvm.IRModule, target: Any) -> bytes:
    """What the virtual machine loads."""
    return written(relax.build(calls, target, relax_pipeline=None).mod, "ro")


def ports_of(module: tvm.IRModule) -> dict[str, tuple[list[Port], list[Port]]]:
    """Inputs and outputs of every Relax function of a lowered module."""
    return {
        variable.name_hint: _ports(function)
        for variable, function in module.functions.items()
        if isinstance(function, relax.Function)
    }


def written(module: Any, kind: str) -> bytes:
    """A runtime module as the bytes of a file of that kind."""
    with tempfile.TemporaryDirectory(prefix="sqcompile-") as folder:
        path = Path(folder, f"module.{kind}")
        module.write_to_file(str(path), kind)
        return path.read_bytes()


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
