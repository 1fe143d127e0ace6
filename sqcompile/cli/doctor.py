"""sqcompile doctor: what works on this machine."""

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import Any

import click

from sqcompile import __version__
from sqcompile.cli import options
from sqcompile.cli.output import Output
from sqcompile.errors import SqError, TargetUnavailableError

_PACKAGES = ("torch", "apache-tvm", "apache-tvm-ffi", "apache-tvm-ffi-orcjit", "numpy")


@click.command(
    short_help="Say what works on this machine.",
    epilog="Exit code 5 when the CPU target does not work.",
)
@options.common
@click.pass_obj
def command(output: Output) -> None:
    """Versions, the CPU as LLVM sees it, targets, and a small step compiled, run and verified."""
    facts = {"sqcompile": __version__, "python": platform.python_version()}
    facts |= {name: _version(name) for name in _PACKAGES}
    facts |= {"machine": f"{platform.system()} {platform.machine()}", "cpu": _cpu()}
    facts["threads"] = str(options.use_threads(None))
    for name, value in facts.items():
        output.say(f"{name:22}{value}")
    for name, value in (cuda := _cuda()).items():
        output.say(f"{'cuda: ' + name:22}{value}")
    targets = _targets()
    for name, state in targets.items():
        output.say(f"target {name:15}{state}")
    with output.status("compiling a small step"):
        check = _check()
    output.say(f"{'a small step':22}{check['message']}")
    output.document({"facts": facts, "cuda": cuda, "targets": targets, "check": check})
    if not check["ok"]:
        click.get_current_context().exit(TargetUnavailableError.exit_code)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    import tvm.target.codegen

    return str(tvm.target.codegen.llvm_get_system_cpu())


def _cuda() -> dict[str, str]:
    """What the CUDA target has here: compilers, which it cannot do without; a driver and a GPU to
    run on, or a C++ compiler for the emulator."""
    from sqcompile.backends.cuda.emulator.compiler import compiler
    from sqcompile.runtime import cuda

    return {
        "nvrtc": _version("nvidia-cuda-nvrtc"),
        "nvdisasm": _version("nvidia-cuda-nvdisasm"),
        "runtime": _version("nvidia-cuda-runtime"),
        "gpu": _first_line(cuda.described_device),
        "c++ compiler": _first_line(compiler),
    }


def _first_line(told: Callable[[], str]) -> str:
    """What a function tells, or the first line of why not."""
    try:
        return told()
    except TargetUnavailableError as error:
        return str(error).partition("\n")[0]


def _targets() -> dict[str, str]:
    from sqcompile.backends.targets import TARGETS

    return {target.name: target.summary for target in TARGETS.values()}


def _check() -> dict[str, Any]:
    import torch
    from torch import nn

    from sqcompile import api
    from sqcompile.runtime.verify import verify

    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    inputs = (torch.randn(4, 16),)
    start = perf_counter()
    try:
        step = api.compile(model, inputs)
        equal = verify(step, inputs).equal
    except (SqError, RuntimeError, OSError) as error:
        return {"ok": False, "message": f"failed: {error}"}
    spent = perf_counter() - start
    told = f"compiled and verified in {spent:.1f} s" if equal else "differs from its reference"
    return {"ok": equal, "message": told}
