"""Activations, softmax and losses against torch in float64, with autograd for their gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sqcompile.ops import OPS

CURVE = [1.5, 1.25, 0.5]


def function(name: str) -> Callable[..., Any]:
    return OPS[f"sq::{name}"].reference


def _elu(x: Tensor) -> Tensor:
    return torch.ops.aten.elu(x, *CURVE)


@pytest.mark.parametrize(
    ("name", "options", "exact"),
    [
        ("gelu", [False], F.gelu),
        ("gelu", [True], lambda x: F.gelu(x, approximate="tanh")),
        ("silu", [], F.silu),
        ("hardswish", [], F.hardswish),
        ("elu", CURVE, _elu),
    ],
)
def test_activations_and_gradients(
    name: str, options: list[Any], exact: Callable[..., Tensor]
) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.randn(4000, generator=generator)])
    g = torch.randn(x.shape, generator=generator)
    leaf = x.double().requires_grad_()
    wanted = exact(leaf)
    (slope,) = torch.autograd.grad(wanted, leaf, g.double())
    got = function(name)(x, *options)
    assert ((got - wanted).abs() <= 1e-6 * (1 + x.abs())).all()
    rest = [False] if name == "elu" else []
    got = function(f"{name}_backward")(g, x, *options, *rest)
    corner = (x.abs() - 3.0).abs() < 1e-6 if name == "hardswish" else torch.zeros_like(x).bool()
    assert ((got - slope).abs() <= 2e-5 * (1 + g.abs()))[~corner].all()


def test_elu_backward_from_its_result() -> None:
    x = torch.linspace(-5, 5, 101)
    g = torch.ones_like(x)
    y = function("elu")(x, *CURVE)
    got = function("elu_backward")(g, y, *CURVE, True)
    assert torch.allclose(got, function("elu_backward")(g, x, *CURVE, False), atol=1e-6)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("length", [1, 7, 65, 1500])
def test_softmax_and_gradient(name: str, length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    x = torch.randn(6, length, generator=generator) * 8
    g = torch.randn(6, length, generator=generator)
    leaf = x.double().requires_grad_()
    wanted = getattr(F, name)(leaf, -1)
    (slope,) = torch.autograd.grad(wanted, leaf, g.double())
    got = function(name)(x)
    assert torch.allclose(got.double(), wanted, rtol=1e-5, atol=1e-5 * (name != "softmax"))
    got = function(f"{name}_backward")(g, got)
    assert torch.allclose(got.double(), slope, rtol=1e-5, atol=1e-5)


def test_softmax_of_masked_rows() -> None:
    x = torch.full((2, 20), -torch.inf)
    x[1, 3], x[1, 17] = 2.0, 2.0
    got = function("softmax")(x)
    assert got[0].equal(torch.zeros(20))
    assert got[1].nonzero().flatten().tolist() == [3, 17] and got[1, 3] == 0.5
    assert function("softmax_backward")(torch.ones(2, 20), got).isfinite().all()


@pytest.mark.parametrize("weighted", [False, True])
def test_nll_loss_and_gradient(weighted: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(30, 5, generator=generator).log_softmax(-1)
    target = torch.randint(0, 5, (30,), generator=generator)
    weight = torch.rand(5, generator=generator) if weighted else None
    g = torch.randn(30, generator=generator)
    leaf = x.double().requires_grad_()
    double = None if weight is None else weight.double()
    wanted = F.nll_loss(leaf, target, double, ignore_index=2, reduction="none")
    (slope,) = torch.autograd.grad(wanted, leaf, g.double())
    losses, weights = function("nll_loss")(x, target, weight, 2)
    assert torch.allclose(losses.double(), wanted) and (losses[target == 2] == 0).all()
    own = torch.ones(5) if weight is None else weight
    assert weights.equal(torch.where(target == 2, 0.0, own[target]))
    got = function("nll_loss_backward")(g, target, weight, 2, 5)
    assert torch.allclose(got.double(), slope)
    one = function("nll_loss_backward")(g[:1], target, weight, 2, 5)
    assert one.equal(function("nll_loss_backward")(g[:1].expand(30), target, weight, 2, 5))


def test_targets_that_are_no_class_read_no_other_memory() -> None:
    x = torch.arange(8.0).view(2, 4)
    losses, _ = function("nll_loss")(x, torch.tensor([-7, 99]), None, -100)
    assert losses.tolist() == [0.0, -7.0]
