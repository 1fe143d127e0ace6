"""Integer matrix products against int64, and what their epilogue computes."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sqcompile.ops.product import (
    dequantize,
    exact,
    shift_matmul,
    shift_matmul_dequantize,
)
from sqcompile.ops.product_float import matmul
from sqcompile.ops.quantize import (
    absmax,
    group_exponent,
    outer_scale,
    quant_scale,
    quantize,
    quantize_stochastic,
)

SIZES = st.integers(1, 5)
DTYPES = st.sampled_from([torch.int8, torch.uint8])
SEEDS = 4096
ULP = 2.0**-24


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def integers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max + 1, shape, generator=generator(seed)).to(dtype)


def int64_product(
    a: torch.Tensor, b: torch.Tensor, exponent: torch.Tensor | None, groups: int,
    transpose_a: bool, transpose_b: bool,
) -> np.ndarray:  # fmt: skip
    """sum_k (a << (groups - 1 - e)) * b in numpy int64, the reduction spelled out."""
    left, right = a.numpy().astype(np.int64), b.numpy().astype(np.int64)
    if exponent is not None:
        left = left << (groups - 1 - exponent.numpy().astype(np.int64))
    left = left.swapaxes(-1, -2) if transpose_a else left
    right = right.swapaxes(-1, -2) if transpose_b else right
    return (left[..., :, :, None] * right[..., None, :, :]).sum(axis=-2)


@given(
    SIZES, SIZES, SIZES, st.sampled_from([None, 1, 3]), st.booleans(), st.booleans(),
    st.none() | st.integers(1, 8), DTYPES, DTYPES, st.integers(0, 3), st.integers(0, 99),
)  # fmt: skip
def test_shift_matmul_in_int64(
    m: int, k: int, n: int, batch: int | None, transpose_a: bool, transpose_b: bool,
    groups: int | None, dtype_a: torch.dtype, dtype_b: torch.dtype, k_chunk: int, seed: int,
) -> None:  # fmt: skip
    front = () if batch is None else (batch,)
    a = integers((*front, *((k, m) if transpose_a else (m, k))), dtype_a, seed)
    b = integers((*front, *((n, k) if transpose_b else (k, n))), dtype_b, seed + 1)
    exponent = None
    if groups is not None:
        shape = (*front, *((k, 1) if transpose_a else (1, k)))
        exponent = torch.randint(0, groups, shape, generator=generator(seed)).to(torch.int8)
    got = shift_matmul(a, b, exponent, groups or 1, transpose_a, transpose_b, k_chunk)
    assert got.dtype == (torch.int64 if k_chunk else torch.int32)
    expected = int64_product(a, b, exponent, groups or 1, transpose_a, transpose_b)
    assert np.array_equal(got.numpy(), expected)


def test_one_exponent_for_the_whole_batch() -> None:
    a, b = integers((3, 2, 4), torch.int8, 1), integers((3, 4, 5), torch.int8, 2)
    exponent = torch.tensor([0, 1, 2, 3], dtype=torch.int8).view(1, 1, 4)
    got = shift_matmul(a, b, exponent, 4, False, False, 0)
    assert np.array_equal(got.numpy(), int64_product(a, b, exponent, 4, False, False))


def test_empty_reduction_is_zero() -> None:
    a, b = torch.zeros(2, 0, dtype=torch.int8), torch.zeros(0, 3, dtype=torch.int8)
    assert shift_matmul(a, b, None, 1, False, False, 0).equal(torch.zeros(2, 3, dtype=torch.int32))


def test_sums_beyond_float32_are_exact() -> None:
    a = torch.full((1, 4097), 127, dtype=torch.int8)
    b = torch.full((4097, 1), 127, dtype=torch.int8)
    b[-1] = 1
    assert int(shift_matmul(a, b, None, 1, False, False, 0)) == 4096 * 127 * 127 + 127


def test_leaving_int32_raises_without_a_split() -> None:
    a = torch.full((1, 140000), -127, dtype=torch.int8)
    b = torch.full((140000, 1), 127, dtype=torch.int8)
    with pytest.raises(OverflowError, match="int32"):
        shift_matmul(a, b, None, 1, False, False, 0)
    assert int(shift_matmul(a, b, None, 1, False, False, 1000)) == -140000 * 127 * 127


def test_products_that_float64_cannot_hold_raise() -> None:
    a = torch.full((1, 2), 127, dtype=torch.int8)
    exponent = torch.zeros(1, 2, dtype=torch.int8)
    with pytest.raises(OverflowError, match="float64"):
        shift_matmul(a, a.t(), exponent, 42, False, False, 1)
    assert int(shift_matmul(a, a.t(), exponent, 36, False, False, 1)) == 2 * 127 * 127 * 2**35
    big = torch.tensor([2.0**26], dtype=torch.float64)
    with pytest.raises(OverflowError):
        exact(big, -2 * big, 1)
    exact(big, big, 1)


# epilogue


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=8), st.booleans())
def test_dequantize_rounds_once_per_operation(values: list[int], with_bias: bool) -> None:
    acc = torch.tensor(values)
    scales = [
        torch.rand(1, generator=generator(1)),
        torch.rand(len(values), generator=generator(2)),
    ]
    bias = torch.randn(len(values), generator=generator(3)) if with_bias else None
    expected = np.array([nearest_float32(value) for value in values], dtype=np.float32)
    for scale in scales:
        expected = expected * scale.numpy()
    expected = expected if bias is None else expected + bias.numpy()
    assert np.array_equal(dequantize(acc, scales, bias).numpy(), expected)


def nearest_float32(value: int) -> float:
    """Round half even to 24 bits in Python integers."""
    drop = max(0, abs(value).bit_length() - 24)
    quotient, rest = divmod(abs(value), 2**drop)
    half = 2 * rest - 2**drop
    quotient += int(half > 0 or (half == 0 and drop > 0 and quotient % 2 == 1))
    return float(quotient * 2**drop) * (1 if value >= 0 else -1)


def test_int64_is_not_rounded_through_float64() -> None:
    value = (2**24 + 1) * 2**36 + 1  # to float64: a tie, which goes down; directly: up
    assert float(dequantize(torch.tensor([value] * 9), [], None)[8]) == (2**24 + 2) * 2.0**36
    assert float(np.float32(np.float64(value))) == 2.0**60


def test_dequantize_of_int32_extremes() -> None:
    acc = torch.tensor([2**31 - 1, -(2**31), 2**24 + 1, 2**24 + 3, 0], dtype=torch.int32)
    assert dequantize(acc, [], None).tolist() == [2.0**31, -(2.0**31), 2.0**24, 2.0**24 + 4, 0.0]


@pytest.mark.parametrize("relu", [False, True])
def test_fused_epilogue_is_the_product_then_dequantize(relu: bool) -> None:
    a, b = integers((6, 9), torch.int8, 4), integers((7, 9), torch.int8, 5)
    exponent = torch.randint(0, 3, (1, 9), generator=generator(6)).to(torch.int8)
    scales = [torch.rand(6, 1, generator=generator(7)), torch.rand(1, 7, generator=generator(8))]
    bias = 1e4 * torch.randn(7, generator=generator(9))
    y = dequantize(shift_matmul(a, b, exponent, 3, False, True, 0), scales, bias)
    fused = shift_matmul_dequantize(a, b, exponent, 3, False, True, 0, scales, bias, relu)
    assert fused.equal(torch.where(y < 0, torch.zeros_like(y), y) if relu else y)
    assert (y < 0).any() and (y > 0).any()


# the scheme: what linear's gradients compute


def linear(
    seed: int, tokens: int = 12, inputs: int = 6, outputs: int = 10
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, w, g whose channels and tokens spread over several octaves, as real ones do."""
    octaves = torch.randint(-5, 1, (tokens, 1), generator=generator(seed + 3)).float()
    g = torch.randn(tokens, outputs, generator=generator(seed)) * 2**octaves
    g = g * 2.0 ** -(torch.arange(outputs) % 6)
    w = torch.randn(outputs, inputs, generator=generator(seed + 1))
    return torch.randn(tokens, inputs, generator=generator(seed + 2)), w, g


