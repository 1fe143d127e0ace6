"""The GPU architectures that kernels are compiled for: what each can do, its limits, its peaks.

Instructions are those of the PTX ISA ("Warp-level matrix instructions": shapes by .target);
limits are the CUDA programming guide's table of compute capabilities and, for what is allocated
in units, NVIDIA's cuda_occupancy.h (package nvidia-cuda-runtime). Peaks are those that NVIDIA
publishes for one device of the architecture, dense, at boost clock. Nothing here was measured.
"""

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple

import tvm

from sqcompile.errors import UsageError

if TYPE_CHECKING:
    from sqcompile.backends.targets import Target


class Mma(NamedTuple):
    """A matrix instruction of a warp: int32 (m, n) += (m, k) @ (k, n) of integers of `bits`."""

    m: int
    n: int
    k: int
    bits: int

    @property
    def name(self) -> str:
        """Its shape as PTX writes it: "m16n8k32"."""
        return f"m{self.m}n{self.n}k{self.k}"


@dataclass(frozen=True)
class Limits:
    """What a streaming multiprocessor (SM) and a block may hold; sizes in bytes.

    shared_block is what a kernel may ask for at launch; 48 KiB of it without asking.
    shared_reserved is what the system takes of every block. Registers are handed out to warps,
    shared memory to blocks, in units of these sizes.
    """

    threads_sm: int
    blocks_sm: int
    shared_sm: int
    shared_block: int
    shared_reserved: int
    shared_unit: int
    registers_sm: int = 65536
    registers_thread: int = 255
    register_unit: int = 256
    threads_block: int = 1024
    warp: int = 32
    partitions: int = 4

    @property
    def warps_sm(self) -> int:
        """Warps that an SM holds at most."""
        return self.threads_sm // self.warp


@dataclass(frozen=True)
class Peaks:
    """What NVIDIA publishes for `device`: int8 and float32 operations a second (an addition and a
    multiplication are two) and bytes a second of its memory."""

    device: str
    sms: int
    int8: float
    float32: float
    bandwidth: float
    source: str


@dataclass(frozen=True)
class Architecture:
    """One architecture, as kernels and reports ask for it."""

    name: str
    mma: tuple[Mma, ...]
    cp_async: bool
    limits: Limits
    peaks: Peaks
    ldmatrix: bool = True
    dp4a: bool = True
    int4: bool = False
    """Whether kernels may multiply integers of 4 bits as such: an option of the target."""

    @property
    def number(self) -> int:
        """Compute capability times ten: 80."""
        return int(self.name.removeprefix("sm_"))

    @property
    def virtual(self) -> str:
        """The architecture of its PTX: "compute_80"."""
        return f"compute_{self.number}"

    def best_mma(self, bits: int) -> Mma | None:
        """The widest native matrix instruction for integers of `bits`, None without one."""
        fitting = [one for one in self.mma if one.bits == bits]
        return max(fitting, key=lambda one: one.m * one.n * one.k, default=None)


_S8_SMALL = Mma(8, 8, 16, 8)
_S4_SMALL = Mma(8, 8, 32, 4)
_S8 = (_S8_SMALL, Mma(16, 8, 16, 8), Mma(16, 8, 32, 8))
_S4 = (_S4_SMALL, Mma(16, 8, 32, 4), Mma(16, 8, 64, 4))
_KIB = 1024

