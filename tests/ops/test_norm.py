"""L1 norms: gradient rules against float64 autograd, statistics against Python integers."""

from math import floor, pi, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sqcompile.ops.norm import (
    fraction_bits,
    l1_batch_norm,
    l1_batch_norm_backward,
    l1_layer_norm,
    l1_layer_norm_backward,
)
from sqcompile.ops.norm_float import (
    batch_norm,
    batch_norm_backward,
    layer_norm,
    layer_norm_backward,
)
from sqcompile.ops.norm_fused import l1_batch_norm_relu_quantize

STEP = 0.3352
F32 = np.float32


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn64(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def l1_form(
    x: torch.Tensor, gamma: torch.Tensor | None, beta: torch.Tensor | None, axes: list[int],
    eps: float,
) -> torch.Tensor:  # fmt: skip
    """The unquantised form, for autograd: centre, divide by sqrt(pi/2) E|x - mean| + eps."""
    kept = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    if axes == [1]:
        kept = [1, x.shape[1]]
    centre = x - x.mean(axes, keepdim=True)
    y = centre / (sqrt(pi / 2) * centre.abs().mean(axes, keepdim=True) + eps)
    y = y if gamma is None else y * gamma.view(kept)
    return y if beta is None else y + beta.view(kept)


def autograd(
    x: torch.Tensor, g: torch.Tensor, gamma: torch.Tensor | None, beta: torch.Tensor | None,
    axes: list[int], eps: float,
) -> list[torch.Tensor]:  # fmt: skip
    """float64 gradients of x, then of gamma and beta where there are such."""
    leaves = [v.detach().double().requires_grad_() for v in (x, gamma, beta) if v is not None]
    given_gamma = leaves[1] if gamma is not None else None
    given_beta = leaves[-1] if beta is not None else None
    l1_form(leaves[0], given_gamma, given_beta, axes, eps).backward(g.double())
    return [leaf.grad for leaf in leaves]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


# the float form, before quantisation

AFFINE = [(True, True), (True, False), (False, True), (False, False)]


@pytest.mark.parametrize(("with_gamma", "with_beta"), AFFINE)
@pytest.mark.parametrize("shape", [(5, 3), (4, 7, 3), (2, 4, 5, 3)])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_batch_norm_rule_is_autograds(
    shape: tuple[int, ...], eps: float, with_gamma: bool, with_beta: bool
) -> None:
    x, g = randn64(*shape, seed=1) * 3 + 1, randn64(*shape, seed=2)
    gamma = randn64(3, seed=3) if with_gamma else None
    beta = randn64(3, seed=4) if with_beta else None
    axes = list(range(len(shape) - 1))
    y, xhat, coefficient, mean, var = batch_norm(x, gamma, beta, eps)
    assert relative(y, l1_form(x, gamma, beta, axes, eps)) < 1e-14
    assert relative(mean, x.mean(axes)) < 1e-14
    dx, dgamma, dbeta = batch_norm_backward(g, xhat, coefficient, gamma)
    leaves = [v.requires_grad_() for v in (x, gamma, beta) if v is not None]
    batch_norm(x, gamma, beta, eps)[0].backward(g)
    expected = autograd(x, g, gamma, beta, axes, eps)
    for got, wanted in zip([leaf.grad for leaf in leaves], expected, strict=True):
        assert relative(got, wanted) < 1e-12
    assert relative(dx, expected[0]) < 1e-12
    assert relative(dgamma, (g * l1_form(x, None, None, axes, eps)).sum(axes)) < 1e-12
    assert relative(dbeta, g.sum(axes)) < 1e-12


@pytest.mark.parametrize(("with_gamma", "with_beta"), AFFINE)
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_layer_norm_rule_is_autograds(eps: float, with_gamma: bool, with_beta: bool) -> None:
    x, g = randn64(6, 9, seed=1) * 3 + 1, randn64(6, 9, seed=2)
    gamma = randn64(9, seed=3) if with_gamma else None
    beta = randn64(9, seed=4) if with_beta else None
    y, xhat, coefficient = layer_norm(x, gamma, beta, eps)
    assert relative(y, l1_form(x, gamma, beta, [1], eps)) < 1e-14
    dx, dgamma, dbeta = layer_norm_backward(g, xhat, coefficient, gamma)
    leaves = [v.requires_grad_() for v in (x, gamma, beta) if v is not None]
    layer_norm(x, gamma, beta, eps)[0].backward(g)
    expected = autograd(x, g, gamma, beta, [1], eps)
    for got, wanted in zip([leaf.grad for leaf in leaves], expected, strict=True):
        assert relative(got, wanted) < 1e-12
    assert relative(dx, expected[0]) < 1e-12
    assert relative(dgamma, (g * l1_form(x, None, None, [1], eps)).sum(0)) < 1e-12
    assert relative(dbeta, g.sum(0)) < 1e-12


# integer statistics


def statistics(values: list[int], f: int) -> tuple[int, int]:
    """(m, D) in Python integers, m by Python's own round-half-even of a fraction."""
    from fractions import Fraction

    m = round(Fraction(sum(values) * 2**f, len(values)))
    return m, sum(abs(x * 2**f - m) for x in values)


def deviation_without_wide_sums(values: list[int], m: int, f: int) -> int:
    """numerics.md's other form of D: from S and the sum and count of what exceeds the mean."""
    t = floor(m / 2**f)
    above = [x for x in values if x > t]
    total, count = sum(values), len(values)
    return 2**f * (2 * sum(above) - total) - m * (2 * len(above) - count)


def written_order(
    values: list[int], scale: float, eps: float, f: int, bits: int, step: float
) -> tuple[list[float], list[int], float, float, float]:
    """(xhat, saved, coefficient, mean, var) of one set: docs/numerics.md in float32 scalars."""
    m, d = statistics(values, f)
    s = F32(scale)
    sigma = (F32(d) * F32(sqrt(pi / 2) * 2.0**-f / len(values))) * s
    spread = sigma + F32(eps)
    coefficient = F32(0) if spread < F32(2.0**-100) else F32(1) / spread
    factor = (s * F32(2.0**-f)) * coefficient
    xhat = [F32(x * 2**f - m) * factor for x in values]
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    saved = [int(min(max(np.floor(v / F32(step)), low), high)) for v in xhat]
    mean = (F32(m) * F32(2.0**-f)) * s
    with np.errstate(over="ignore"):
        var = sigma * sigma
    return [float(v) for v in xhat], saved, float(coefficient), float(mean), float(var)


@given(
    st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=12), st.integers(0, 16),
    st.sampled_from([1e-6, 0.37, 2.0**-90, 0.0, 1e-42, 1e20]), st.sampled_from([0.0, 1e-5, 1e-12]),
    st.integers(2, 8),
)  # fmt: skip
def test_forward_follows_the_written_order(
    values: list[int], f: int, scale: float, eps: float, bits: int
) -> None:
    xhat, saved, coefficient, mean, var = written_order(values, scale, eps, f, bits, STEP)
    m, d = statistics(values, f)
    assert d == deviation_without_wide_sums(values, m, f)

    x = torch.tensor(values, dtype=torch.int32)
    got = l1_layer_norm(x.view(1, -1), torch.tensor([[scale]]), None, None, eps, f, bits, STEP)
    assert got[0].tolist() == [xhat] and got[1].tolist() == [saved]
    assert got[2].tolist() == [[coefficient]]

    # two channels, the second constant
    x = torch.stack([x, torch.full_like(x, 7)], 1)
    got = l1_batch_norm(x, torch.full((2,), scale), None, None, None, eps, f, bits, STEP)
    assert got[0][:, 0].tolist() == xhat and got[1][:, 0].tolist() == saved
    assert [float(v[0]) for v in got[2:]] == [coefficient, mean, var]
    assert not got[0][:, 1].any() and float(got[4][1]) == 0.0


