"""Compiling many kernels at once, so that LLVM starts once per CPU and not once per case."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import tvm

from sqcompile.backends import targets
from sqcompile.backends.cpu.build import llvm_target
from tests.backends.cases import Case

OLDER_CPUS = ["x86-64-v3", "x86-64"]
"""One with AVX2 and FMA but without AVX-512, and the oldest one."""


@dataclass
class Compiled:
    """The kernels of many cases in one module."""

    functions: dict[str, Callable[..., None]]
    assembly: Callable[[], str]


def compile_cases(cases: list[Case], mcpu: str) -> Compiled:
    """Generate and compile one kernel per case for `mcpu`."""
    target = targets.get("cpu", mcpu=mcpu)
    module, names = {}, {}
    with target.compiled_for():
        for index, case in enumerate(cases):
            spec, name = case.spec(), f"k{index}"
            kernel = target.kernels[spec.op]
            function = kernel.generate(spec.without(kernel.run_time))
            module[name] = function.with_attr("global_symbol", name)
            names[case.name] = name
    built = tvm.compile(tvm.IRModule(module), target=llvm_target(target))
    functions = {case: built[name] for case, name in names.items()}
    return Compiled(functions, lambda: str(built.mod.inspect_source("asm")))


@pytest.fixture(scope="session")
def compiled(request: pytest.FixtureRequest) -> Callable[[str], Compiled]:
    """compiled(mcpu): the kernels of the cases that this run selected for that CPU."""
    wanted: dict[str, dict[str, Case]] = {}
    for item in request.session.items:
        values: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
        if isinstance(values.get("case"), Case):
            case = values["case"]
            wanted.setdefault(values.get("mcpu", ""), {})[case.name] = case
    made: dict[str, Compiled] = {}

    def get(mcpu: str) -> Compiled:
        if mcpu not in made:
            made[mcpu] = compile_cases(list(wanted[mcpu].values()), mcpu)
        return made[mcpu]

    return get
