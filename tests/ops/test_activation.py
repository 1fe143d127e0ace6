"""Activations, softmax and losses against torch in float64, with autograd for their gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sqcompile.ops import OPS
from sqcompile.passes.save_slopes import GELU, RANGES, Range, grid

CURVE = [1.5, 1.25, 0.5]


def function(name: str) -> Callable[..., Any]:
    return OPS[f"sq::{name}"].reference


def _elu(x: Tensor) -> Tensor:
    return torch.ops.aten.elu(x, *CURVE)


def _values() -> tuple[Tensor, Tensor]:
    """Places, and a gradient at each."""
    generator = torch.Generator().manual_seed(1)
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.randn(4000, generator=generator)])
    return x, torch.randn(x.shape, generator=generator)


def _gelu(x: Tensor, approximate: bool) -> tuple[Tensor, Tensor]:
    cdf = function("gelu_cdf")(x, approximate)
    return x * cdf, function("gelu_slope")(x, cdf, approximate)


def _silu(x: Tensor) -> tuple[Tensor, Tensor]:
    s = function("sigmoid")(x)
    return x * s, function("silu_slope")(x, s)


def _hardswish(x: Tensor) -> tuple[Tensor, Tensor]:
    raised = (x + 3.0).clamp(0.0, 6.0)
    return (x * raised) / 6.0, function("hardswish_slope")(raised)


def _of_result(name: str, *options: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        y = function(name)(x, *options)
        is_result = [True] if options else []
        return y, function(f"{name}_slope")(y, *options, *is_result)

    return both


ACTIVATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Tensor], Range]] = {
    "gelu": (lambda x: _gelu(x, False), F.gelu, GELU[False]),
    "gelu-tanh": (lambda x: _gelu(x, True), lambda x: F.gelu(x, approximate="tanh"), GELU[True]),
    "silu": (_silu, F.silu, RANGES[OPS["sq::silu_slope"].target]),
    "hardswish": (_hardswish, F.hardswish, RANGES[OPS["sq::hardswish_slope"].target]),
    "tanh": (_of_result("tanh"), torch.tanh, RANGES[OPS["sq::tanh_slope"].target]),
    "sigmoid": (_of_result("sigmoid"), torch.sigmoid, RANGES[OPS["sq::sigmoid_slope"].target]),
    "elu": (_of_result("elu", *CURVE), _elu, (0.0, 1.25, 1.25)),
}
"""(value and slope, the same in torch, range of the slope)"""


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_gradients(name: str) -> None:
    ours, exact, reach = ACTIVATIONS[name]
    x, g = _values()
    leaf = x.double().requires_grad_()
    wanted = exact(leaf)
    (gradient,) = torch.autograd.grad(wanted, leaf, g.double())
    value, slope = ours(x)
    assert ((value - wanted).abs() <= 1e-6 * (1 + x.abs())).all()
    corner = (x.abs() - 3.0).abs() < 1e-6 if name == "hardswish" else torch.zeros_like(x).bool()
    near = 5e-5 if name == "gelu" else 2e-5
    assert ((g * slope - gradient).abs() <= near * (1 + g.abs()))[~corner].all()
    assert slope.min() >= reach[0] - near and slope.max() <= reach[1] + near
    assert slope.max() - slope.min() > 0.99 * (reach[1] - reach[0]), "the range is the slope's"


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_quantised_slopes(name: str, bits: int) -> None:
    """Half a step from autograd's gradient, and exactly 0 and g at flat ends."""
    ours, exact, reach = ACTIVATIONS[name]
    x, g = _values()
    low, high, levels, anchor = grid(*reach, bits)
    q = function("quantize_slope")(ours(x)[1], levels / anchor, low, high)
    assert q.dtype == torch.uint8 and int(q.max()) < 2**bits
    got = function("slope_backward")(g, q, low, anchor / levels)
    leaf = x.double().requires_grad_()
    (wanted,) = torch.autograd.grad(exact(leaf), leaf, g.double())
    half = 0.5 * anchor / levels
    corner = (x.abs() - 3.0).abs() < 1e-6 if name == "hardswish" else torch.zeros_like(x).bool()
    assert ((got - wanted).abs() <= (half + 5e-5) * (1e-5 + g.abs()))[~corner].all()
    if name not in ("tanh", "sigmoid"):
        assert got[x == -20].abs().max() <= (0 if name != "elu" else half)
        assert got[x == 20].equal(g[x == 20] * torch.tensor(anchor))


