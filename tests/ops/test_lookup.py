"""Lookups by number: torch's own for numbers inside, the nearest row else, gradients in order."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from sqcompile.ops.index_range import index_range
from sqcompile.ops.lookup import take, take_backward


def drawn(*shape: int, high: int) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_take_is_index_select(axis: int) -> None:
    x, index = torch.randn(4, 5, 6), drawn(9, high=4)
    assert take(x, index, axis).equal(x.index_select(axis, index))
    assert take(x, index.int(), axis).equal(x.index_select(axis, index))


def test_numbers_outside_read_the_nearest_row() -> None:
    x = torch.arange(5.0)
    assert take(x, torch.tensor([-7, -1, 4, 5, 99]), 0).tolist() == [0, 0, 4, 4, 4]


@pytest.mark.parametrize("padding", [None, 2])
def test_the_gradient_is_an_embeddings(padding: int | None) -> None:
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    index, g = drawn(40, high=5), torch.randn(40, 3)
    functional.embedding(index, weight, padding_idx=padding).backward(g.double())
    skipped = -1 if padding is None else padding
    got = take_backward(g, index, 0, 5, skipped)
    torch.testing.assert_close(got.double(), weight.grad, rtol=1e-6, atol=1e-6)
    assert padding is None or not got[padding].any()


def test_the_gradient_adds_in_the_order_of_positions() -> None:
    g = torch.randn(3, 60, 2) * torch.logspace(-4, 4, 60)[:, None]
    index = drawn(60, high=4)
    wanted = np.zeros((3, 4, 2), np.float32)
    for at, row in enumerate(index.tolist()):
        wanted[:, row] = wanted[:, row] + g[:, at].numpy()
    assert take_backward(g, index, 1, 4, -1).equal(torch.from_numpy(wanted))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_a_range_has_the_lowest_and_the_highest_number_that_counts(dtype: torch.dtype) -> None:
    x = drawn(5, 8, high=90).to(dtype)
    x[2, 3] = 200
    numbers = x.flatten().tolist()
    assert index_range(x, None).tolist() == [min(numbers), max(numbers)]
    others = [number for number in numbers if number != 200]
    assert index_range(x, 200).tolist() == [min(others), max(others)]


def test_a_range_of_nothing_is_inside_of_every_table() -> None:
    for x in (torch.full((4,), -100), torch.empty(0, dtype=torch.int64)):
        low, high = index_range(x, -100).tolist()
        assert low >= 0 and high < 1
