"""Targets by name, and what they say when they cannot."""

import pytest

from sqcompile.backends import targets
from sqcompile.backends.cpu.build import features, mcpu_of
from sqcompile.errors import TargetUnavailableError, UsageError


def test_a_misspelt_target_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match="no target 'cpuu'; did you mean 'cpu'"):
        targets.get("cpuu")


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(UsageError, match="target 'cpu' has no option 'arch'"):
        targets.get("cpu", arch="sm_80")


@pytest.mark.parametrize("name", ["cuda", "vta"])
def test_targets_that_are_not_built_say_so(name: str) -> None:
    with pytest.raises(TargetUnavailableError, match=f"target '{name}'.*not in this version"):
        targets.get(name)


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


def test_features_of_a_cpu_are_data() -> None:
    assert features(targets.get("cpu", mcpu="x86-64")).vector_bits == 128
    modern = features(targets.get("cpu", mcpu="znver4"))
    assert (modern.vector_bits, modern.vnni) == (512, True)
