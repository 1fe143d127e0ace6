"""Pooling against torch: values exact, gradients by float64 autograd and by the written order."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional

from sqcompile.ops.pool import (
    avg_pool2d,
    avg_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
    pooled_size,
)

Pair = tuple[int, int]


def pairs(low: int, high: int) -> st.SearchStrategy[Pair]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def torch_max_pool2d(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """torch's, of an image that is channels last, as its result is."""
    return functional.max_pool2d(x.permute(0, 3, 1, 2), *arguments).permute(0, 2, 3, 1)


def torch_avg_pool2d(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """torch's, of an image that is channels last, as its result is."""
    return functional.avg_pool2d(x.permute(0, 3, 1, 2), *arguments).permute(0, 2, 3, 1)


def lists(*values: Pair) -> list[list[int]]:
    return [list(value) for value in values]


geometry = {
    "size": pairs(1, 9), "kernel": pairs(1, 4), "stride": pairs(1, 4), "padding": pairs(0, 2),
    "seed": st.integers(0, 99),
}  # fmt: skip


@given(**geometry, dilation=pairs(1, 3), ceil_mode=st.booleans(), ties=st.booleans())
def test_max_pool(
    size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool,
    ties: bool, seed: int,
) -> None:  # fmt: skip
    assume(all(2 * padding[i] <= kernel[i] for i in range(2)))
    assume(all(size[i] + 2 * padding[i] > dilation[i] * (kernel[i] - 1) for i in range(2)))
    x = randn(2, *size, 2, seed=seed)
    x = x.round() if ties else x
    arguments: Any = (kernel, stride, padding, dilation, ceil_mode)
    y, tap = max_pool2d(x, *lists(kernel, stride, padding, dilation), ceil_mode)
    leaf = x.double().requires_grad_()
    expected = torch_max_pool2d(leaf, *arguments)
    assert y.double().equal(expected) and tap.dtype == torch.uint8
    assume(bool(y.isfinite().all()))  # dilation can put a whole window into the padding

    g = randn(*y.shape, seed=seed + 1)
    expected.backward(g.double())
    dx = max_pool2d_backward(g, tap, list(x.shape), *lists(kernel, stride, padding, dilation))
    assert torch.allclose(dx.double(), leaf.grad, rtol=1e-6, atol=1e-6)
    # integers are exact in any order: the same elements get the same gradients
    whole = torch.arange(g.numel()).view(g.shape).float() + 1
    leaf.grad = None
    torch_max_pool2d(leaf, *arguments).backward(whole.double())
    got = max_pool2d_backward(whole, tap, list(x.shape), *lists(kernel, stride, padding, dilation))
    assert got.double().equal(leaf.grad)


@given(**geometry)
def test_avg_pool(size: Pair, kernel: Pair, stride: Pair, padding: Pair, seed: int) -> None:
    assume(all(2 * padding[i] <= kernel[i] for i in range(2)))
    assume(all(size[i] + 2 * padding[i] >= kernel[i] for i in range(2)))
    x = randn(2, *size, 2, seed=seed)
    y = avg_pool2d(x, *lists(kernel, stride, padding))
    leaf = x.double().requires_grad_()
    expected = torch_avg_pool2d(leaf, kernel, stride, padding)
    assert y.shape == expected.shape
    assert torch.allclose(y.double(), expected, rtol=1e-6, atol=1e-6)
    g = randn(*y.shape, seed=seed + 1)
    expected.backward(g.double())
    dx = avg_pool2d_backward(g, list(x.shape), *lists(kernel, stride, padding))
    assert torch.allclose(dx.double(), leaf.grad, rtol=1e-6, atol=1e-6)


def test_average_is_exact_on_integers_and_powers_of_two() -> None:
    x = randn(2, 8, 8, 3).mul(9).round()
    arguments = [[2, 2], [2, 2], [0, 0]]
    assert avg_pool2d(x, *arguments).equal(torch_avg_pool2d(x, 2, 2))


def test_written_order_of_the_average() -> None:
    x = randn(1, 20, 21, 1, seed=3)
    got = avg_pool2d(x, [3, 3], [1, 2], [1, 1])
    padded = np.pad(x.numpy()[0, ..., 0], 1)
    for i, j in np.ndindex(*got.shape[1:3]):
        total = np.float32(0)
        for kh, kw in np.ndindex(3, 3):
            total = total + padded[i + kh, 2 * j + kw]
        assert float(got[0, i, j, 0]) == float(total / np.float32(9))


def scattered(
    g: np.ndarray, taps: np.ndarray | None, size: Pair, kernel: Pair, stride: Pair, padding: Pair
) -> np.ndarray:
    """Every element sums its windows' gradients by ascending tap, one addition at a time."""
    dx = np.zeros(size, dtype=np.float32)
    for kh, kw in np.ndindex(*kernel):
        for i, j in np.ndindex(*g.shape):
            h, w = i * stride[0] + kh - padding[0], j * stride[1] + kw - padding[1]
            inside = 0 <= h < size[0] and 0 <= w < size[1]
            if inside and (taps is None or taps[i, j] == kh * kernel[1] + kw):
                dx[h, w] = dx[h, w] + g[i, j]
    return dx


def test_written_order_of_both_gradients() -> None:
    size, kernel, stride, padding = (6, 7), (3, 3), (1, 2), (1, 1)
    x = randn(1, *size, 1, seed=4)
    y, tap = max_pool2d(x, *lists(kernel, stride, padding), [1, 1], False)
    g = randn(*y.shape, seed=5)
    dx = max_pool2d_backward(g, tap, list(x.shape), *lists(kernel, stride, padding), [1, 1])
    plane, taps = g.numpy()[0, ..., 0], tap.numpy()[0, ..., 0]
    expected = scattered(plane, taps, size, kernel, stride, padding)
    assert np.array_equal(dx.numpy()[0, ..., 0], expected)
    dx = avg_pool2d_backward(g, list(x.shape), *lists(kernel, stride, padding))
    expected = scattered(plane / np.float32(9), None, size, kernel, stride, padding)
    assert np.array_equal(dx.numpy()[0, ..., 0], expected)


def test_the_first_of_equal_maxima_wins() -> None:
    y, tap = max_pool2d(torch.ones(1, 4, 4, 1), [2, 2], [2, 2], [0, 0], [1, 1], False)
    assert not tap.any() and y.unique().tolist() == [1.0]
    # the first tap that is not padding
    _, tap = max_pool2d(torch.zeros(1, 2, 2, 1), [3, 3], [2, 2], [1, 1], [1, 1], False)
    assert tap.reshape(-1).tolist() == [4]
    # zeros of either sign are equal
    x = torch.tensor([-0.0, 0.0]).view(1, 1, 2, 1)
    y, tap = max_pool2d(x, [1, 2], [1, 2], [0, 0], [1, 1], False)
    assert int(tap) == 0 and bool(torch.signbit(y))


def test_a_window_of_padding_only_has_no_gradient() -> None:
    arguments = [[1, 2], [1, 1], [0, 1], [1, 2]]
    y, tap = max_pool2d(torch.ones(1, 1, 1, 1), *arguments, False)
    assert y.reshape(-1).tolist() == [float("-inf")]
    assert not max_pool2d_backward(torch.ones_like(y), tap, [1, 1, 1, 1], *arguments).any()


def test_windows_of_256_taps_and_no_more() -> None:
    x = torch.arange(256.0).view(1, 16, 16, 1)
    y, tap = max_pool2d(x, [16, 16], [16, 16], [0, 0], [1, 1], False)
    assert float(y) == 255.0 and int(tap) == 255
    with pytest.raises(ValueError, match="256"):
        max_pool2d(torch.zeros(1, 17, 17, 1), [17, 17], [1, 1], [0, 0], [1, 1], False)


@given(
    st.integers(1, 20), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2),
    st.integers(1, 3), st.booleans(),
)  # fmt: skip
def test_pooled_size_is_torchs(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> None:
    assume(2 * padding <= kernel and size + 2 * padding > dilation * (kernel - 1))
    y = functional.max_pool1d(torch.zeros(1, 1, size), kernel, stride, padding, dilation, ceil_mode)
    assert pooled_size(size, kernel, stride, padding, dilation, ceil_mode) == y.shape[2]
