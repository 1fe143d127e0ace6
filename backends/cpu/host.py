"""Which CPU this machine is, as far as compiled code may rely on it.

LLVM names a CPU by its model, and with the name come instructions that a hypervisor may hide;
code that used them would end the process. So the name is only taken when the operating system
shows all of its vector instructions, and the generic level below it otherwise.
"""

from typing import Any

import tvm

from sqcompile.runtime import cpu_flags

_LEVELS = (
    ("x86-64-v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    ("x86-64-v3", {"avx2", "bmi1", "bmi2", "fma", "f16c"}),
    ("x86-64-v2", {"sse42", "popcnt"}),
)
_ALSO_CALLED = {"bmi": "bmi1"}


def host_cpu() -> str:
    """The LLVM name of a CPU whose every vector instruction this machine has."""
    name = str(tvm.target.codegen.llvm_get_system_cpu())
    shown = cpu_flags.shown()
    if not shown or not (vector_features(name) - shown):
        return name
    return next((level for level, needed in _LEVELS if needed <= shown), "x86-64")


def vector_features(name: str) -> set[str]:
    """The vector instructions of the CPU that LLVM calls `name`, as `cpu_flags` names them."""
    target: Any = tvm.target.Target({"kind": "llvm", "mcpu": name})
    features = {str(one) for one in tvm.target.codegen.llvm_get_cpu_features(target)}
    wanted = {f for f in features if f.startswith("avx") or f in ("fma", "f16c", "bmi", "bmi2")}
    return {_ALSO_CALLED.get(feature, feature) for feature in wanted}
