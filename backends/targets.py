"""The targets: what each is called, what it can do, and where its kernels are."""

import os
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from importlib import import_module
from typing import Any

from sqcompile.backends.kernels import KernelTable
from sqcompile.errors import TargetUnavailableError, UsageError

MCPU = "SQCOMPILE_MCPU"
"""Environment variable: the LLVM CPU that the CPU target compiles for instead of this one."""


@dataclass(frozen=True)
class Target:
    """A place to run on, as data.

    `package` holds the kernels (None: not built yet); `mcpu` is the LLVM name of the CPU, empty
    for the machine that compiles.
    """

    name: str
    package: str | None
    summary: str
    mcpu: str = ""
    options: tuple[str, ...] = field(default=())

    @cached_property
    def kernels(self) -> KernelTable:
        """The table of kernels of this target."""
        assert self.package is not None
        table = import_module(self.package).KERNELS
        assert isinstance(table, KernelTable)
        return table

    def compiled_for(self) -> Any:
        """The TVM target that kernels are generated and compiled for."""
        assert self.package is not None
        return import_module(self.package).compiled_for(self)


TARGETS = {
    target.name: target
    for target in (
        Target("cpu", "sqcompile.backends.cpu", "any CPU that LLVM knows", options=("mcpu",)),
        Target("cuda", None, "NVIDIA GPUs"),
        Target("vta", None, "the VTA accelerator"),
    )
}


def get(name: str, **options: Any) -> Target:
    """The target called `name`, with options of its own (cpu: mcpu="x86-64-v3").

    Raises UsageError for a name or an option that does not exist, TargetUnavailableError for a
    target whose kernels this version does not have.
    """
    if name not in TARGETS:
        close = get_close_matches(name, TARGETS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(TARGETS)}"
        raise UsageError(f"there is no target '{name}'; {hint}")
    target = TARGETS[name]
    for option in options:
        if option not in target.options:
            known = ", ".join(target.options) or "none"
            raise UsageError(f"target '{name}' has no option '{option}' (its options: {known})")
    if target.package is None:
        built = ", ".join(t.name for t in TARGETS.values() if t.package)
        raise TargetUnavailableError(
            f"target '{name}' ({target.summary}) is not in this version; built are: {built}"
        )
    if "mcpu" in target.options:
        options = {"mcpu": os.environ.get(MCPU, "")} | options
    return replace(target, **options)
