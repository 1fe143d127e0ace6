"""The study of learned steps: its grids, its gradients, what it replaces."""

import learned_steps
import pytest
import torch
from torch import nn

from examples.resnet20 import ResNet20


@pytest.mark.parametrize(("rows", "signed"), [(1, False), (6, True)])
def test_a_learned_step_gives_few_values_and_learns(rows, signed):
    torch.manual_seed(0)
    x = torch.randn(6, 40) if signed else torch.randn(6, 40).relu()
    grid = learned_steps.LearnedStep(rows, signed)
    grid(x).square().sum().backward()
    with torch.no_grad():
        steps = grid(x) / grid.step.view(rows, 1)
    assert len(steps.round().unique()) <= 16
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)  # one division away
    assert grid.step.grad.abs().min() > 0


def test_the_gradient_of_a_step_is_that_of_the_paper():
    """LSQ, equation 3: round(v) - v inside, the bound outside; scaled by (N Qp)^-1/2."""
    x = torch.tensor([0.3, 1.6, 40.0])
    grid = learned_steps.LearnedStep(1, signed=False)
    grid.step.data.fill_(1.0)
    grid(x).sum().backward()
    wanted = (-0.3 + 0.4 + 15.0) / (3 * 15) ** 0.5
    torch.testing.assert_close(grid.step.grad, torch.tensor([wanted]))


def test_gradients_pass_straight_through_our_grids():
    x = torch.rand(2, 4, 3, 3, requires_grad=True)
    y = learned_steps.straight_through(x, learned_steps.our_activation)
    y.sum().backward()
    assert not torch.equal(y, x) and torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("scheme", learned_steps.SCHEMES)
def test_inner_convolutions_are_rounded(scheme):
    model = learned_steps.rounded(lambda: ResNet20(depth=1), scheme)
    inner = [m for m in model.modules() if isinstance(m, learned_steps.RoundedConv)]
    assert len(inner) == 8 and isinstance(model.stem, nn.Conv2d)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
