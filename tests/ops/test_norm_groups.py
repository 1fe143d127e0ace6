"""RMS and group norms: rules against float64 autograd, integers against written orders and against
layer norms of the same sets."""

from math import pi, sqrt

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sqcompile.norm_swap import l1_group_norm as swapped_group_norm
from sqcompile.norm_swap import l1_instance_norm, l1_rms_norm
from sqcompile.ops.norm import (
    fraction_bits,
    l1_group_norm,
    l1_group_norm_backward,
    l1_layer_norm,
    l1_layer_norm_backward,
)
from sqcompile.ops.norm_float import group_norm, group_norm_backward, layer_norm
from sqcompile.ops.norm_float import layer_norm_backward as float_layer_norm_backward
from sqcompile.ops.quantize import absmax, quant_scale, quantize, quantize_stochastic

STEP = 0.3352
F32 = np.float32
SIGMA = sqrt(pi / 2)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn64(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def int8(*shape: int, seed: int, low: int = -127, high: int = 127) -> torch.Tensor:
    return torch.randint(low, high + 1, shape, generator=generator(seed)).to(torch.int8)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def rms_form(x: torch.Tensor, gamma: torch.Tensor | None, eps: float) -> torch.Tensor:
    y = x / (SIGMA * x.abs().mean(-1, keepdim=True) + eps)
    return y if gamma is None else y * gamma


def group_form(
    x: torch.Tensor, gamma: torch.Tensor | None, beta: torch.Tensor | None, groups: int, eps: float
) -> torch.Tensor:
    """Channels first, (N, C, *): one row a sample and group."""
    rows = x.reshape(x.shape[0] * groups, -1)
    centre = rows - rows.mean(1, keepdim=True)
    y = (centre / (SIGMA * centre.abs().mean(1, keepdim=True) + eps)).reshape(x.shape)
    kept = [1, x.shape[1]] + [1] * (x.dim() - 2)
    y = y if gamma is None else y * gamma.view(kept)
    return y if beta is None else y + beta.view(kept)


# the float forms, before quantisation


@pytest.mark.parametrize("with_gamma", [True, False])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_rms_norm_rule_is_autograds(eps: float, with_gamma: bool) -> None:
    leaves = [randn64(6, 9, seed=1) * 3 + 1, randn64(9, seed=3)][: 1 + with_gamma]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    gamma, g = (leaves[1] if with_gamma else None), randn64(6, 9, seed=2)
    expected = torch.autograd.grad(rms_form(leaves[0], gamma, eps), leaves, g)
    y, xhat, coefficient = layer_norm(leaves[0], gamma, None, eps, False)
    assert relative(y, rms_form(leaves[0], gamma, eps)) < 1e-14
    for got, wanted in zip(torch.autograd.grad(y, leaves, g), expected, strict=True):
        assert relative(got, wanted) < 1e-12
    dx, _, dbeta = float_layer_norm_backward(g, xhat, coefficient, gamma, False)
    assert relative(dx, expected[0]) < 1e-12
    assert relative(dbeta, g.sum(0)) < 1e-12


@pytest.mark.parametrize("affine", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize(("shape", "groups"), [((3, 6, 4, 5), 2), ((2, 8), 2), ((3, 6, 7), 6)])
def test_group_norm_rule_is_autograds(
    shape: tuple[int, ...], groups: int, affine: tuple[bool, bool]
) -> None:
    x, g = randn64(*shape, seed=1) * 3 + 1, randn64(*shape, seed=2)
    parts = [randn64(shape[1], seed=3 + i) if given else None for i, given in enumerate(affine)]
    leaves = [leaf.requires_grad_() for leaf in (x, *parts) if leaf is not None]
    gamma, beta = parts
    expected = torch.autograd.grad(group_form(x, gamma, beta, groups, 1e-5), leaves, g)
    y = swapped_group_norm(x, groups, gamma, beta, 1e-5)
    assert relative(y, group_form(x, gamma, beta, groups, 1e-5)) < 1e-14
    for got, wanted in zip(torch.autograd.grad(y, leaves, g), expected, strict=True):
        assert relative(got, wanted) < 1e-12
    last, g_last = (one.detach().movedim(1, -1) for one in (x, g))
    _, xhat, coefficient = group_norm(last, None, None, groups, 1e-5)
    got = group_norm_backward(g_last, xhat, coefficient, None)[1:]
    axes = [0, *range(2, len(shape))]
    plain = group_form(x, None, None, groups, 1e-5)
    assert relative(got[0], (g * plain).sum(axes)) < 1e-12
    assert relative(got[1], g.sum(axes)) < 1e-12


# what calls are swapped for


def test_swapped_norms_stay_near_torchs() -> None:
    x = torch.randn(4, 6, 9, 8, generator=generator(1)) + 0.5
    weight, bias = torch.rand(2, 6, generator=generator(2))
    for got, wanted in (
        (swapped_group_norm(x, 3, weight, bias), F.group_norm(x, 3, weight, bias)),
        (
            l1_instance_norm(x, None, None, weight, bias),
            F.instance_norm(x, None, None, weight, bias),
        ),
        (l1_rms_norm(x, (9, 8)), F.rms_norm(x, (9, 8))),
    ):
        assert got.is_contiguous() and got.shape == x.shape
        assert relative(got, wanted) < 0.1


def test_instance_norm_with_running_statistics_stays_torchs() -> None:
    x, mean, var = torch.randn(2, 3, 4, 5, generator=generator(1)), torch.zeros(3), torch.ones(3)
    got = l1_instance_norm(x, mean.clone(), var.clone(), use_input_stats=True)
    assert got.equal(F.instance_norm(x, mean, var, use_input_stats=True))


def test_the_default_eps_of_an_rms_norm_joins_sigma() -> None:
    x = torch.full((1, 4), 1e-6)
    eps = torch.finfo(torch.float32).eps
    wanted = 1e-6 / (SIGMA * 1e-6 + eps)
    assert l1_rms_norm(x, (4,))[0].tolist() == pytest.approx([wanted] * 4, rel=1e-5)


# integers


def test_rms_norm_follows_the_written_order() -> None:
    x, k = int8(7, 9, seed=1, low=-128), int8(7, 9, seed=2, low=-8, high=7)
    x[0] = 0
    scale, coefficients = torch.rand(2, 7, 1, generator=generator(3))
    y, saved, coefficient = l1_layer_norm(x, scale, None, None, 1e-5, 0, 4, STEP, False)
    dx = l1_layer_norm_backward(x, scale, k, coefficients, STEP, False)
    for i, s in enumerate(F32(scale[:, 0])):
        row, ks = x[i].tolist(), k[i].tolist()
        sigma = (F32(sum(map(abs, row))) * F32(SIGMA / 9)) * s
        one = F32(1) / (sigma + F32(1e-5))
        assert float(coefficient[i]) == float(one)
        xhat = [F32(v) * (s * one) for v in row]
        assert y[i].tolist() == [float(v) for v in xhat]
        assert saved[i].tolist() == [int(min(max(np.floor(v / F32(STEP)), -8), 7)) for v in xhat]
        total = sum(g * (2 * q + 1) for g, q in zip(row, ks, strict=True))
        slope, worth = F32(total) * F32(SIGMA * STEP / 18), s * F32(coefficients[i, 0])
        wanted = [
            (F32(g) - (slope if q >= 0 else -slope)) * worth for g, q in zip(row, ks, strict=True)
        ]
        assert dx[i].tolist() == [float(v) for v in wanted]
    assert not y[0].any()


@pytest.mark.parametrize("shape", [(3, 20, 2, 5), (2, 9, 6, 1), (2, 1, 1, 8)])
def test_a_group_norm_is_a_layer_norm_of_its_sets(shape: tuple[int, ...]) -> None:
    n, p, g, k = shape
    x, h, saved = int8(*shape, seed=1), int8(*shape, seed=2), int8(*shape, seed=3, low=-8, high=7)
    scale, coefficient = torch.rand(2, n, 1, g, 1, generator=generator(4))
    gamma, beta = torch.randn(2, g, k, generator=generator(5))

    def rows(t: torch.Tensor) -> torch.Tensor:
        return t.transpose(1, 2).reshape(n * g, -1)

    f = fraction_bits(p * k, 127)
    y, xhat, c = l1_group_norm(x, scale, None, None, 1e-5, f, 4, STEP)
    layer = l1_layer_norm(rows(x), scale.reshape(-1, 1), None, None, 1e-5, f, 4, STEP)
    assert rows(y).equal(layer[0]) and rows(xhat).equal(layer[1])
    assert c.reshape(-1, 1).equal(layer[2])
    full = l1_group_norm(x, scale, gamma, beta, 1e-5, f, 4, STEP)
    assert np.array_equal(full[0].numpy(), y.numpy() * gamma.numpy() + beta.numpy())
    dx = l1_group_norm_backward(h, scale, saved, coefficient, STEP)
    args = (rows(h), scale.reshape(-1, 1), rows(saved), coefficient.reshape(-1, 1), STEP)
    assert rows(dx).equal(l1_layer_norm_backward(*args))


def test_rms_norm_converges_to_the_float_form() -> None:
    x, g = randn64(6, 40, seed=1) + 0.3, int8(6, 40, seed=2)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(rms_form(leaf, None, 1e-5), leaf, g.double())
    errors = []
    for bits in (4, 6, 8):
        step, r = 8 / 2**bits, absmax(x.float(), None, [1])
        q, scale = quantize(x.float(), r, bits, True), quant_scale(r, bits, True, 1)
        y, k, c = l1_layer_norm(q, scale, None, None, 1e-5, 0, bits, step, False)
        dx = l1_layer_norm_backward(g, torch.ones(6, 1), k, c, step, False)
        errors.append((relative(y, rms_form(x, None, 1e-5)), relative(dx, expected)))
    for before, after in zip(errors, errors[1:], strict=False):
        assert after[0] < before[0] * 0.6 and after[1] < before[1] * 0.6
    assert errors[-1][0] < 0.01 and errors[-1][1] < 0.03


@pytest.mark.parametrize("form", ["rms", "group"])
def test_mean_of_input_gradients_over_4096_seeds(form: str) -> None:
    seeds, axes = 4096, [1] if form == "rms" else [1, 3]
    shape = (3, 8) if form == "rms" else (2, 4, 2, 3)
    k, g = int8(*shape, seed=1, low=-8, high=7), torch.randn(shape, generator=generator(2))
    sets = [1 if axis in axes else size for axis, size in enumerate(shape)]
    coefficient = torch.rand(sets, generator=generator(4)) + 0.5
    r, draws = absmax(g, None, axes), []
    scale = quant_scale(r, 4, True, 1)
    for seed in range(seeds):
        q = quantize_stochastic.reference(g, r, None, None, torch.tensor([seed, 1, 0, 0]), 4, 3)
        if form == "rms":
            dx = l1_layer_norm_backward.reference(q, scale, k, coefficient, STEP, False)
        else:
            dx = l1_group_norm_backward.reference(q, scale, k, coefficient, STEP)
        draws.append(dx)
    got, xhat = torch.stack(draws).double(), (k.double() + 0.5) * STEP
    s, h = torch.sign(xhat), g.double()
    if form == "group":
        s, h = s - s.mean(axes, keepdim=True), h - h.mean(axes, keepdim=True)
    slope = SIGMA * (g.double() * xhat).mean(axes, keepdim=True)
    expected = coefficient.double() * (h - slope * s)
    error = got.std(0) / seeds**0.5
    assert bool(((got.mean(0) - expected).abs() <= 5 * error + 1e-6).all())
