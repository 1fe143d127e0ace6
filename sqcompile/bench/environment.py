"""What a measurement was made on: the machine, its state, and the versions that ran."""

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from sqcompile import __version__

VERSIONS = ("torch", "apache-tvm", "apache-tvm-ffi", "numpy", "onnxruntime")
_CPUINFO = Path("/proc/cpuinfo")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "avx_vnni")
SAME = ("cpu", "cores", "flags", "versions", "compiler")
"""What must be equal for two runs' times to be compared."""


def environment() -> dict[str, Any]:
    """cpu: the model's name; cores: those of this process; flags: instruction sets that matter to
    products; governor: of the frequency, None where it cannot be read; load: of the last minute;
    compiler: what torch.compile uses, None without."""
    return {
        "sqcompile": __version__,
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in _FLAGS if flag in _cpuinfo("flags").split()],
        "governor": _read(_GOVERNOR),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: found for name in VERSIONS if (found := _version(name))},
        "compiler": compiler(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }


def compiler() -> str | None:
    """`g++ 12.2.0`: the C++ compiler that torch.compile needs for a CPU, or None."""
    path = shutil.which(os.environ.get("CXX", "g++"))
    if path is None:
        return None
    done = subprocess.run([path, "-dumpfullversion"], capture_output=True, text=True, check=False)
    return f"{Path(path).name} {done.stdout.strip()}"


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """One line for everything of two environments that makes times hard to compare."""
    return [
        f"{name}: {_shown(a.get(name))} and {_shown(b.get(name))}"
        for name in SAME
        if a.get(name) != b.get(name)
    ]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _cpuinfo(name: str) -> str:
    text = _read(_CPUINFO) or ""
    lines = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
