"""Dropout of a compiled step: one mask forward and backward, new in every step, none in eval."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sqcompile
from sqcompile.runtime.step import CompiledStep


class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 20)
        self.drop = nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.layer(x))


@pytest.fixture
def step() -> CompiledStep:
    torch.manual_seed(0)
    return sqcompile.compile(Dropped(), (torch.randn(50, 8),), seed=5)


def test_forward_and_backward_drop_the_same_elements(step: CompiledStep) -> None:
    y = step(torch.randn(50, 8))
    kept = y != 0
    assert 0.6 < float(kept.float().mean()) < 0.9
    y.sum().backward()
    bias = step.get_parameter("layer.bias").grad
    torch.testing.assert_close(bias, kept.sum(0) / 0.75)


def test_masks_change_with_the_step_and_come_back_with_its_state(
    step: CompiledStep,
) -> None:
    x, state = torch.randn(50, 8), step.training_state()
    first, second = step(x) == 0, step(x) == 0
    assert not first.equal(second)
    step.load_training_state(state)
    assert (step(x) == 0).equal(first)


def test_evaluation_drops_nothing(step: CompiledStep) -> None:
    with torch.no_grad():
        y = step.eval()(torch.randn(50, 8))
    assert (y != 0).all()


class Twice(nn.Module):
    """The same probability twice: masks of their own."""

    def forward(self, x: Tensor) -> Tensor:
        features = F.dropout2d(x[..., None, None], 0.5)[..., 0, 0]
        return torch.stack([F.dropout(x, 0.5), F.dropout(x, 0.5), features])


def test_two_dropouts_of_a_module_do_not_agree() -> None:
    x = torch.ones(40, 7, requires_grad=True)
    first, second, features = sqcompile.compile(Twice(), (x,))(x) == 0
    assert 0.35 < float((first == second).float().mean()) < 0.65
    assert 0.2 < float(features.float().mean()) < 0.8


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_repeated_forward_drops_what_the_first_one_did(
    step: CompiledStep, reentrant: bool
) -> None:
    """Its input is made again, elsewhere; two segments have masks of their own."""
    x = torch.randn(50, 8, requires_grad=True)

    def segment(v: Tensor) -> Tensor:
        return step(v + 1)

    results = [checkpoint(segment, v, use_reentrant=reentrant) for v in (x, 2 * x, x)]
    masks = [y != 0 for y in results]
    assert not masks[0].equal(masks[2]) and step.training_state()["micro_step"] == 3
    elsewhere = [torch.empty(50, 8) for _ in range(8)]  # where the first inputs lay
    sum(y.sum() for y in results).backward()
    bias = step.get_parameter("layer.bias").grad
    torch.testing.assert_close(bias, sum(mask.sum(0) for mask in masks) / 0.75)
    assert step.training_state()["micro_step"] == 3 and len(elsewhere) == 8


def test_micro_batches_of_the_same_elements_are_told_apart(step: CompiledStep) -> None:
    x = torch.randn(50, 8, requires_grad=True)
    calls = (x, x.flip(0))
    results = [checkpoint(step, v, use_reentrant=False) for v in calls]
    results[0].sum().backward()
    bias = step.get_parameter("layer.bias").grad
    torch.testing.assert_close(bias, (results[0] != 0).sum(0) / 0.75)