def test_slopes_are_numbers_everywhere() -> None:
    x = torch.tensor([-torch.inf, -3e38, -1e20, -200.0, 200.0, 1e20, 3e38, torch.inf])
    for approximate in (False, True):
        slope = function("gelu_slope")(x, function("gelu_cdf")(x, approximate), approximate)
        assert slope.round(decimals=12).tolist() == [0.0] * 4 + [1.0] * 4
    slope = function("silu_slope")(x, function("sigmoid")(x))
    assert slope.round(decimals=30).tolist() == [0.0] * 4 + [1.0] * 4


def test_grids_hold_both_flat_ends() -> None:
    assert grid(*GELU[False], 8) == (-26, 229, 203, 1.0)
    assert grid(*GELU[False], 4) == (-1, 12, 11, 1.0)
    assert grid(0.0, 100.0, 1.0, 4) == (0, 15, 15, 100.0), "steps too coarse for 1 take the range"
    low, high, levels, anchor = grid(-100.0, 1.0, 1.0, 4)
    assert high - low < 16 and low <= -100.0 * levels / anchor + 0.5


def test_elu_slope_from_its_argument() -> None:
    x = torch.linspace(-5, 5, 101)
    got = function("elu_slope")(function("elu")(x, *CURVE), *CURVE, True)
    assert torch.allclose(got, function("elu_slope")(x, *CURVE, False), atol=1e-6)


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


def _rows_of_scores(causal: bool) -> tuple[Tensor, Tensor]:
    """Attention scores and a gradient that has an offset, as gradients of softmax have."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(3, 40, 65, generator=generator) * 2
    if causal:
        x = x.masked_fill(torch.ones(40, 65).triu(1).bool(), -torch.inf)
    return x, torch.randn(x.shape, generator=generator) + 3.0


@pytest.mark.parametrize(("bits", "signed"), [(4, False), (6, True), (8, False)])
@pytest.mark.parametrize("causal", [False, True])
def test_softmax_in_integers(causal: bool, bits: int, signed: bool) -> None:
    """Half a step of its row from softmax in float64; a row's largest value is the highest."""
    x, g = _rows_of_scores(causal)
    q, scale = function("softmax_quantize")(x, bits, signed)
    highest = 2 ** (bits - signed) - 1
    assert (q.amax(-1) == highest).all() and (q >= 0).all()
    wanted = x.double().softmax(-1)
    assert ((q * scale.double() - wanted).abs() <= scale * (0.5 + 1e-3)).all()


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("causal", [False, True])
def test_softmax_gradient_from_integers(causal: bool, bits: int) -> None:
    """As near to autograd as half a step of every probability allows, and of sum 0, whatever all
    of a row's g have in common."""
    x, g = _rows_of_scores(causal)
    q, scale = function("softmax_quantize")(x, bits, False)
    got = function("softmax_quantized_backward")(g, q, scale).double()
    leaf = x.double().requires_grad_()
    y = leaf.softmax(-1)
    (wanted,) = torch.autograd.grad(y, leaf, g.double())
    above = (g - (g * y.detach()).sum(-1, keepdim=True)).abs()
    near, half = scale.double() * q, scale.double() * 0.501
    mean = half * above.sum(-1, keepdim=True) / near.sum(-1, keepdim=True)
    assert ((got - wanted).abs() <= half * above + near * mean + 1e-6).all()
    assert got.sum(-1).abs().max() < 1e-5


def test_masked_rows_in_integers_are_zeros() -> None:
    x = torch.full((2, 20), -torch.inf)
    x[1, 3], x[1, 17] = 2.0, 2.0
    q, scale = function("softmax_quantize")(x, 6, False)
    assert not q[0].any() and scale.equal(torch.tensor([[0.0], [1 / 126]]))
    assert q[1].nonzero().flatten().tolist() == [3, 17] and q[1, 3] == 63
    dx = function("softmax_quantized_backward")(torch.ones(2, 20), q, scale)
    assert dx.equal(torch.zeros(2, 20))


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