def test_affine_and_bias_are_separate_roundings() -> None:
    x = torch.randint(-99, 99, (5, 4, 3), generator=generator(1))
    scale, bias, gamma, beta = (torch.rand(3, generator=generator(i)) for i in range(2, 6))
    plain = l1_batch_norm(x, scale, None, None, None, 1e-5, 16, 4, STEP)
    full = l1_batch_norm(x, scale, bias, gamma, beta, 1e-5, 16, 4, STEP)
    product = plain[0].numpy() * gamma.numpy()
    assert np.array_equal(full[0].numpy(), product + beta.numpy())
    assert full[3].equal(plain[3] + bias)
    for place in (1, 2, 4):
        assert full[place].equal(plain[place])
    row = torch.rand(5, 1, generator=generator(7))
    gamma, beta = torch.rand(4, generator=generator(8)), torch.rand(4, generator=generator(9))
    plain_y = l1_layer_norm(x[..., 0], row, None, None, 1e-5, 16, 4, STEP)[0]
    full_y = l1_layer_norm(x[..., 0], row, gamma, beta, 1e-5, 16, 4, STEP)[0]
    assert np.array_equal(full_y.numpy(), plain_y.numpy() * gamma.numpy() + beta.numpy())


def test_sums_are_taken_from_their_producer() -> None:
    x = torch.randint(-99, 99, (5, 4, 3), generator=generator(1), dtype=torch.int32)
    scale, rest = torch.tensor([0.5, 0.25, 2.0]), (None, None, None, 1e-5, 4, 4, STEP)
    plain = l1_batch_norm(x, scale, *rest)
    same = l1_batch_norm(x, scale, *rest, x.sum((0, 1)))
    assert all(a.equal(b) for a, b in zip(plain, same, strict=True))
    higher = l1_batch_norm(x, scale, *rest, x.sum((0, 1)) + 20)
    assert higher[3].equal(plain[3] + scale)
    fused = l1_batch_norm_relu_quantize(x, scale, *rest, True, 4, False, x.sum((0, 1)) + 20)
    assert fused[5].equal(higher[3]) and fused[1].item() == higher[0].max()


