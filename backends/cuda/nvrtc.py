"""CUDA source to machine code through NVRTC, from pip packages alone: no toolkit, no C++ compiler.

Every kernel is compiled with the same options: no fast math, no contraction of a product and a
sum, denormals kept, division and square root rounded to nearest, so that one float operation of a
kernel is one IEEE rounding. NVRTC hands ptxas the same options. One compilation gives cubin, PTX
and the log of ptxas.

TVM's sources include headers of libcu++ for integer types and type traits, and CUDA's constants.
They are replaced by the few lines that TVM uses: parsing libcu++ took 0.55 of 0.57 s of a small
kernel's compilation.
They include mma.h and sm_61_intrinsics.h; nothing of these is used. So no header of CUDA
is needed.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sqcompile.backends.cuda.architectures import Architecture
from sqcompile.errors import SqError, TargetUnavailableError
from sqcompile.runtime import cache
from sqcompile.runtime.threads import get_num_threads

OPTIONS = (
    "-default-device",
    "--fmad=false",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
    "-diag-suppress=177",  # a variable that is not used: TVM writes many
    "--ptxas-options=-v",
)
PACKAGES = ("nvidia-cuda-nvrtc", "cuda-bindings")
_INSTALL = "install it with `pip install sqcompile[cuda]`"
_SHOWN_LINES = 12

_HEADERS = {
    "cuda/std/cstdint": """#pragma once
namespace cuda { namespace std {
using int8_t = signed char; using uint8_t = unsigned char;
using int16_t = short; using uint16_t = unsigned short;
using int32_t = int; using uint32_t = unsigned int;
using int64_t = long long; using uint64_t = unsigned long long;
} }
""",
    "cuda/std/type_traits": """#pragma once
namespace cuda { namespace std {
template <bool Value> struct constant { static constexpr bool value = Value; };
template <class A, class B> struct is_same : constant<false> {};
template <class A> struct is_same<A, A> : constant<true> {};
template <class A, class B> inline constexpr bool is_same_v = is_same<A, B>::value;
template <class A> struct is_floating_point
    : constant<is_same_v<A, float> || is_same_v<A, double>> {};
template <class A> struct is_signed : constant<(A(-1) < A(0))> {};
template <class A> struct is_unsigned : constant<(A(0) < A(-1))> {};
template <class A> struct is_integral
    : constant<(is_signed<A>::value || is_unsigned<A>::value) && !is_floating_point<A>::value> {};
template <bool Condition, class A = void> struct enable_if {};
template <class A> struct enable_if<true, A> { using type = A; };
template <bool Condition, class A, class B> struct conditional { using type = A; };
template <class A, class B> struct conditional<false, A, B> { using type = B; };
} }
""",
    "mma.h": "",
    "sm_61_intrinsics.h": "",
    "math_constants.h": """#pragma once
#define CUDART_INF_F __int_as_float(0x7f800000)
#define CUDART_NAN_F __int_as_float(0x7fffffff)
""",
}


@dataclass(frozen=True)
class Usage:
    """What ptxas gave a kernel: registers of a thread, barriers, and bytes of the stack, of
    registers that spilled to memory, of shared and of constant memory."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int
    constant: int
    barriers: int


@dataclass(frozen=True)
class Compiled:
    """One CUDA source compiled for one architecture."""

    architecture: str
    source: str
    cubin: bytes
    ptx: str
    log: str

    @cached_property
    def usage(self) -> dict[str, Usage]:
        """What every kernel of the source uses, by name."""
        return usages(self.log)


def compile_source(source: str, architecture: Architecture, name: str = "kernel") -> Compiled:
    """Compile `source` (CUDA C++; kernels are extern "C"), or find it compiled in the cache.

    Raises TargetUnavailableError when NVRTC is not installed, SqError with NVRTC's messages when
    the source does not compile.
    """
    key = _key(source, architecture)
    kept = cache.load_files(key)
    if kept is None:
        kept = _run(source, architecture, name)
        cache.store_files(key, kept)
    return Compiled(
        architecture.name,
        source,
        kept["cubin"],
        kept["ptx"].decode(),
        kept["log"].decode(),
    )


def ptx_of(source: str, architecture: Architecture) -> str:
    """The PTX of a source alone, which `compile_source` gives too: what is emulated needs no
    machine code, and ptxas takes a third of the time."""
    return _run(source, architecture, "kernel", code=False)["ptx"].decode()