class Shifted:
    """g quantised for a reduction over `inner`, free along `outer`."""

    def __init__(
        self, g: torch.Tensor, outer: int | None, inner: int, groups: int, bits: int, seed: int
    ) -> None:
        self.outer = None if outer is None else absmax(g, None, [inner])
        channel = absmax(g, self.outer, [1 - inner])
        self.r = absmax(channel, None, [0, 1])
        self.exponent = group_exponent(channel, groups)
        rng = torch.tensor([seed, 1, 0, 0])
        self.q = quantize_stochastic.reference(g, self.r, self.outer, self.exponent, rng, bits, 5)
        self.scales = [quant_scale(self.r, bits, True, groups)]
        if self.outer is not None:
            self.scales.append(outer_scale(self.outer))
        self.value = self.q.double() * 2.0 ** (groups - 1 - self.exponent.double())
        for scale in self.scales:
            self.value = self.value * scale.double()


@pytest.mark.parametrize("groups", range(1, 9))
@pytest.mark.parametrize("outer", [None, 0])
def test_linear_input_gradient_is_that_of_the_dequantised_operands(
    groups: int, outer: int | None
) -> None:
    x, w, g = linear(groups)
    w_scale = quant_scale(absmax(w, None, [0, 1]), 4, True, 1)
    w_q = quantize(w, absmax(w, None, [0, 1]), 4, True)
    s = Shifted(g, outer, inner=1, groups=groups, bits=4, seed=1)
    acc = shift_matmul(s.q, w_q, s.exponent, groups, False, False, 0)
    dx = dequantize(acc, [*s.scales, w_scale], None).double()
    leaf = x.double().requires_grad_()
    (leaf @ (w_q.double() * w_scale.double()).t()).backward(s.value)
    assert bool(((dx - leaf.grad).abs() <= 5 * ULP * leaf.grad.abs() + 1e-12).all())


