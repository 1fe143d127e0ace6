"""What the GPU executes: cubins as SASS through nvdisasm, and what can be told from it.

`nvdisasm` is in the pip package nvidia-cuda-nvdisasm; no GPU is needed.
"""

import hashlib
import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution, version
from itertools import islice
from pathlib import Path

from sqcompile.errors import SqError, TargetUnavailableError
from sqcompile.runtime import cache

PACKAGE = "nvidia-cuda-nvdisasm"
TENSOR = ("IMMA", "HMMA", "IGMMA", "HGMMA")
"""Instructions of the tensor cores."""
_PROGRAM = "nvidia/cu13/bin/nvdisasm"
_BYTES = 16
"""Of one instruction."""
_SECTION_HEAD = struct.Struct("<IIQQQQIIQQ")
_ADDRESS = re.compile(r"^(\s+/\*)([0-9a-f]{4,})(?=\*/)")
_JUMP = re.compile(r"(\b(?:BRA|CALL|RET|BSSY|BRX|JMP|WARPSYNC)\b[^;]*?)\b0x([0-9a-f]+)(?=\s*;)")
_SECTION = re.compile(r"^\.text\.(\S+):$", re.MULTILINE)
_INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.M
)
_BRANCH = re.compile(r"/\*([0-9a-f]{4,})\*/[^;]*?\bBRA\b[^;]*?\b0x([0-9a-f]+)\s*;")
_PADDING = ("NOP",)
_EXPANDED = re.compile(r"\b(?:fma|div|rcp|sqrt)\.rn\.f(?:32|64)\b")
"""PTX whose machine code multiplies and adds in one instruction, rounded as IEEE wants."""
_EXPLICIT = re.compile(r"\b(?:fmaf?|__fmaf?_r[nzud])\s*\(")
_LOOSE = re.compile(r"^\s*(?:@!?%p\d+\s+)?((?:add|sub|mul)\.f(?:32|64))\b", re.MULTILINE)
_INEXACT = re.compile(r"\b\w+(?:\.\w+)*\.(?:approx|full|ftz)(?:\.\w+)*\b")


def program() -> Path:
    """The disassembler; raises TargetUnavailableError when it is not installed."""
    try:
        found = Path(str(distribution(PACKAGE).locate_file(_PROGRAM)))
    except PackageNotFoundError:
        found = Path()
    if not found.is_file():
        raise TargetUnavailableError(
            "nvdisasm is not installed: install it with `pip install sqcompile[cuda]`"
        )
    return found


def installed() -> bool:
    """Whether there is a disassembler."""
    try:
        program()
    except TargetUnavailableError:
        return False
    return True


def disassemble(cubins: Mapping[str, bytes], architecture: str) -> dict[str, str]:
    """The machine code of cubins for one architecture ("sm_80") as text, by the names given.

    nvdisasm takes 0.3 s to start, so the functions of all cubins are one file for it. What was
    read before is kept in the cache. Raises TargetUnavailableError without nvdisasm, SqError when
    it cannot read the code.
    """
    tool = program()
    keys = {name: _key(cubin) for name, cubin in cubins.items()}
    texts: dict[str, str] = {}
    left: dict[str, list[tuple[str, bytes]]] = {}
    for name, cubin in cubins.items():
        kept = cache.load_files(keys[name])
        if kept is None:
            left[name] = list(functions(cubin))
        else:
            texts[name] = kept["sass"].decode()
    listed = _listed(tool, [one for found in left.values() for one in found], architecture)
    for name, found in left.items():
        texts[name] = "\n".join(f".text.{symbol}:\n{next(listed)}" for symbol, _ in found)
        cache.store_files(keys[name], {"sass": texts[name].encode()})
    return {name: texts[name] for name in cubins}


