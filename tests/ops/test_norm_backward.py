"""Gradients of quantised norms: the rule on saved values, its convergence, its mean over seeds."""

from math import pi, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sqcompile.ops.norm import (
    ema,
    l1_batch_norm,
    l1_batch_norm_backward,
    l1_layer_norm,
    l1_layer_norm_affine_backward,
    l1_layer_norm_backward,
)
from sqcompile.ops.norm_float import batch_norm, batch_norm_backward, layer_norm
from sqcompile.ops.norm_float import layer_norm_backward as float_layer_norm_backward
from sqcompile.ops.quantize import absmax, quant_scale, quantize_stochastic

SEEDS = 4096
STEP = 0.3352
F32 = np.float32


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Integers (64, 4, 3) with their float32 scales, an int8 gradient and gamma."""
    x = (torch.randn(64, 3, 4, generator=generator(seed)) * 1000).round().to(torch.int32)
    g = torch.randint(-127, 128, x.shape, generator=generator(seed + 1)).to(torch.int8)
    scale, gamma = torch.rand(2, 3, generator=generator(seed + 2)) + 0.1
    return x.transpose(1, 2), scale / 1000, g.transpose(1, 2), gamma


def test_batch_norm_gradients_converge_as_the_saved_bits_grow() -> None:
    x, scale, g, gamma = batch(1)
    real = x.double() * scale.double()
    _, xhat, coefficient, _, _ = batch_norm(real, None, None, 1e-5)
    expected = batch_norm_backward(g.double(), xhat, coefficient, gamma.double())
    errors = []
    for bits in (4, 5, 6, 7, 8):
        step = 10 / 2**bits
        saved = l1_batch_norm(x, scale, None, gamma, None, 1e-5, 16, bits, step)
        got = l1_batch_norm_backward(g, torch.ones(3), saved[1], saved[2], gamma, step)
        errors.append([relative(a, b) for a, b in zip(got, expected, strict=True)])
    dx, dgamma, dbeta = (list(column) for column in zip(*errors, strict=True))
    assert dx[0] < 0.05 and dx[-1] < 0.004 and dx[-1] < dx[0] / 4
    assert dgamma[-1] < 0.02 and dgamma[-1] < dgamma[0]
    assert max(dbeta) < 1e-6


def test_the_measured_step_keeps_four_bit_gradients_close() -> None:
    x, scale, g, gamma = batch(5)
    _, xhat, coefficient, _, _ = batch_norm(x.double() * scale.double(), None, None, 1e-5)
    saved = l1_batch_norm(x, scale, None, gamma, None, 1e-5, 16, 4, STEP)
    got = l1_batch_norm_backward(g, torch.ones(3), saved[1], saved[2], gamma, STEP)
    expected = batch_norm_backward(g.double(), xhat, coefficient, gamma.double())
    assert relative(got[0], expected[0]) < 0.03
    # the sign of the saved value is that of xhat, exactly
    assert bool(((saved[1] >= 0) == (xhat >= 0)).all())


def test_layer_norm_gradients_converge_as_the_saved_bits_grow() -> None:
    x = torch.randint(-127, 128, (16, 50), generator=generator(1)).to(torch.int8)
    h = torch.randint(-127, 128, (16, 50), generator=generator(2)).to(torch.int8)
    scale = torch.rand(16, 1, generator=generator(3)) / 50
    _, xhat, coefficient = layer_norm(x.double() * scale.double(), None, None, 1e-5)
    expected = float_layer_norm_backward(h.double(), xhat, coefficient, None)
    errors = []
    for bits in (4, 6, 8):
        step = 5 / 2**bits
        _, k, c = l1_layer_norm(x, scale, None, None, 1e-5, 16, bits, step)
        dx = l1_layer_norm_backward(h, torch.ones(16, 1), k, c, step)
        dgamma, dbeta = l1_layer_norm_affine_backward(h, torch.ones(1, 50), k, step)
        errors.append([relative(dx, expected[0]), relative(dgamma, expected[1])])
        assert relative(dbeta, expected[2]) < 1e-6
    assert all(after[0] < before[0] for before, after in zip(errors, errors[1:], strict=False))
    assert errors[-1][0] < 0.004 and errors[-1][1] < 0.02


def stochastic(g: torch.Tensor, axes: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    r = absmax(g, None, axes)
    rng = torch.tensor([seed, 1, 0, 0])
    q = quantize_stochastic.reference(g, r, None, None, rng, 4, 3)
    return q, quant_scale(r, 4, True, 1)


def assert_mean_is(draws: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    """The mean over seeds against its expectation, to 5 standard errors."""
    error = draws.std(0) / SEEDS**0.5
    deviation = (draws.mean(0) - expected).abs()
    assert bool((deviation <= 5 * error + 1e-5 * expected.abs().max()).all()), name


def test_mean_of_batch_norm_gradients_over_4096_seeds() -> None:
    k = torch.randint(-8, 8, (6, 3, 2), generator=generator(1)).to(torch.int8)
    g = torch.randn(6, 3, 2, generator=generator(2))
    coefficient, gamma = torch.rand(2, 2, generator=generator(3)) + 0.5
    draws = []
    for seed in range(SEEDS):
        q, scale = stochastic(g, [0, 1], seed)
        draws.append(
            l1_batch_norm_backward.reference(q, scale.view(2), k, coefficient, gamma, STEP)
        )
    xhat = (k.double() + 0.5) * STEP
    expected = batch_norm_backward(g.double(), xhat, coefficient.double(), gamma.double())
    for place, name in enumerate(("dx", "dgamma", "dbeta")):
        assert_mean_is(torch.stack([draw[place] for draw in draws]).double(), expected[place], name)


def test_mean_of_layer_norm_gradients_over_4096_seeds() -> None:
    k = torch.randint(-8, 8, (3, 8), generator=generator(1)).to(torch.int8)
    g, gamma = torch.randn(3, 8, generator=generator(2)), torch.rand(8, generator=generator(3))
    coefficient = torch.rand(3, 1, generator=generator(4)) + 0.5
    inputs, affine = [], []
    for seed in range(SEEDS):
        q, scale = stochastic(g * gamma, [1], seed)
        inputs.append(l1_layer_norm_backward.reference(q, scale, k, coefficient, STEP))
        q, scale = stochastic(g, [0], seed)
        affine.append(l1_layer_norm_affine_backward.reference(q, scale, k, STEP))
    xhat = (k.double() + 0.5) * STEP
    expected = float_layer_norm_backward(g.double(), xhat, coefficient.double(), gamma.double())
    assert_mean_is(torch.stack(inputs).double(), expected[0], "dx")
    for place, name in enumerate(("dgamma", "dbeta")):
        got = torch.stack([draw[place] for draw in affine]).double()
        assert_mean_is(got, expected[place + 1], name)


@pytest.mark.parametrize("value", [3, -3])
def test_a_constant_gradient_has_no_input_gradient(value: int) -> None:
    k = torch.randint(-8, 8, (40, 2), generator=generator(1)).to(torch.int8)
    g = torch.full((40, 2), value, dtype=torch.int8)
    # balanced xhat, so that mean(g * xhat) = 0 as well
    k[20:] = -1 - k[:20]
    dx, dgamma, dbeta = l1_batch_norm_backward(g, torch.ones(2), k, torch.ones(2), None, STEP)
    assert not dx.any() and not dgamma.any() and dbeta.tolist() == [40.0 * value] * 2


@given(st.floats(-(2.0**99), 2.0**99, width=32), st.floats(-1, 1, width=32), st.floats(0, 1))
def test_ema_rounds_each_operation(old: float, new: float, momentum: float) -> None:
    got = ema(torch.full((3,), old), torch.full((3,), new), momentum)
    kept = np.float32(old) * np.float32(1.0 - momentum)
    assert got.tolist() == [float(kept + np.float32(new) * np.float32(momentum))] * 3


def rule64(
    g: torch.Tensor, k: torch.Tensor, coefficient: torch.Tensor, axes: list[int], step: float
) -> torch.Tensor:
    """The input gradient of numerics.md in float64, on the saved xhat_q = (k + 1/2) * step."""
    xhat = (k.double() + 0.5) * step
    s = torch.sign(xhat)
    mean = [v.mean(axes, keepdim=True) for v in (g, g * xhat, s)]
    return coefficient.double() * (g - mean[0] - sqrt(pi / 2) * mean[1] * (s - mean[2]))


@pytest.mark.parametrize("with_gamma", [True, False])
@pytest.mark.parametrize("shape", [(40, 3), (4, 7, 3), (4, 5, 5, 3)])
def test_batch_norm_backward_on_the_saved_values(shape: tuple[int, ...], with_gamma: bool) -> None:
    k = torch.randint(-8, 8, shape, generator=generator(1)).to(torch.int8)
    g = torch.randint(-127, 128, shape, generator=generator(2)).to(torch.int8)
    scale, coefficient, gamma = (torch.rand(3, generator=generator(i)) for i in (3, 4, 5))
    axes = list(range(len(shape) - 1))
    real = g.double() * scale.double()
    got = l1_batch_norm_backward(g, scale, k, coefficient, gamma if with_gamma else None, STEP)
    h = real * gamma.double() if with_gamma else real
    assert relative(got[0], rule64(h, k, coefficient, axes, STEP)) < 1e-6
    assert relative(got[1], (real * (k.double() + 0.5) * STEP).sum(axes)) < 1e-6
    assert relative(got[2], real.sum(axes)) < 1e-6


def test_layer_norm_backward_on_the_saved_values() -> None:
    k = torch.randint(-8, 8, (9, 30), generator=generator(1)).to(torch.int8)
    h = torch.randint(-127, 128, (9, 30), generator=generator(2)).to(torch.int8)
    scale, coefficient = (torch.rand(9, 1, generator=generator(i)) for i in (3, 4))
    got = l1_layer_norm_backward(h, scale, k, coefficient, STEP)
    assert relative(got, rule64(h.double() * scale, k, coefficient, [1], STEP)) < 1e-6
    per_feature = torch.rand(1, 30, generator=generator(5))
    dgamma, dbeta = l1_layer_norm_affine_backward(h, per_feature, k, STEP)
    real = h.double() * per_feature.double()
    assert relative(dgamma, (real * (k.double() + 0.5) * STEP).sum(0)) < 1e-6
    assert relative(dbeta, real.sum(0)) < 1e-6


def written_gradient(
    g: list[int], k: list[int], unit: np.float32, step: float
) -> tuple[list[float], int, int]:
    """dx of one set in float32 scalars, with unit = s_g * coefficient, and the sums G and X."""
    total, total_xhat = sum(g), sum(a * (2 * b + 1) for a, b in zip(g, k, strict=True))
    count = F32(len(g))
    mean, z = F32(total) / count, F32(sum(1 if b >= 0 else -1 for b in k)) / count
    slope = F32(total_xhat) * F32(sqrt(pi / 2) * step / (2 * len(g)))
    above, below = mean + slope * (F32(1) - z), mean + slope * (F32(-1) - z)
    dx = [(F32(a) - (above if b >= 0 else below)) * unit for a, b in zip(g, k, strict=True)]
    return [float(v) for v in dx], total, total_xhat


def test_backward_follows_the_written_order() -> None:
    k = torch.randint(-8, 8, (7, 9), generator=generator(1)).to(torch.int8)
    g = torch.randint(-127, 128, (7, 9), generator=generator(2)).to(torch.int8)
    scale, coefficient, gamma = torch.rand(3, 7, generator=generator(3))
    rows = l1_layer_norm_backward(g, scale.view(7, 1), k, coefficient.view(7, 1), STEP)
    columns = l1_batch_norm_backward(g.t(), scale, k.t(), coefficient, gamma, STEP)
    affine = l1_layer_norm_affine_backward(g.t(), scale.view(1, 7), k.t(), STEP)
    for i, (s, c, weight) in enumerate(
        zip(scale.numpy(), coefficient.numpy(), gamma.numpy(), strict=True)
    ):
        mine = g[i].tolist(), k[i].tolist()
        dx, total, total_xhat = written_gradient(*mine, s * c, STEP)
        assert rows[i].tolist() == dx
        assert columns[0][:, i].tolist() == written_gradient(*mine, (weight * s) * c, STEP)[0]
        dgamma, dbeta = F32(total_xhat) * (s * F32(STEP / 2)), F32(total) * s
        for got in (columns[1:], affine):
            assert [float(v[i]) for v in got] == [float(dgamma), float(dbeta)]
