"""Architectures: what they are called, what each can do."""

import pytest
import tvm

from sqcompile.backends.cuda import architectures
from sqcompile.backends.cuda.architectures import ARCHITECTURES, cuda_target, current, get, parse
from sqcompile.errors import UsageError


def test_a_list_is_parsed_without_doubles_oldest_first() -> None:
    assert [one.name for one in parse("sm_90, sm_75,sm_90")] == ["sm_75", "sm_90"]
    assert [one.name for one in parse("")] == ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90"]


@pytest.mark.parametrize(
    "name, hint",
    [
        ("sm_85", "did you mean 'sm_86'"),
        ("sm_100", "there are sm_75"),
        ("80", "did you mean 'sm_80'"),
        ("sm_90a", "did you mean 'sm_90'"),
        ("sm-80", "did you mean 'sm_80'"),
        ("ampere", "there are sm_75, sm_80, sm_86, sm_89, sm_90"),
    ],
)
def test_an_unknown_architecture_gets_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"no GPU architecture '{name}'.*{hint}"):
        parse(f"sm_80,{name}")


def test_an_empty_place_in_a_list_is_an_error() -> None:
    with pytest.raises(UsageError, match="empty name"):
        parse("sm_80,,sm_90")


def test_only_turing_lacks_what_ampere_brought() -> None:
    for name, one in ARCHITECTURES.items():
        assert one.cp_async == (name != "sm_75")
        widest = one.best_mma(8)
        assert widest is not None
        assert widest.name == ("m8n8k16" if name == "sm_75" else "m16n8k32")


def test_int4_is_native_up_to_ada() -> None:
    assert get("sm_90").best_mma(4) is None
    native = get("sm_89").best_mma(4)
    assert native is not None and native.name == "m16n8k64"


def test_kernels_ask_for_the_architecture_in_scope() -> None:
    with cuda_target(get("sm_86")):
        assert current() is ARCHITECTURES["sm_86"]
    with tvm.target.Target("llvm"), pytest.raises(RuntimeError, match="no CUDA target in scope"):
        current()


def test_defaults_are_all_architectures() -> None:
    assert architectures.DEFAULT.split(",") == list(ARCHITECTURES)