def _key(cubin: bytes) -> str:
    parts = [b"sass", version(PACKAGE).encode(), cubin]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def functions(cubin: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and machine code of the functions in a cubin, a 64-bit ELF file: its sections called
    .text.NAME."""
    table, size, count, names = struct.unpack_from("<Q10xHHH", cubin, 0x28)
    heads = [_SECTION_HEAD.unpack_from(cubin, table + n * size) for n in range(count)]
    strings = heads[names][4]
    for head in heads:
        start = strings + head[0]
        name = cubin[start : cubin.index(b"\0", start)].decode()
        if name.startswith(".text."):
            yield name.removeprefix(".text."), cubin[head[4] : head[4] + head[5]]


def _listed(tool: Path, found: Sequence[tuple[str, bytes]], architecture: str) -> Iterator[str]:
    """One text for every function, its addresses from 0 on."""
    if not found:
        return
    lines = iter(_run(tool, b"".join(code for _, code in found), architecture))
    base = 0
    for _, code in found:
        part = list(islice(lines, len(code) // _BYTES))
        yield "\n".join(_moved(line, base) for line in part) + "\n"
        base += len(code)


def _run(tool: Path, code: bytes, architecture: str) -> list[str]:
    """The lines of `code`'s instructions."""
    with tempfile.NamedTemporaryFile(prefix="sqcompile-", suffix=".bin") as file:
        file.write(code)
        file.flush()
        command: list[str | Path] = [tool, "-b", architecture.replace("sm_", "SM"), file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if _ADDRESS.match(line)]
    if done.returncode or len(lines) != len(code) // _BYTES:
        raise SqError(f"nvdisasm cannot read code for {architecture}: {done.stderr}")
    return lines


def _moved(line: str, base: int) -> str:
    """A line of nvdisasm with its address, and the one it jumps to, less `base`."""

    def less(found: re.Match[str]) -> str:
        return f"{found[1]}{int(found[2], 16) - base:#x}"

    at = _ADDRESS.match(line)
    assert at is not None
    line = f"{at[1]}{int(at[2], 16) - base:04x}{line[at.end() :]}"
    return _JUMP.sub(less, line)


def instructions(sass: str) -> dict[str, Counter[str]]:
    """How often every device function's code holds each instruction, with its suffixes
    ("IMMA.16832.S8.S8"); what pads a function is left out."""
    parts = _SECTION.split(sass)[1:]
    return {
        name: Counter(one for _, one in _INSTRUCTION.findall(body) if one not in _PADDING)
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


def tensor_loops(sass: str) -> dict[str, Counter[str]]:
    """How often the shortest loop with an instruction of the tensor cores holds each instruction,
    by the device function that has one."""
    parts = _SECTION.split(sass)[1:]
    found = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        placed = [(int(at, 16), one) for at, one in _INSTRUCTION.findall(body)]
        jumps = [(int(at, 16), int(to, 16)) for at, to in _BRANCH.findall(body)]
        loops = [Counter(one for at, one in placed if to <= at <= end) for end, to in jumps]
        if multiplying := [loop for loop in loops if uses_tensor_cores(loop)]:
            found[name] = min(multiplying, key=Counter.total)
    return found


def mix(found: Mapping[str, int]) -> dict[str, int]:
    """Instructions by their first word, most frequent first; those of the tensor cores in full."""
    counted: Counter[str] = Counter()
    for name, count in found.items():
        word = name.partition(".")[0]
        counted[name if word in TENSOR else word] += count
    return dict(counted.most_common())


def uses_tensor_cores(found: Mapping[str, int]) -> bool:
    """Whether there is an instruction of the tensor cores among these."""
    return any(name.partition(".")[0] in TENSOR for name in found)


def rounding_faults(source: str, ptx: str, found: Mapping[str, int]) -> list[str]:
    """Where code may round otherwise than one IEEE rounding for each float operation; none is what
    every kernel must have.

    A product and a sum in one instruction is a fault unless the CUDA source asks for it; divisions
    and square roots that are rounded to nearest are made of such instructions.
    """
    faults = [f"{name} in PTX" for name in sorted(set(_INEXACT.findall(_code(ptx))))]
    faults += [
        f"{name} in PTX, which ptxas may contract" for name in sorted(set(_LOOSE.findall(ptx)))
    ]
    explicit = bool(_EXPLICIT.search(source))
    if not explicit and re.search(r"\bfma\.", ptx):
        faults.append("fma in PTX, not in the source")
    fused = [name for name in found if name.partition(".")[0] in ("FFMA", "DFMA", "FFMA32I")]
    if fused and not explicit and not _EXPANDED.search(ptx):
        faults.append(f"{fused[0]} in SASS, neither asked for nor part of a division")
    return faults


def _code(ptx: str) -> str:
    """PTX without its comments."""
    return re.sub(r"//[^\n]*", "", ptx)
