"""sqcompile doctor: what works on this machine, and what to do about the rest."""

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from time import perf_counter
from typing import Any

import click

from sqcompile import __version__
from sqcompile.cli import options
from sqcompile.cli.output import Output
from sqcompile.errors import SqError, TargetUnavailableError

OK, MISSING, BROKEN = "ok", "missing", "broken"
_STYLES = {OK: "green", MISSING: "yellow", BROKEN: "red"}

NEEDED = ("torch", "apache-tvm", "apache-tvm-ffi", "apache-tvm-ffi-orcjit", "numpy")
EXTRAS = {
    "cuda": (
        "nvidia-cuda-nvrtc",
        "nvidia-cuda-runtime",
        "nvidia-cuda-nvdisasm",
        "cuda-bindings",
        "cuda-pathfinder",
    ),
    "onnx": ("onnx", "onnxruntime"),
    "docs": ("mkdocs", "mkdocs-material", "mkdocstrings"),
    "demo": ("scikit-learn",),
}
"""Packages by the extra that installs them; a test compares them with pyproject.toml."""
_FOR = {
    "cuda": "compiling for GPUs",
    "onnx": "export to and import from ONNX",
    "docs": "building the documentation",
    "demo": "the data of examples/digits_resnet.py",
}
_DRIVER = "on a machine with an NVIDIA GPU: install its driver, 580 or newer"
_COMPILER = "apt install g++ (Fedora: dnf install gcc-c++; conda: conda install gxx)"


@dataclass(frozen=True)
class Line:
    """One thing that works or not: what it is, its state, what is there or why not, and what to do
    about it. Only what is `needed` makes the command fail."""

    name: str
    state: str
    detail: str
    remedy: str = ""
    needed: bool = False


@click.command(
    short_help="Say what works on this machine and what to install.",
    epilog="Exit code 5 when the CPU target does not work.",
)
@options.common
@click.pass_obj
def command(output: Output) -> None:
    """Say what works here: packages, the CPU as LLVM sees it, every target with a small step that
    is compiled, run and verified, and every extra; and the command that brings what is missing.

    \b
      sqcompile doctor
      sqcompile doctor --json
    """
    lines = []
    for line in [*_basics(), *_targets(output), *_extras()]:
        lines.append(line)
        _tell(output, line)
    broken = [line for line in lines if line.needed and line.state != OK]
    output.say()
    output.say(_summary(lines))
    output.document({"ok": not broken, "checks": [asdict(line) for line in lines]})
    if broken:
        click.get_current_context().exit(TargetUnavailableError.exit_code)


def _tell(output: Output, line: Line) -> None:
    from rich.text import Text

    shown = Text.assemble(f"{line.name:22}", (f"{line.state:9}", _STYLES[line.state]), line.detail)
    output.say(shown)
    if line.remedy:
        output.say(f"{'':31}-> {line.remedy}")


def _summary(lines: list[Line]) -> str:
    wrong = [line.name for line in lines if line.state != OK]
    works = len(lines) - len(wrong)
    return f"{works} of {len(lines)} work" + (f"; not: {', '.join(wrong)}" if wrong else "")


def install(extra: str = "") -> str:
    """The command that installs sqcompile with an extra: as it was installed, from a checkout or
    as a package."""
    suffix = f"[{extra}]" if extra else ""
    return f"pip install -e '.{suffix}'" if _from_checkout() else f"pip install 'sqcompile{suffix}'"


def _from_checkout() -> bool:
    try:
        found = distribution("sqcompile")
    except PackageNotFoundError:
        return True
    return '"editable": true' in (found.read_text("direct_url.json") or "")


