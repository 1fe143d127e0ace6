"""Targets by name, and what they say when they cannot."""

import pytest

from sqcompile.backends import targets
from sqcompile.backends.cpu.build import mcpu_of
from sqcompile.backends.cpu.machine import machine
from sqcompile.errors import UsageError


def test_a_misspelt_target_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match="no target 'cpuu'; did you mean 'cpu'"):
        targets.get("cpuu")


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(UsageError, match="target 'cpu' has no option 'arch'"):
        targets.get("cpu", arch="sm_80")


def test_an_accelerator_that_does_not_exist_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no VTA called 'pynk'.*did you mean 'pynq'"):
        targets.get("vta", hw="pynk")


def test_a_target_is_one_machine_or_one_for_each_architecture() -> None:
    cpu = targets.get("cpu")
    assert cpu.machines() == [cpu]
    archs = [one.arch for one in targets.get("cuda", arch="sm_90,sm_75,sm_90").machines()]
    assert archs == ["sm_75", "sm_90"]
    assert len(targets.get("cuda").machines()) == 5


class Installed:
    """An entry point of a package that brings a target."""

    name = "mine"

    def load(self) -> None:
        targets.register(targets.Target("mine", "mine", "mine alone"))


def test_an_installed_package_brings_its_target(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [Installed()]
    monkeypatch.setattr(targets, "TARGETS", type(targets.TARGETS)(targets.TARGETS))
    monkeypatch.setattr(
        targets,
        "entry_points",
        lambda group, name=None: [one for one in points if name in (None, one.name)],
    )
    with pytest.raises(UsageError, match="no target 'mime'; did you mean 'mine'"):
        targets.get("mime")
    assert targets.get("mine").summary == "mine alone"
    points.clear()
    assert targets.get("mine").name == "mine"
    with pytest.raises(ValueError, match="there is a target 'mine' already"):
        Installed().load()


def test_the_cpu_compiled_for_is_an_option_or_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert mcpu_of(targets.get("cpu", mcpu="x86-64-v3")) == "x86-64-v3"
    monkeypatch.setenv(targets.MCPU, "x86-64")
    assert mcpu_of(targets.get("cpu")) == "x86-64"
    assert mcpu_of(targets.get("cpu", mcpu="x86-64-v3")) == "x86-64-v3"


def test_a_cpu_that_llvm_does_not_know_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="LLVM knows no CPU 'znver44'; close to it: znver4"):
        mcpu_of(targets.get("cpu", mcpu="znver44"))


def test_a_machine_is_data_read_from_the_target_in_scope() -> None:
    for mcpu, bits, dot, depth in (
        ("znver4", 512, "vpdpbusd", 4),
        ("x86-64-v4", 512, "pmaddwd", 2),
        ("x86-64-v3", 256, "pmaddwd", 2),
        ("x86-64", 128, "pmaddwd", 2),
    ):
        with targets.get("cpu", mcpu=mcpu).compiled_for():
            found = machine()
        assert (found.mcpu, found.vector_bits) == (mcpu, bits)
        assert (found.dot.name, found.dot.depth, found.dot.lanes) == (dot, depth, bits // 32)


def test_a_kernel_is_generated_for_some_cpu() -> None:
    with pytest.raises(RuntimeError, match="no target in scope"):
        machine()