def compile_all(
    sources: Mapping[str, str], architectures: Iterable[Architecture]
) -> dict[tuple[str, str], Compiled]:
    """Every source for every architecture, by (source's name, architecture's name), as many at
    once as there are threads; NVRTC works without Python's lock."""
    todo = [(name, one) for name in sources for one in architectures]
    with ThreadPoolExecutor(get_num_threads()) as pool:
        done = pool.map(lambda job: compile_source(sources[job[0]], job[1], job[0]), todo)
        return {
            (name, one.name): compiled for (name, one), compiled in zip(todo, done, strict=True)
        }


def nvrtc_version() -> str:
    """The version of the NVRTC package; raises TargetUnavailableError when there is none."""
    try:
        return version(PACKAGES[0])
    except PackageNotFoundError as error:
        raise TargetUnavailableError(f"CUDA's compiler is not installed: {_INSTALL}") from error


def usages(log: str) -> dict[str, Usage]:
    """What ptxas -v says of every kernel, by name."""
    found: dict[str, Usage] = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        name = part.partition("'")[0]
        found[name] = Usage(
            registers=_number(r"Used (\d+) registers", part),
            stack=_number(r"(\d+) bytes stack frame", part),
            spill_stores=_number(r"(\d+) bytes spill stores", part),
            spill_loads=_number(r"(\d+) bytes spill loads", part),
            shared=_number(r"(\d+) bytes smem", part),
            constant=sum(int(one) for one in re.findall(r"(\d+) bytes cmem\[\d+\]", part)),
            barriers=_number(r"used (\d+) barriers", part),
        )
    return found


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def _key(source: str, architecture: Architecture) -> str:
    """The name in the cache: everything that decides the code, and nothing else, so that kernels
    outlive a change of this package that leaves their source as it was."""
    parts = (nvrtc_version(), *OPTIONS, *_HEADERS.values(), architecture.name, source)
    return hashlib.sha256("\0".join(("nvrtc", *parts)).encode()).hexdigest()


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError) as error:
        raise TargetUnavailableError(
            f"CUDA's compiler cannot be loaded ({error}): {_INSTALL}"
        ) from error
    return nvrtc


def _run(source: str, architecture: Architecture, name: str, code: bool = True) -> dict[str, bytes]:
    """cubin, ptx and log of one compilation; PTX and log alone without `code`."""
    nvrtc = _nvrtc()
    headers = [text.encode() for text in _HEADERS.values()]
    names = [header.encode() for header in _HEADERS]
    status, program = nvrtc.nvrtcCreateProgram(
        source.encode(), f"{name}.cu".encode(), len(headers), headers, names
    )
    _check(nvrtc, status)
    try:
        chosen = architecture.name if code else architecture.virtual
        options = [f"--gpu-architecture={chosen}", *OPTIONS]
        (status,) = nvrtc.nvrtcCompileProgram(
            program, len(options), [option.encode() for option in options]
        )
        log = _read(nvrtc, "ProgramLog", program).decode(errors="replace")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise SqError(_refusal(name, architecture, log))
        made = {"ptx": _read(nvrtc, "PTX", program), "log": _settled(log).encode()}
        return made | ({"cubin": _read(nvrtc, "CUBIN", program, text=False)} if code else {})
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _check(nvrtc: Any, status: Any) -> None:
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise SqError(f"NVRTC failed: {nvrtc.nvrtcGetErrorString(status)[1].decode()}")


def _read(nvrtc: Any, what: str, program: Any, text: bool = True) -> bytes:
    """A result of a compilation; texts end in a zero."""
    status, size = getattr(nvrtc, f"nvrtcGet{what}Size")(program)
    _check(nvrtc, status)
    content = bytearray(size)
    (status,) = getattr(nvrtc, f"nvrtcGet{what}")(program, content)
    _check(nvrtc, status)
    return bytes(content).rstrip(b"\0") if text else bytes(content)


def _refusal(name: str, architecture: Architecture, log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    shown = "\n".join(f"  {line}" for line in lines[:_SHOWN_LINES])
    return (
        f"kernel {name} does not compile for {architecture.name}:\n{shown}\n"
        "  this is a bug in sqcompile: report it with the model file."
    )


def _settled(log: str) -> str:
    """The log without how long ptxas took, so that equal code has equal logs."""
    lines = [line.rstrip() for line in log.splitlines() if "Compile time" not in line]
    return "\n".join(line for line in lines if line) + "\n"