def _version(name: str) -> str:
    """A package's version, "" when it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _basics() -> Iterator[Line]:
    yield Line("sqcompile", OK, f"{__version__}, Python {platform.python_version()}")
    for name in NEEDED:
        found = _version(name)
        yield Line(
            name,
            OK if found else MISSING,
            found or "not installed",
            "" if found else install(),
            needed=True,
        )
    yield Line("machine", OK, f"{platform.system()} {platform.machine()}, {_cpu()}")
    yield _cache()


def _cpu() -> str:
    """`znver4, 2 threads`: the CPU as LLVM calls it."""
    import tvm.target.codegen

    return f"{tvm.target.codegen.llvm_get_system_cpu()}, {options.use_threads(None)} threads"


def _cache() -> Line:
    """Whether the build cache can be written."""
    from sqcompile.runtime import cache

    folder = cache.folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"{folder}: {error.strerror}"
        return Line("build cache", BROKEN, why, "set SQCOMPILE_CACHE_DIR to a folder of yours")
    if not os.access(folder, os.W_OK):
        remedy = "set SQCOMPILE_CACHE_DIR to a folder of yours"
        return Line("build cache", BROKEN, f"{folder} cannot be written", remedy)
    return Line("build cache", OK, str(folder))


def _targets(output: Output) -> Iterator[Line]:
    """Every target: what it needs, then a small step that was compiled for it."""
    with output.status("compiling a small step for the cpu"):
        yield _step("cpu", "report it with --debug", needed=True)
    with output.status("compiling a small step for vta"):
        yield _step("vta", "report it with --debug")
    yield from _cuda(output)


def _cuda(output: Output) -> Iterator[Line]:
    """Compilers, which the target cannot do without; a GPU, or a C++ compiler for the emulator that
    runs its kernels without one."""
    from sqcompile.backends.cuda.emulator.compiler import compiler
    from sqcompile.runtime import cuda, machines

    yield _told("cuda: GPU", cuda.described_device, _DRIVER)
    yield _told("cuda: emulator", compiler, _COMPILER)
    if not _version("nvidia-cuda-nvrtc"):
        yield Line("target cuda", MISSING, "no CUDA compiler (NVRTC)", install("cuda"))
    elif machines.present("cuda"):
        with output.status("compiling a small step for cuda"):
            yield _step("cuda", "update the driver, or give --arch")
    else:
        with output.status("compiling a small step for cuda"):
            yield _step("cuda", _COMPILER, arch="sm_80")


def _told(name: str, tell: Callable[[], str], remedy: str) -> Line:
    """What a function tells, or the first line of why not."""
    try:
        return Line(name, OK, tell())
    except TargetUnavailableError as error:
        return Line(name, MISSING, str(error).partition("\n")[0], remedy)


def _step(target: str, remedy: str, *, needed: bool = False, **chosen: Any) -> Line:
    """A small step compiled for a target, run and compared with its reference."""
    import torch
    from torch import nn

    from sqcompile import api
    from sqcompile.backends import targets
    from sqcompile.runtime.verify import verify_on_target

    name = f"target {target}"
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    inputs = (torch.randn(4, 16),)
    start = perf_counter()
    try:
        step = api.compile(model, inputs, target=targets.get(target, **chosen))
        results, executed_by = verify_on_target(step, inputs)
    except (SqError, RuntimeError, OSError) as error:
        why = str(error).partition("\n")[0]
        state = MISSING if isinstance(error, TargetUnavailableError) else BROKEN
        return Line(name, state, why, remedy, needed)
    if not all(result.equal for result in results):
        return Line(name, BROKEN, "a small step differs from its reference", remedy, needed)
    spent = perf_counter() - start
    detail = f"a small step compiled and verified in {spent:.1f} s, run by {executed_by}"
    return Line(name, OK, detail, needed=needed)


def _extras() -> Iterator[Line]:
    for extra, names in EXTRAS.items():
        missing = [name for name in names if not _version(name)]
        found = ", ".join(f"{name} {_version(name)}" for name in names if name not in missing)
        detail = f"no {', '.join(missing)} (for {_FOR[extra]})" if missing else found
        remedy = install(extra) if missing else ""
        yield Line(f"extra [{extra}]", MISSING if missing else OK, detail, remedy)