def test_statistics_do_not_depend_on_order() -> None:
    x = torch.randint(-(2**30), 2**30, (8, 9, 5, 2), generator=generator(1), dtype=torch.int32)
    scale = torch.tensor([3e-9, 5e-7])
    flat = x.view(-1, 2)
    places = torch.randperm(flat.shape[0], generator=generator(2))
    shuffled = flat[places].view(x.shape)
    one = l1_batch_norm(x, scale, None, None, None, 1e-5, 16, 8, 0.02)
    two = l1_batch_norm(shuffled, scale, None, None, None, 1e-5, 16, 8, 0.02)
    for place in (2, 3, 4):
        assert one[place].equal(two[place])
    for place in (0, 1):
        assert two[place].view(-1, 2).equal(one[place].view(-1, 2)[places])


@pytest.mark.parametrize("count", [1, 2, 3, 1000, 2**20])
@pytest.mark.parametrize("largest", [0, 1, 127, 2**24, 2**31, 2**40])
def test_fraction_bits_is_the_largest_that_fits(count: int, largest: int) -> None:
    if count * largest * 2 >= 2**62:
        return
    f = fraction_bits(count, largest)
    assert count * max(largest, 1) * 2 ** (f + 1) < 2**62
    assert f == 16 or count * largest * 2 ** (f + 2) >= 2**62


def test_fraction_bits_refuses_what_64_bits_cannot_hold() -> None:
    with pytest.raises(OverflowError, match="64 bits"):
        fraction_bits(2**31, 2**31)


def test_the_extremes_of_int32_do_not_wrap() -> None:
    values = [-(2**31)] * 700 + [2**31 - 1] * 701
    f = fraction_bits(len(values), 2**31)
    m, d = statistics(values, f)
    x = torch.tensor(values, dtype=torch.int32).view(-1, 1)
    got = l1_batch_norm(x, torch.ones(1), None, None, None, 1e-5, f, 8, 0.02)
    assert float(got[3]) == float(F32(m) * F32(2.0**-f))
    sigma = F32(d) * F32(sqrt(pi / 2) * 2.0**-f / len(values))
    assert float(got[4]) == float(sigma * sigma)


# degenerate sets: no NaN, no infinity


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-40, 2.0**-126, 1e-30, 0.01, 1e30])
@pytest.mark.parametrize("values", [[5], [0, 0, 0], [9, 9, 9, 9], [-1, 0, 1], [2**30, -(2**30)]])
def test_degenerate_sets_stay_finite(values: list[int], scale: float, eps: float) -> None:
    x = torch.tensor(values, dtype=torch.int32)
    row, channel = torch.full((1, 1), scale), torch.full((1,), scale)
    bn = l1_batch_norm(x.view(-1, 1), channel, None, None, None, eps, 16, 4, STEP)
    ln = l1_layer_norm(x.view(1, -1), row, None, None, eps, 16, 4, STEP)
    g = torch.full((len(values), 1), 3, dtype=torch.int8)
    dx = l1_batch_norm_backward(g, torch.ones(1), bn[1], bn[2], None, STEP)
    dy = l1_layer_norm_backward(g.view(1, -1), torch.ones(1, 1), ln[1], ln[2], STEP)
    # sigma squared may exceed float32; everything that is trained with may not
    for result in (*bn[:4], *ln, *dx, dy):
        assert bool(torch.isfinite(result.double()).all())
    if len(set(values)) == 1:
        assert not bn[0].any() and not ln[0].any()


# convergence to the float form, and backward


def as_integers(x: torch.Tensor, bits: int, axes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """x in `bits` signed bits (up to 30 here) with float32 scales."""
    scale = x.abs().amax(axes, keepdim=True) / (2 ** (bits - 1) - 1)
    return (x / scale).round().to(torch.int32), scale.float()


def test_integer_norms_converge_to_the_float_form() -> None:
    x = randn64(8, 5, 5, 3, seed=1) * 2 + 0.5
    rows = randn64(6, 40, seed=2) + 0.3
    errors = []
    for bits in (4, 8, 12, 16, 20):
        q, scale = as_integers(x, bits, [0, 1, 2])
        f = fraction_bits(200, 2**bits)
        y = l1_batch_norm(q, scale.reshape(-1), None, None, None, 1e-5, f, 4, STEP)[0]
        q, scale = as_integers(rows, bits, [1])
        z = l1_layer_norm(q, scale, None, None, 1e-5, f, 4, STEP)[0]
        batch = relative(y, l1_form(x, None, None, [0, 1, 2], 1e-5))
        layer = relative(z, l1_form(rows, None, None, [1], 1e-5))
        errors.append(max(batch, layer))
    assert all(after < before / 8 for before, after in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 1e-5


def test_running_statistics_are_those_of_the_float_form() -> None:
    x = randn64(8, 5, 5, 3, seed=1) * 2 + 0.5
    bias = torch.tensor([1.0, -2.0, 0.0])
    q, scale = as_integers(x, 24, [0, 1, 2])
    got = l1_batch_norm(q, scale.reshape(-1), bias, None, None, 1e-5, 16, 4, STEP)
    _, _, coefficient, mean, var = batch_norm(x, None, None, 1e-5)
    assert relative(got[2], coefficient) < 1e-6
    assert relative(got[3], mean + bias) < 1e-6
    assert relative(got[4], var) < 1e-6
