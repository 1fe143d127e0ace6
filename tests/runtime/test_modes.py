"""Which calls are the same call: modules in a mode of their own, and one tensor in two places."""

import copy

import pytest
import torch
from torch import Tensor, nn

import sqcompile
from sqcompile.errors import InputError


class Normed(nn.Module):
    """Convolution, batch norm, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.conv(x)))


class Frozen(Normed):
    """Keeps its norm in eval mode, as fine-tuning does."""

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self.norm.eval()
        return self


class Sum(nn.Module):
    """A product of the first argument, and the second one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.layer(x) + y


X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def moves(step: nn.Module) -> bool:
    """Whether a call changes the running statistics."""
    before = step.get_buffer("norm.running_mean").clone()
    step(X)
    return not torch.equal(before, step.get_buffer("norm.running_mean"))


def near(found: Tensor, wanted: Tensor) -> bool:
    """At 8 bits: another graph is off by about its whole size."""
    return float(((found - wanted).norm() / wanted.norm()).detach()) < 0.05


def test_modules_switched_after_the_first_call_are_compiled_again():
    step = sqcompile.compile(Normed(), (X,), recipe="w8a8g8")
    assert moves(step)
    step.model.norm.eval()
    assert not moves(step) and len(step.variants) == 2
    step.model.drop.eval()
    assert (step(X) == 0).float().mean() < 0.1 and len(step.variants) == 3
    step.train()
    assert moves(step) and len(step.variants) == 3
    assert step.variants[2].key.describe().endswith("in mode eval: norm, drop")


def test_the_models_own_mode_is_the_steps():
    model = Normed()
    step = sqcompile.compile(model, (X,), recipe="w8a8g8")
    model.eval()
    assert not step.training and not moves(step)
    step.train()
    assert model.training and model.drop.training and moves(step)


def test_a_model_that_keeps_its_norm_frozen_does_so_compiled():
    step = sqcompile.compile(Frozen().train(), (X,), recipe="w8a8g8")
    assert not moves(step.train()) and step.model.drop.training
    assert not copy.deepcopy(step).model.norm.training and len(step.variants) == 1


def test_dropout_that_is_left_on_for_evaluation_draws_anew():
    step = sqcompile.compile(Normed(), (X,), recipe="w8a8g8").eval()
    step.model.drop.train()
    with torch.no_grad():
        first, second = step(X) == 0, step(X) == 0
    assert first.any() and not first.equal(second)


def test_modes_are_saved(tmp_path):
    step = sqcompile.compile(Frozen().train(), (X,), recipe="w8a8g8")
    step.save(str(tmp_path / "run"))
    loaded = sqcompile.load(tmp_path / "run")
    assert not moves(loaded) and not loaded.model.norm.training
    with pytest.raises(InputError, match=r"it has:\n  train, .*, in mode eval: norm"):
        loaded.train()(X)


def test_one_tensor_for_two_arguments_is_another_call():
    torch.manual_seed(0)
    x, y, model = torch.randn(4, 16), torch.randn(4, 16), Sum()
    step = sqcompile.compile(model, (x, x), recipe="w8a8g8")
    assert near(step(x, y), model(x, y)) and len(step.variants) == 2
    assert near(step(y, y), model(y, y)) and len(step.variants) == 2
    assert step.variants[0].key.shared == ("1 is 0",)
    assert "argument 1 is 0" in step.variants[0].key.describe()


def test_a_parameter_as_an_argument_is_another_call():
    torch.manual_seed(0)
    model = Sum()
    weight, y = model.layer.weight, torch.randn(16, 16)
    step = sqcompile.compile(model, (torch.randn(16, 16), weight), recipe="w8a8g8")
    x = torch.randn(16, 16, requires_grad=True)
    assert near(step(x, y), model(x, y)) and near(step(x, weight), model(x, weight))
    assert "1 is layer.weight" in step.variants[0].key.shared
