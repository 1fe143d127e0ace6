"""Quantisers against float32 scalar formulations, and the properties that users rely on."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