@pytest.mark.parametrize("groups", range(1, 9))
@pytest.mark.parametrize("outer", [None, 1])
def test_linear_weight_gradient_is_that_of_the_dequantised_operands(
    groups: int, outer: int | None
) -> None:
    x, w, g = linear(20 + groups)
    x_scale = quant_scale(absmax(x, None, [0, 1]), 4, True, 1)
    x_q = quantize(x, absmax(x, None, [0, 1]), 4, True)
    s = Shifted(g, outer, inner=0, groups=groups, bits=4, seed=1)
    acc = shift_matmul(s.q, x_q, s.exponent, groups, True, False, 0)
    scales = [scale.t() for scale in s.scales]
    dw = dequantize(acc, [*scales, x_scale], None).double()
    leaf = w.double().requires_grad_()
    ((x_q.double() * x_scale.double()) @ leaf.t()).backward(s.value)
    assert bool(((dw - leaf.grad).abs() <= 5 * ULP * leaf.grad.abs() + 1e-12).all())


def test_mean_of_both_linear_gradients_over_4096_seeds() -> None:
    """The mean over draws is the product of the unquantised gradient, to 5 standard errors."""
    x, w, g = linear(40)
    sums = {"dx": torch.zeros(12, 6).double(), "dw": torch.zeros(10, 6).double()}
    squares = {name: torch.zeros_like(value) for name, value in sums.items()}
    for seed in range(SEEDS):
        dx = Shifted(g, 0, inner=1, groups=4, bits=4, seed=seed).value @ w.double()
        dw = Shifted(g, 1, inner=0, groups=4, bits=4, seed=seed).value.t() @ x.double()
        for name, value in (("dx", dx), ("dw", dw)):
            sums[name] += value
            squares[name] += value**2
    true = {"dx": g.double() @ w.double(), "dw": g.double().t() @ x.double()}
    for name, expected in true.items():
        mean = sums[name] / SEEDS
        error = ((squares[name] / SEEDS - mean**2) / SEEDS).sqrt()
        assert bool(((mean - expected).abs() <= 5 * error + 1e-5).all()), name
        assert float((mean - expected).norm() / expected.norm()) < 0.01


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_float_product_matches_torch(transpose_a: bool, transpose_b: bool) -> None:
    a, b = (
        torch.randn(3, 4, 4, generator=generator(1)),
        torch.randn(3, 4, 4, generator=generator(2)),
    )
    bias = torch.randn(4, generator=generator(3))
    left = a.transpose(1, 2) if transpose_a else a
    right = b.transpose(1, 2) if transpose_b else b
    assert torch.allclose(matmul(a, b, bias, transpose_a, transpose_b), left @ right + bias)


def test_a_placed_result_is_the_product_at_the_place_of_its_digits() -> None:
    """Heads side by side: element (n, t, h, d) is row t and column d of batch 3 n + h."""
    generator = torch.Generator().manual_seed(3)
    a, b = (
        torch.randint(-7, 8, size, generator=generator, dtype=torch.int8)
        for size in ((6, 5, 9), (6, 9, 4))
    )
    given = (a, b, None, 1, False, False, 0, [torch.rand(6, 1, 1, generator=generator)])
    y = shift_matmul_dequantize(*given, None, False)
    placed = shift_matmul_dequantize(
        *given, None, False, None, None, [2, 3, 5, 2, 2], [0, 2, 1, 4, 3]
    )
    assert placed.shape == (2, 5, 3, 2, 2)
    assert placed.is_contiguous()
    for n, t, h, low, high in product(range(2), range(5), range(3), range(2), range(2)):
        assert placed[n, t, h, low, high] == y[3 * n + h, t, 2 * high + low]
