"""The targets: what each is called, what it can do, and where its kernels are."""

import os
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from torch.fx import Node

from sqcompile.backends.kernels import KernelTable, spec_of
from sqcompile.errors import UsageError

MCPU = "SQCOMPILE_MCPU"
"""Environment variable: the LLVM CPU that the CPU target compiles for instead of this one."""

ENTRY_POINTS = "sqcompile.targets"
"""Group of the entry points by which installed packages bring targets, each by its name: a module
that registers it when it is imported."""


@dataclass(frozen=True)
class Target:
    """A place to run on, as data.

    `package` holds the kernels and the module `build` that makes code of them; `mcpu` is the LLVM
    name of the CPU, empty for the machine that compiles; `arch` lists GPU architectures, empty for
    all of them; `int4` multiplies 4-bit integers as such where those can; `hw` names the
    accelerator; `plain_products`: products are lowered without their epilogues.
    """

    name: str
    package: str
    summary: str
    mcpu: str = ""
    arch: str = ""
    int4: bool = False
    hw: str = ""
    plain_products: bool = False
    options: tuple[str, ...] = field(default=())

    @cached_property
    def kernels(self) -> KernelTable:
        """The table of kernels of this target."""
        table = import_module(self.package).KERNELS
        assert isinstance(table, KernelTable)
        return table

    def compiled_for(self) -> Any:
        """The TVM target that kernels are generated and compiled for: that of the first machine."""
        return import_module(self.package).compiled_for(self)

    @property
    def builder(self) -> Any:
        """The module that makes code of lowered modules. It has

        machines(target): the target once for every machine that kernels are generated for;
        identity(target): all of the options that decides code, as text;
        build(*modules, target=target): a Binary of one lowered module per machine;
        listings(binary): texts for readers, by file name, that are made when they are asked for;
        kernel_rows(binary, records, macs): rows of a report on every kernel, of what is known
        without running it; each has "faults", which no kernel may have;
        accelerator(binary, records, macs): for a target that does not run every product, a mapping
        with those that it leaves to the CPU ("left": why, by node), else None; `macs` are those of
        all products, by node ("forward/mm_1");
        left_to_cpu(spec, target): of such a target, see `Target.left_to_cpu`.
        """
        return import_module(f"{self.package}.build")

    @property
    def accelerates(self) -> bool:
        """Whether the target runs some of the products and leaves all else to the CPU."""
        return self.plain_products

    def left_to_cpu(self, node: Node) -> str | None:
        """Why a product that the target has a kernel for runs on the CPU beside it, "" when it
        does not; None for what is no product, and for a target that runs all."""
        if not self.accelerates:
            return None
        found: str | None = self.builder.left_to_cpu(spec_of(node)[0], self)
        return found

    def machines(self) -> "list[Target]":
        """The target once for every machine that kernels are generated for.

        Raises UsageError for an architecture that does not exist.
        """
        found: list[Target] = self.builder.machines(self)
        return found


class _Targets(dict[str, Target]):
    """Targets by name; one that is not there yet is looked for in installed packages."""

    def __missing__(self, name: str) -> Target:
        for point in entry_points(group=ENTRY_POINTS, name=name):
            point.load()
        if name not in self:
            raise KeyError(name)
        return self[name]


TARGETS = _Targets(
    (target.name, target)
    for target in (
        Target("cpu", "sqcompile.backends.cpu", "any CPU that LLVM knows", options=("mcpu",)),
        Target("cuda", "sqcompile.backends.cuda", "NVIDIA GPUs", options=("arch", "int4")),
        Target(
            "vta",
            "sqcompile.backends.vta.graph",
            "the VTA accelerator",
            hw="pynq",
            options=("hw", "mcpu"),
            plain_products=True,
        ),
    )
)


def register(target: Target) -> None:
    """Add a target from outside of this package; `sqcompile.runtime.machines.register` says how its
    code is loaded. Raises ValueError when there is one of that name."""
    if target.name in TARGETS:
        raise ValueError(f"there is a target '{target.name}' already")
    TARGETS[target.name] = target


def _find(name: str) -> Target:
    try:
        return TARGETS[name]
    except KeyError:
        installed = {point.name for point in entry_points(group=ENTRY_POINTS)}
        names = [*TARGETS, *sorted(installed - set(TARGETS))]
        close = get_close_matches(name, names, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(names)}"
        raise UsageError(f"there is no target '{name}'; {hint}") from None


def get(name: str, **options: Any) -> Target:
    """The target called `name`, with options of its own (cpu: mcpu="x86-64-v3"; cuda:
    arch="sm_80,sm_90", int4=True; vta: hw="pynq-int4" or a JSON file).

    Raises UsageError for a name, an option, an architecture or an accelerator that does not exist.
    """
    target = _find(name)
    for option in options:
        if option not in target.options:
            known = ", ".join(target.options) or "none"
            raise UsageError(f"target '{name}' has no option '{option}' (its options: {known})")
    if "mcpu" in target.options:
        options = {"mcpu": os.environ.get(MCPU, "")} | options
    found = replace(target, **options)
    if found.arch or found.hw:
        found.machines()
    return found
