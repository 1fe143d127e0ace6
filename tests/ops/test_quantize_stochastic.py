"""Carried stochastic rounding: the written order of operations, its bounds, that it is unbiased,
and that the errors of a run stay within a step together."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sqcompile.ops import carried as module
from sqcompile.ops.carried import ROWS, carried
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
    rows, columns = draw(st.sampled_from([1, 2, 3, 18])), draw(st.integers(1, 4))
    values = draw(st.lists(FINITE, min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(values, dtype=torch.float32).view(rows, columns)


matrices = st.composite(matrix)()


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniform(n: int, stream: int) -> np.ndarray:
    return (draws(RNG, n, stream).numpy().astype(np.float32) + np.float32(0.5)) / np.float32(2**16)


def scalar_t(x: np.float32, r: np.float32, m: np.float32, e: int, bits: int) -> np.float32:
    if r < np.float32(TINY):
        return np.float32(0)
    high = np.float32(limits(bits, True)[1])
    inverse = np.float32(0) if m < np.float32(TINY) else np.float32(1) / m
    return (x * inverse) * ((high / r) * np.float32(2**e))


def scalar_carried(t: np.ndarray, stream: int, bits: int) -> list[int]:
    """t (rows, columns) -> its integers, element by element."""
    high, (rows, columns) = limits(bits, True)[1], t.shape
    q, c = np.zeros(t.shape, dtype=int), np.zeros(columns, dtype=np.float32)
    starts = uniform(-(-rows // 16) * columns, stream)
    for i, j in np.ndindex(t.shape):
        if i % 16 == 0:
            c[j] = starts[i // 16 * columns + j]
        v = t[i, j] + c[j]
        f = np.floor(v)
        q[i, j], c[j] = int(np.clip(f, -high, high)), min(v - f, np.float32(1 - 2.0**-24))
    return q.reshape(-1).tolist()


def test_the_order_of_the_products_at_the_edge() -> None:
    """x placed where t + u is an integer within a rounding: x / outer, or another order of the
    products, lands on the other side of some."""
    n, generator = 4096, torch.Generator().manual_seed(8)
    outer, r = torch.rand(2, 1, n, generator=generator).numpy() + np.float32(0.5)
    u = uniform(n, 6)
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
    m = torch.ones(x.shape[0], 1) if outer is None else outer
    t = [
        scalar_t(x.numpy()[i, k], r.numpy()[0, 0], m.numpy()[i, 0], int(e[0, k]), bits)
        for i, k in np.ndindex(x.shape)
    ]
    expected = scalar_carried(np.array(t, dtype=np.float32).reshape(x.shape), stream, bits)
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


def test_rows_are_all_axes_but_the_last_in_row_major_order() -> None:
    x = randn(36, 10)
    r = absmax(x, None, [0, 1])
    whole = quantize_stochastic(x, r, None, None, RNG, 4, 9)
    images = quantize_stochastic(x.view(2, 3, 6, 10), r.view(1, 1), None, None, RNG, 4, 9)
    assert images.view(36, 10).equal(whole)
    transposed = x.t().contiguous().t()
    assert quantize_stochastic(transposed, r, None, None, RNG, 4, 9).equal(whole)
    line = quantize_stochastic(x.view(-1), r.view(1), None, None, RNG, 4, 9)
    assert line.view(36, 10)[0].equal(whole[0]) and not line.view(36, 10).equal(whole)


def test_only_the_first_row_of_a_run_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    x, asked = randn(40, 50), []

    def count(rng: torch.Tensor, n: int, stream: int) -> torch.Tensor:
        asked.append(n)
        return draws.reference(rng, n, stream)

    monkeypatch.setattr(module, "draws", SimpleNamespace(reference=count))
    q = quantize_stochastic.reference(x, torch.tensor([5.0]), None, None, RNG, 4, 9)
    assert asked == [3 * 50]
    t = x.numpy() * (np.float32(7) / np.float32(5))
    first = np.floor(t[::16] + uniform(150, 9).reshape(3, 50))
    assert np.array_equal(q[::16].numpy(), first)


def test_the_errors_of_a_run_add_up_to_less_than_a_step() -> None:
    """So do those of any rows in a row of it. Elements that draw by themselves do not."""
    t = randn(20 * ROWS, 30, seed=5).clamp(-6, 6)

    def sums(q: torch.Tensor) -> torch.Tensor:
        """Errors of all first rows of each run together."""
        return (q.double() - t.double()).view(-1, ROWS, 30).cumsum(1)

    together = sums(carried(t, -7, 7, RNG, 3))
    assert float(together.abs().max()) < 1 and float(together.abs().max()) > 0.9
    from_any_row = together[:, -1:] - together
    assert float(from_any_row.abs().max()) < 1
    alone = sums(carried(t.reshape(1, -1), -7, 7, RNG, 3).view(t.shape))
    assert float(alone[:, -1].std()) > 3 * float(together[:, -1].std())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_mean_over_all_draws(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the 65536 draws the mean of the first rows of a run together is that of t to 2^-17, and
    so that of any row to 2^-16, without a side; the roundings of t + c come to it."""

    def every(rng: torch.Tensor, n: int, stream: int) -> torch.Tensor:
        return torch.arange(n)

    monkeypatch.setattr(module, "draws", SimpleNamespace(reference=every))
    high = limits(bits, True)[1]
    generator = torch.Generator().manual_seed(bits)
    t = (torch.rand(16, ROWS, 1, generator=generator) * 2 - 1) * high
    r = torch.tensor([float(high)])
    mean = [
        quantize_stochastic.reference(one.expand(ROWS, 2**16), r, None, None, RNG, bits, 0)
        .double()
        .mean(1)
        for one in t
    ]
    errors = torch.stack(mean) - t[..., 0].double()
    rounding = 2.0 ** (bits - 1 - 24) * torch.arange(1, ROWS + 1)
    assert bool((errors.cumsum(1).abs() <= 2**-17 + rounding).all())
    assert bool((errors.abs() <= 2**-16 + rounding).all())
    # uniform within +-2^-17, so the mean of 256 has a standard deviation of 2^-17 / sqrt(768)
    first = errors.cumsum(1)
    assert abs(float(first.mean())) < 4 * (2**-17 / 768**0.5 + float(rounding[0]))