ARCHITECTURES = {
    one.name: one
    for one in (
        Architecture(
            "sm_75",
            (_S8_SMALL, _S4_SMALL),
            cp_async=False,
            limits=Limits(1024, 16, 64 * _KIB, 64 * _KIB, 0, 256),
            peaks=Peaks(
                "T4", 40, 130e12, 8.1e12, 320e9, "NVIDIA Turing architecture whitepaper, table 5"
            ),
        ),
        Architecture(
            "sm_80",
            (*_S8, *_S4),
            cp_async=True,
            limits=Limits(2048, 32, 164 * _KIB, 163 * _KIB, _KIB, 128),
            peaks=Peaks(
                "A100 40GB", 108, 624e12, 19.5e12, 1555e9, "NVIDIA A100 datasheet (A100 40GB)"
            ),
        ),
        Architecture(
            "sm_86",
            (*_S8, *_S4),
            cp_async=True,
            limits=Limits(1536, 16, 100 * _KIB, 99 * _KIB, _KIB, 128),
            peaks=Peaks("A10", 72, 250e12, 31.2e12, 600e9, "NVIDIA A10 datasheet"),
        ),
        Architecture(
            "sm_89",
            (*_S8, *_S4),
            cp_async=True,
            limits=Limits(1536, 24, 100 * _KIB, 99 * _KIB, _KIB, 128),
            peaks=Peaks(
                "RTX 4090", 128, 660.6e12, 82.6e12, 1008e9, "NVIDIA Ada architecture whitepaper"
            ),
        ),
        Architecture(
            "sm_90",
            _S8,  # the int4 shapes compile, into several int8 instructions each
            cp_async=True,
            limits=Limits(2048, 32, 228 * _KIB, 227 * _KIB, _KIB, 128),
            peaks=Peaks(
                "H100 SXM5",
                132,
                1978.9e12,
                66.9e12,
                3352e9,
                "NVIDIA H100 architecture whitepaper (its int8 peak needs wgmma)",
            ),
        ),
    )
}
"""By name, oldest first."""

DEFAULT = ",".join(ARCHITECTURES)
_INT4 = "feature.int4"
"""The attribute of a TVM target that stands for Architecture.int4."""


def get(name: str) -> Architecture:
    """The architecture called `name` ("sm_80"); raises UsageError for one that is not there."""
    if name not in ARCHITECTURES:
        hint = f"there are {', '.join(ARCHITECTURES)}"
        raise UsageError(f"there is no GPU architecture '{name}'{_nearest(name)} {hint}")
    return ARCHITECTURES[name]


def _nearest(name: str) -> str:
    """The question after a misspelt name: by number, or by spelling where there is none."""
    number = re.fullmatch(r"\D*(\d\d)[a-z]?", name)
    if number is None:
        close = get_close_matches(name, ARCHITECTURES, n=1)
    else:
        known = ARCHITECTURES.values()
        close = [min(known, key=lambda one: abs(one.number - int(number[1]))).name]
    return f"; did you mean '{close[0]}'?" if close else ";"


def parse(text: str) -> tuple[Architecture, ...]:
    """The architectures of a list like "sm_80,sm_90", each once, oldest first; all of them for "".

    Raises UsageError for an unknown one or an empty place in the list.
    """
    names = [name.strip() for name in (text or DEFAULT).split(",")]
    if "" in names:
        raise UsageError(f"an empty name in the list of GPU architectures '{text}'")
    return tuple(sorted({get(name) for name in names}, key=lambda one: one.number))


def machines(target: "Target") -> "list[Target]":
    """`target` once for each of its architectures, oldest first."""
    return [replace(target, arch=one.name) for one in parse(target.arch)]


def compiled_for(target: "Target") -> Any:
    """The TVM target of the first architecture of `target`."""
    return cuda_target(parse(target.arch)[0], target.int4)


def cuda_target(architecture: Architecture, int4: bool = False) -> Any:
    """The architecture as TVM names it. The host is any CPU of this machine's family: an artifact
    goes to another machine."""
    told = {"kind": "cuda", "arch": architecture.name}
    return tvm.target.Target(told | ({_INT4: "1"} if int4 else {}), host="llvm")


def current() -> Architecture:
    """The architecture of the TVM target in scope; RuntimeError when there is none."""
    target = tvm.target.Target.current(allow_none=True)
    if target is None or target.kind.name != "cuda":
        raise RuntimeError("no CUDA target in scope: generate kernels inside one")
    found = get(str(target.attrs["arch"]))
    return replace(found, int4=True) if _INT4 in target.attrs else found
