"""Stochastic rounding: the written order of operations, its bounds, and that it is unbiased."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sqcompile.ops import quantize as module
from sqcompile.ops.philox import draws
from sqcompile.ops.quantize import (
    TINY,
    absmax,
    group_exponent,
    limits,
    outer_scale,
    quant_scale,
    quantize_stochastic,
)

RNG = torch.tensor([7, 1, 0, 0])
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
BITS = st.integers(2, 8)
SEEDS = 4096


def matrix(draw: st.DrawFn) -> torch.Tensor:
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    values = draw(st.lists(FINITE, min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(values, dtype=torch.float32).view(rows, columns)


matrices = st.composite(matrix)()


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scalar_stochastic(
    x: np.float32, r: np.float32, m: np.float32, e: int, j: int, bits: int
) -> int:
    if r < np.float32(TINY):
        return 0
    high = limits(bits, True)[1]
    inverse = np.float32(1) if m < np.float32(TINY) else np.float32(1) / m
    t = (x * inverse) * ((np.float32(high) / r) * np.float32(2**e))
    u = (np.float32(j) + np.float32(0.5)) * np.float32(2**-16)
    return int(np.clip(np.floor(t + u), -high, high))


def test_the_order_of_the_products_at_the_edge() -> None:
    """x placed where t + u is an integer within a rounding: x / outer, or another order of the
    products, lands on the other side of some."""
    n, generator = 4096, torch.Generator().manual_seed(8)
    outer, r = torch.rand(2, n, 1, generator=generator).numpy() + np.float32(0.5)
    u = (draws(RNG, n, 6).view(n, 1).numpy().astype(np.float32) + np.float32(0.5)) / 2**16
    inverse, steps = np.float32(1) / outer, np.float32(127) / r
    x = ((1 - u) / steps * outer).astype(np.float32)
    q = quantize_stochastic(*map(torch.from_numpy, (x, r, outer)), None, RNG, 8, 6)

    def rounded(t: np.ndarray) -> np.ndarray:
        return np.floor(t + u)

    assert np.array_equal(q.numpy(), rounded((x * inverse) * steps))
    for other in ((x / outer) * steps, x * (inverse * steps), (x * steps) * inverse):
        assert other.dtype == np.float32 and (rounded(other) != q.numpy()).sum() > 100


@settings(max_examples=200)
@given(matrices, BITS, st.integers(1, 8), st.booleans(), st.integers(0, 2**32 - 1))
def test_stochastic_in_float32_scalars(
    x: torch.Tensor, bits: int, groups: int, scaled: bool, stream: int
) -> None:
    outer = absmax(x, None, [1]) if scaled else None
    inner = absmax(x, outer, [0])
    r, e = absmax(inner, None, [0, 1]), group_exponent(inner, groups)
    q = quantize_stochastic(x, r, outer, e, RNG, bits, stream)
    j = draws(RNG, x.numel(), stream).view(x.shape)
    m = torch.zeros(x.shape[0], 1) if outer is None else outer
    expected = [
        scalar_stochastic(
            x.numpy()[i, k], r.numpy()[0, 0], m.numpy()[i, 0], int(e[0, k]), int(j[i, k]), bits
        )
        for i, k in np.ndindex(x.shape)
    ]
    assert q.dtype == torch.int8 and q.reshape(-1).tolist() == expected


@given(matrices, BITS, st.integers(1, 6))
def test_shiftquant_is_within_a_step_of_its_group(x: torch.Tensor, bits: int, groups: int) -> None:
    """The channels of a group lose at most one of *its* steps, 2^e finer than the tensor's."""
    inner = absmax(x, None, [0])
    r, e = absmax(inner, None, [0, 1]), group_exponent(inner, groups)
    q = quantize_stochastic(x, r, None, e, RNG, bits, 4)
    if float(r) < TINY:
        return
    step = quant_scale(r, bits, True, groups).double() * 2.0 ** (groups - 1 - e.double())
    assert bool(((q * step - x).abs() <= step * (1 + 2**-14)).all())
    assert int(q.abs().max()) <= limits(bits, True)[1]


def test_elements_take_their_draws_in_row_major_order() -> None:
    x = randn(6, 50)
    r = absmax(x, None, [0, 1])
    whole = quantize_stochastic(x, r, None, None, RNG, 4, 9)
    assert quantize_stochastic(x.reshape(-1), r.view(1), None, None, RNG, 4, 9).equal(
        whole.reshape(-1)
    )
    transposed = x.t().contiguous().t()
    assert quantize_stochastic(transposed, r, None, None, RNG, 4, 9).equal(whole)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_mean_over_all_draws(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the 65536 draws the mean is t to 2^-17 (and the rounding of t + u), without a side."""
    monkeypatch.setattr(module, "draws", lambda rng, n, stream: torch.arange(n))
    high = limits(bits, True)[1]
    t = (torch.rand(256, generator=torch.Generator().manual_seed(bits)) * 2 - 1) * high
    errors = []
    for value in t:
        everyone = value.expand(2**16)
        q = quantize_stochastic.reference(
            everyone, torch.tensor([float(high)]), None, None, RNG, bits, 0
        )
        errors.append(float(q.double().mean() - value.double()))
    rounding = 2.0 ** (bits - 1 - 24)
    assert max(map(abs, errors)) <= 2**-17 + rounding
    # uniform within +-2^-17, so the mean of 256 has a standard deviation of 2^-17 / sqrt(768)
    assert abs(sum(errors) / len(errors)) < 4 * (2**-17 / 768**0.5 + rounding)


@pytest.mark.parametrize("outer_scales", [True, False])
def test_mean_over_4096_seeds(outer_scales: bool) -> None:
    """Unbiased: the mean of the dequantised values is the value, to 5 standard errors."""
    x = randn(4, 6, seed=3) * 2.0 ** -torch.arange(6.0)
    outer = absmax(x, None, [1]) if outer_scales else None
    inner = absmax(x, outer, [0])
    r, e = absmax(inner, None, [0, 1]), group_exponent(inner, 4)
    step = quant_scale(r, 4, True, 4).double() * 2.0 ** (3 - e.double())
    step = step * (outer_scale(outer).double() if outer is not None else 1.0)
    total = torch.zeros(x.shape, dtype=torch.float64)
    for seed in range(SEEDS):
        rng = torch.tensor([seed, 1, 0, 0])
        total += quantize_stochastic.reference(x, r, outer, e, rng, 4, 21)
    t = x.double() / step
    fraction = t - t.floor()
    deviation = (fraction * (1 - fraction)).sqrt() / SEEDS**0.5
    # the float32 rounding of t itself is far below one standard error
    assert bool(((total / SEEDS - t).abs() <= 5 * deviation + 1e-5).all())


def test_draws_beyond_a_clip_clamp() -> None:
    x = torch.tensor([-50.0, 50.0, 1e38]).repeat(20)
    q = quantize_stochastic(x, torch.tensor([1.0]), None, None, RNG, 4, 2)
    assert q.view(20, 3).unique(dim=0).tolist() == [[-7, 7, 7]]


def test_values_on_the_grid_stay() -> None:
    x = torch.arange(-7.0, 8.0).repeat(50)
    q = quantize_stochastic(x, torch.tensor([7.0]), None, None, RNG, 4, 2)
    assert q.tolist() == x.tolist()