@pytest.mark.parametrize("outer_scales", [True, False])
def test_mean_over_4096_seeds(outer_scales: bool) -> None:
    """Unbiased: the mean of the dequantised values is the value, to 5 standard errors."""
    x = randn(18, 4, seed=3) * 2.0 ** -torch.arange(4.0)
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


def test_a_row_beyond_a_clip_or_of_scale_zero_passes_the_carries_on() -> None:
    """Other rows of its run are rounded as without it."""
    x, r = randn(12, 40), torch.full((12, 1), 5.0)
    x[4], r[4] = 1e38, 0.0  # counts as zero
    x[7] = -1e38
    q = quantize_stochastic(x, r, None, None, RNG, 4, 2)
    assert q[4].unique().tolist() == [0] and q[7].unique().tolist() == [-7]
    others = [row for row in range(12) if row not in (4, 7)]
    assert quantize_stochastic(x[others], r[others], None, None, RNG, 4, 2).equal(q[others])


def test_values_on_the_grid_stay() -> None:
    x = torch.arange(-7.0, 8.0).repeat(50)
    q = quantize_stochastic(x, torch.tensor([7.0]), None, None, RNG, 4, 2)
    assert q.tolist() == x.tolist()


def test_a_zero_stays_one_below_what_rounds_up_to_a_whole_carry() -> None:
    """A zero row's outer scale is 1: an integer there would be worth what no gradient is."""
    start = torch.from_numpy(uniform(64, 4)).view(1, 64)
    x = torch.cat([torch.nextafter(-start, torch.tensor(-1.0)), torch.zeros(15, 64)])
    q = quantize_stochastic(x, torch.tensor([[7.0]]), None, None, RNG, 4, 4)
    v = x[:1] + start
    assert bool(((v - v.floor()) == 1).any()), "no carry here would be rounded up to 1"
    assert bool((q[0] == -1).all()) and not q[1:].any()


def test_a_row_whose_outer_scale_counts_as_zero_is_zero() -> None:
    x = randn(32, 16)
    x[::2] *= TINY / 8
    outer = absmax(x, None, [1])
    assert bool((outer[::2] < TINY).all())
    q = quantize_stochastic(x, absmax(x, outer, [0, 1]), outer, None, RNG, 4, 4)
    assert not q[::2].any() and q[1::2].any()
    assert bool((outer_scale(outer)[::2] == 1).all())
