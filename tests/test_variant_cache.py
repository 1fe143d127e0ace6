"""A variant that an earlier process compiled is found by what Dynamo sees, and only then."""

import gc
import weakref
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sqcompile
from sqcompile import api, variant_cache
from sqcompile.capture import trace
from sqcompile.fingerprint import fingerprint
from sqcompile.report.data import report
from sqcompile.runtime import cache


class Net(nn.Module):
    """Two layers; a tensor that is no buffer, and a plain value among the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 12), nn.BatchNorm1d(12), nn.Linear(12, 4)
        self.shift = torch.arange(12.0)
        self.factor = 0.5
        self.label = "plain"

    def forward(self, x: Tensor) -> dict[str, Tensor | str]:
        h = torch.relu(self.norm(self.first(x)) + self.shift) * self.factor
        return {"y": self.last(h), "label": self.label}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.DIRECTORY, str(tmp_path))
    return tmp_path / "builds"


def made(seed: int = 0) -> tuple[Net, Tensor]:
    torch.manual_seed(seed)
    return Net(), torch.randn(16, 8)


def text(model: nn.Module, x: Tensor) -> str | None:
    return fingerprint(trace(model, (x,), {}))


def test_values_of_parameters_and_inputs_do_not_matter() -> None:
    assert text(*made(0)) == text(*made(1)) is not None


def changed(change: Callable[[Net], object]) -> tuple[Net, Tensor]:
    model, x = made()
    change(model)
    return model, x


class _Other(Net):
    def forward(self, x: Tensor) -> dict[str, Tensor | str]:
        return {**super().forward(x)}


OTHERS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "a constant tensor's contents": lambda: changed(lambda m: m.shift.add_(1)),
    "a constant in the graph": lambda: changed(lambda m: setattr(m, "factor", 0.25)),
    "a plain value among the outputs": lambda: changed(lambda m: setattr(m, "label", "other")),
    "a frozen parameter": lambda: changed(lambda m: m.first.weight.requires_grad_(False)),
    "the mode": lambda: changed(lambda m: m.eval()),
    "a tied parameter": lambda: changed(lambda m: setattr(m.norm, "bias", m.norm.weight)),
    "a parameter's strides": lambda: changed(
        lambda m: setattr(m.first, "weight", nn.Parameter(torch.randn(8, 12).t()))
    ),
    "the lines of the model": lambda: (_Other(), torch.randn(16, 8)),
    "the inputs' shape": lambda: (Net(), torch.randn(32, 8)),
    "the inputs' strides": lambda: (Net(), torch.randn(8, 16).t()),
    "an input that wants a gradient": lambda: (Net(), torch.randn(16, 8, requires_grad=True)),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_else_compilation_reads_matters(what: str) -> None:
    assert text(*OTHERS[what]()) not in (text(*made()), None)


def test_ambient_state_matters() -> None:
    before = text(*made())
    with torch.autocast("cpu", torch.bfloat16):
        assert text(*made()) not in (before, None)
    with torch.device("cpu"):
        assert text(*made()) is None, "a mode can change what any function does"


@torch.library.custom_op("sqtest::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_an_op_that_its_name_does_not_define_has_no_text() -> None:
    class Foreign(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(twice(x))

    assert text(Foreign(8, 4), torch.randn(2, 8)) is None


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("compiled again")


def trained(step: sqcompile.api.CompiledStep, x: Tensor) -> list[Tensor]:
    result = step(x)
    result["y"].square().sum().backward()
    values = [result["y"].detach(), *(p.grad for p in step.parameters()), *step.buffers()]
    return [value.clone() for value in values]


def test_a_variant_found_computes_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = made()
    first = trained(sqcompile.compile(model, (x,)), x)
    model, x = made()
    with monkeypatch.context() as patch:
        patch.setattr(api, "lower", forbidden)
        patch.setattr(api, "differentiate", forbidden)
        step = sqcompile.compile(model, (x,))
        second = trained(step, x)
        assert step(x)["label"] == "plain"
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(first) > 8


def test_a_variant_found_is_verified_and_reported_as_one_that_was_compiled() -> None:
    model, x = made()
    compiled = report(sqcompile.compile(model, (x,)))
    step = sqcompile.compile(made()[0], (x,))
    for parameter in step.parameters():  # the graphs are those of the call, not of what came later
        parameter.requires_grad_(False)
    found = report(step)
    for data in (compiled, found):
        for stages in (data["stages"], *(one["stages"] for one in data["variants"])):
            for stage in stages:
                del stage["milliseconds"]
    assert found == compiled
    for parameter in step.parameters():
        assert not parameter.requires_grad
        parameter.requires_grad_(True)
    assert sqcompile.verify(step, (x,)).equal


def test_options_of_a_compilation_are_part_of_the_key() -> None:
    x = torch.randn(16, 8)
    for options in ({}, {"recipe": "w8a8g8"}, {"check_finite": True}, {"recipe": {"groups": 2}}):
        step = sqcompile.compile(Net(), (x,), **options)
        assert sqcompile.verify(step, (x,)).equal
        again = sqcompile.compile(Net(), (x,), **options)
        assert again.variants[0].executable.binary == step.variants[0].executable.binary
        assert again.variants[0].signature == step.variants[0].signature


def test_a_variant_whose_code_is_gone_is_compiled_again(own_cache: Path) -> None:
    model, x = made()
    step = sqcompile.compile(model, (x,))
    for entry in own_cache.iterdir():
        if (entry / "vm.bin").exists():
            (entry / "vm.bin").unlink()
    again = sqcompile.compile(model, (x,))
    one, other = (s.variants[0].executable.binary for s in (step, again))
    assert one.objects == other.objects and one.vm == other.vm


def test_kernels_that_are_not_the_packages_turn_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[object] = []
    monkeypatch.setattr(variant_cache, "_own", lambda target: False)
    monkeypatch.setattr(variant_cache.cache, "store_files", lambda *given: stored.append(given))
    model, x = made()
    sqcompile.compile(model, (x,))
    assert len(stored) == 1, "the code, and no variant"


Pair = namedtuple("Pair", "y z")


def test_a_variant_whose_output_has_no_json_form_is_not_kept(own_cache: Path) -> None:
    class Named(nn.Linear):
        def forward(self, x: Tensor) -> Pair:
            y = super().forward(x)
            return Pair(y, -y)

    model, x = Named(8, 4), torch.randn(16, 8)
    step = sqcompile.compile(model, (x,))
    assert isinstance(step(x), Pair)
    with pytest.raises(TypeError, match="its structure has no JSON form: TreeSpec.namedtuple"):
        step.variants[0].signature.to_json()
    assert not list(own_cache.rglob("variant.json"))


@pytest.mark.parametrize("found", [False, True])
def test_a_variant_keeps_no_batch(found: bool) -> None:
    model, x = made()
    if found:
        sqcompile.compile(model, (x,))
    x = torch.randn(16, 8)
    step = sqcompile.compile(made()[0], (x,))
    batch = weakref.ref(x)
    del x
    gc.collect()
    assert batch() is None
    assert step.variants[0].forward is not None
