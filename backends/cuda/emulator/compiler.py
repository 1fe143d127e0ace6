"""Compiling translated kernels with the C++ compiler of this machine, kept by content."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache as once
from pathlib import Path

from sqcompile.errors import TargetUnavailableError
from sqcompile.runtime import cache

CXX = "CXX"
"""Environment variable: the C++ compiler to use."""
_NAMES = ("g++", "clang++", "c++")
_RUNTIME = Path(__file__).parent / "runtime"
# No contraction to fused operations, and signed integers wrap around: PTX says both.
_FLAGS = ["-std=c++17", "-w", "-fPIC", "-shared", "-ffp-contract=off", "-fwrapv"]
_FLAGS += ["-fno-strict-aliasing", "-fno-exceptions", "-fvisibility=hidden"]
KERNEL_FLAGS = [*_FLAGS, "-O1"]
RUNTIME_FLAGS = [*[flag for flag in _FLAGS if flag != "-fno-exceptions"], "-O3", "-pthread"]


def compiler() -> str:
    """The path of a C++ compiler: $CXX, or the first of g++, clang++ and c++.

    Raises TargetUnavailableError with what to install when there is none.
    """
    given = os.environ.get(CXX)
    for name in [given] if given else _NAMES:
        if path := shutil.which(name):
            return path
    missing = f"{given} ({CXX})" if given else " or ".join(_NAMES)
    raise TargetUnavailableError(
        f"the PTX emulator needs a C++ compiler, and {missing} is not there. "
        "Install one (Debian and Ubuntu: apt install g++; Fedora: dnf install gcc-c++; "
        "conda: conda install gxx), or name one in CXX."
    )


def build(source: str, flags: list[str]) -> bytes:
    """The shared library of a C++ source that includes headers of the runtime.

    Kept in sqcompile's cache, named after all that decides it. An error of the compiler is an
    error of the translation, and raises RuntimeError with its messages.
    """
    path = compiler()
    key = _key(source, flags, path)
    kept = cache.load_files(key)
    if kept is not None:
        return kept["kernel.so"]
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
        file.write_text(source)
        command = [path, *flags, f"-I{_RUNTIME}", "-o", str(out), str(file)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr[:4000]}")
        library = out.read_bytes()
    cache.store_files(key, {"kernel.so": library, "kernel.cpp": source.encode()})
    return library


def _key(source: str, flags: list[str], path: str) -> str:
    parts = [source, "\0".join(flags), _version(path), _headers()]
    return hashlib.sha256("\0\0".join(parts).encode()).hexdigest()


@once
def _version(path: str) -> str:
    """What the compiler says of itself: an update compiles again."""
    result = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return path + result.stdout


@once
def _headers() -> str:
    return "\0".join(file.name + file.read_text() for file in sorted(_RUNTIME.glob("*.*")))


def open_library(library: bytes) -> ctypes.CDLL:
    """Load a shared library from its bytes; the file is gone once it is loaded."""
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(library)
        file.flush()
        return ctypes.CDLL(file.name)


@once
def runtime() -> ctypes.CDLL:
    """The scheduler, compiled at its first use."""
    library = open_library(build((_RUNTIME / "runtime.cpp").read_text(), RUNTIME_FLAGS))
    library.ptx_launch.restype = ctypes.c_uint32
    return library
