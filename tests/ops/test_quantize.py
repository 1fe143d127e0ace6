"""Quantisers against float32 scalar formulations, and the properties that users rely on."""

from fractions import Fraction

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
    quantize,
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
# per tensor, per channel, per row, per element
axes_lists = st.sampled_from([[0, 1], [0], [1], []])


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scalar_quantize(x: np.float32, r: np.float32, bits: int, signed: bool) -> int:
    """numerics.md in numpy float32 scalars: every operation rounds once."""
    if r < np.float32(TINY):
        return 0
    low, high = limits(bits, signed)
    return int(np.clip(np.rint(x * (np.float32(high) / r)), low, high))


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


# absmax


@given(matrices, axes_lists)
def test_absmax_is_the_largest_magnitude(x: torch.Tensor, axes: list[int]) -> None:
    r = absmax(x, None, axes)
    expected = x.abs().amax(axes, keepdim=True) if axes else x.abs()
    assert r.shape == expected.shape and r.equal(expected)


@given(matrices)
def test_absmax_after_an_outer_scale(x: torch.Tensor) -> None:
    outer = absmax(x, None, [1])
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(outer < TINY, np.float32(1), np.float32(1) / outer.numpy())
    expected = np.abs(x.numpy() * inverse).max(axis=0, keepdims=True)
    assert np.array_equal(absmax(x, outer, [0]).numpy(), expected)
    assert float(expected.max()) <= 1 + 2**-20


def test_absmax_lets_nan_and_infinity_through() -> None:
    x = torch.tensor([[1.0, float("nan")], [float("-inf"), 2.0]])
    assert bool(absmax(x, None, [0, 1]).isnan())
    assert float(absmax(x[:, :1], None, [0, 1])) == float("inf")


def test_absmax_has_no_negative_zero() -> None:
    assert not torch.signbit(absmax(torch.full((40,), -0.0), None, [0])).any()


def test_absmax_reads_the_logical_tensor() -> None:
    x = randn(2, 3, 4, 5)
    last = x.to(memory_format=torch.channels_last)
    assert absmax(last, None, [0, 2, 3]).equal(absmax(x, None, [0, 2, 3]))
    assert absmax(x.transpose(0, 3), None, [3]).equal(absmax(x, None, [0]).transpose(0, 3))


# group exponents


@given(st.lists(FINITE.map(abs), min_size=1, max_size=6), st.integers(1, 8))
def test_group_exponent_by_its_definition(values: list[float], groups: int) -> None:
    r = torch.tensor(values, dtype=torch.float32)
    # below 2^-100 the quantiser gives zeros whatever the exponent
    if max(values) < TINY:
        return
    largest = Fraction(max(values))
    expected = [sum(Fraction(v) <= largest / 2**j for j in range(1, groups)) for v in values]
    assert group_exponent(r, groups).tolist() == expected


@pytest.mark.parametrize("largest", [1.0, 3.7, 2.0**-99, 3e38])
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_group_exponent_on_exact_edges(largest: float, groups: int) -> None:
    top = torch.tensor(largest)
    for j in range(groups + 2):
        edge = top * 2.0**-j
        above = torch.nextafter(edge, torch.tensor(float("inf")))
        below = torch.nextafter(edge, torch.tensor(0.0))
        got = group_exponent(torch.stack([top, edge, below, above]), groups)
        if j == 0:
            # `above` is the largest now, so the others lie just below it, in the same group
            assert got.tolist() == [0, 0, 0, 0]
        else:
            last = groups - 1
            assert got.tolist() == [0, min(j, last), min(j, last), min(j - 1, last)]


def test_group_exponent_of_zeros_takes_the_last_group() -> None:
    assert group_exponent(torch.tensor([0.0, 1.0]), 4).tolist() == [3, 0]
    assert group_exponent(torch.tensor([[0.0]]), 4).dtype == torch.int8


# nearest even


@settings(max_examples=300)
@given(matrices, axes_lists, BITS, st.booleans())
def test_quantize_in_float32_scalars(
    x: torch.Tensor, axes: list[int], bits: int, signed: bool
) -> None:
    r = absmax(x, None, axes)
    q = quantize(x, r, bits, signed)
    assert q.dtype == (torch.int8 if signed else torch.uint8)
    wide = r.expand_as(x).numpy()
    expected = [scalar_quantize(x.numpy()[i], wide[i], bits, signed) for i in np.ndindex(x.shape)]
    assert q.reshape(-1).tolist() == expected


@given(matrices, axes_lists, BITS)
def test_quantize_is_within_half_a_step(x: torch.Tensor, axes: list[int], bits: int) -> None:
    r = absmax(x, None, axes)
    scale = quant_scale(r, bits, True, 1).double()
    error = (x.double() - quantize(x, r, bits, True).double() * scale).abs()
    kept = (r >= TINY).expand_as(x)
    assert bool((error <= scale * (0.5 + 2**-14))[kept].all())
    unsigned = quantize(x.abs(), r, bits, False).double()
    scale = quant_scale(r, bits, False, 1).double()
    error = (x.abs().double() - unsigned * scale).abs()
    assert bool((error <= scale * (0.5 + 2**-14))[kept].all())


@given(matrices, axes_lists, BITS)
def test_quantize_is_odd(x: torch.Tensor, axes: list[int], bits: int) -> None:
    r = absmax(x, None, axes)
    assert quantize(-x, r, bits, True).equal(-quantize(x, r, bits, True))


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_largest_element_takes_the_largest_integer(bits: int) -> None:
    x = randn(1000, 1, seed=bits).abs()
    for signed in (True, False):
        assert quantize(x, x, bits, signed).unique().tolist() == [limits(bits, signed)[1]]


def test_ties_go_to_even() -> None:
    halves = torch.arange(-7, 7) + 0.5
    got = quantize(halves, torch.tensor([7.0]), 4, True)
    assert got.tolist() == [round(value) for value in halves.tolist()]
    halves = torch.arange(0, 15) + 0.5
    got = quantize(halves, torch.tensor([15.0]), 4, False)
    assert got.tolist() == [round(value) for value in halves.tolist()]


def test_a_clip_below_the_largest_element_clamps() -> None:
    x = torch.tensor([-9.0, -1.0, 0.4, 3.0, 1e30])
    assert quantize(x, torch.tensor([2.0]), 3, True).tolist() == [-3, -2, 1, 3, 3]
    assert quantize(x, torch.tensor([2.0]), 2, False).tolist() == [0, 0, 1, 3, 3]


def test_qmax_over_r_is_rounded_once() -> None:
    """(1 / r) * qmax, which Python's `qmax / tensor` computes, rounds twice."""
    r = randn(100000, seed=5).abs() + 0.01
    true = torch.from_numpy(np.float32(7) / r.numpy())
    twice = r.reciprocal() * 7
    # x where the two quotients lead to different integers: a tie under the true one
    x = 0.5 / true
    q = quantize(x, r, 4, True)
    assert q.tolist() == (x * true).round().tolist()
    assert not q.equal((x * twice).round().to(torch.int8))


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, -1e-40, 2.0**-101, 2.0**-100 * (1 - 2**-24)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_tensor_below_tiny_is_zero_with_scale_one(value: float, bits: int) -> None:
    x = torch.full((3, 4), value)
    r = absmax(x, None, [0, 1])
    exponent = group_exponent(absmax(x, r, [0]), 4)
    for q in (
        quantize(x, r, bits, True),
        quantize(x, r, bits, False),
        quantize_stochastic(x, r, None, None, RNG, bits, 3),
        quantize_stochastic(x, absmax(x, r, [0, 1]), r, exponent, RNG, bits, 3),
    ):
        assert not q.any()
    assert float(quant_scale(r, bits, True, 4)) == 1.0
    assert float(outer_scale(r)) == 1.0


def test_tiny_itself_is_a_number() -> None:
    x = torch.tensor([TINY, -TINY])
    r = absmax(x, None, [0])
    assert quantize(x, r, 8, True).tolist() == [127, -127]
    assert float(outer_scale(r)) == TINY


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_largest_floats_do_not_overflow(bits: int) -> None:
    top = torch.finfo(torch.float32).max
    x = torch.tensor([top, -top, top / 2, 0.0])
    r = absmax(x, None, [0])
    high = limits(bits, True)[1]
    assert quantize(x, r, bits, True).tolist() == [high, -high, round(high / 2), 0]
    q = quantize_stochastic(x, r, None, torch.tensor([3], dtype=torch.int8), RNG, bits, 1)
    assert q[:2].tolist() == [high, -high]
    scaled = quantize_stochastic(x, absmax(x, r, [0]), r, None, RNG, bits, 1)
    assert scaled[:2].tolist() == [high, -high] and int(scaled[3]) == 0
    assert bool(quant_scale(r, bits, True, 1).isfinite())


def test_a_constant_channel_and_axes_of_size_one() -> None:
    x = torch.full((1, 3, 1), 0.3) * torch.tensor([1.0, -2.0, 0.0]).view(1, 3, 1)
    r = absmax(x, None, [0, 2])
    assert r.shape == (1, 3, 1)
    assert quantize(x, r, 4, True).reshape(-1).tolist() == [7, -7, 0]


@pytest.mark.parametrize("bits", [0, 1, 9])
def test_other_bits_are_refused(bits: int) -> None:
    for signed in (True, False):
        with pytest.raises(ValueError, match=r"2\.\.8"):
            limits(bits, signed)


@given(st.lists(FINITE.map(abs), min_size=1, max_size=5), BITS, st.booleans(), st.integers(1, 8))
def test_quant_scale_in_float32_scalars(
    values: list[float], bits: int, signed: bool, groups: int
) -> None:
    r = torch.tensor(values, dtype=torch.float32)
    high = limits(bits, signed)[1]
    expected = [
        (v / np.float32(high)) * np.float32(2.0 ** (1 - groups)) if v >= np.float32(TINY) else 1
        for v in r.numpy()
    ]
    assert quant_scale(r, bits, signed, groups).tolist() == expected


# stochastic


def test_a_million_roundings_in_the_written_order() -> None:
    """x / outer, or any other order of the products, moves a few elements of so many."""
    x = randn(1024, 1024, seed=8)
    outer = absmax(x, None, [1])
    inner = absmax(x, outer, [0])
    r, e = absmax(inner, None, [0, 1]), group_exponent(inner, 3)
    q = quantize_stochastic(x, r, outer, e, RNG, 8, 6)
    j = draws(RNG, x.numel(), 6).view(x.shape).numpy()
    step = (np.float32(127) / r.numpy()) * np.exp2(e.numpy().astype(np.float32))
    t = (x.numpy() * (np.float32(1) / outer.numpy())) * step
    u = (j.astype(np.float32) + np.float32(0.5)) * np.float32(2**-16)
    assert np.array_equal(q.numpy(), np.clip(np.floor(t + u), -127, 127))


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
