"""ordered_sum: the written order, element by element, and the value it approximates."""

import numpy as np
import pytest
import torch

from sqcompile.ops.reduce import amax, ordered_sum


def scalar_ordered_sum(values: np.ndarray) -> np.float32:
    """One float32 addition at a time: chunks of 1024, 16 lanes, lanes halved, chunks in turn."""
    total = np.float32(0)
    for start in range(0, len(values), 1024):
        lanes = [np.float32(0)] * 16
        for k, value in enumerate(values[start : start + 1024]):
            lanes[k % 16] = lanes[k % 16] + value
        for half in (8, 4, 2, 1):
            lanes = [lanes[i] + lanes[i + half] for i in range(half)]
        total = total + lanes[0]
    return total


@pytest.mark.parametrize("n", [0, 1, 2, 15, 16, 17, 100, 1023, 1024, 1025, 3000])
def test_written_order(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(3, n, generator=generator) * 2 ** torch.randint(-9, 9, (3, n)).float()
    got = ordered_sum(x, [1], False)
    assert got.tolist() == [float(scalar_ordered_sum(row.numpy())) for row in x]


@pytest.mark.parametrize("axes", [[0], [1], [2], [0, 2], [2, 0], [0, 1, 2], [1, 2]])
@pytest.mark.parametrize("keepdim", [True, False])
def test_reduced_elements_are_taken_row_major(axes: list[int], keepdim: bool) -> None:
    x = torch.randn(5, 6, 70, generator=torch.Generator().manual_seed(2))
    got = ordered_sum(x, axes, keepdim)
    assert got.shape == x.sum(axes, keepdim=keepdim).shape
    kept = [axis for axis in range(3) if axis not in axes]
    count = int(np.prod([x.shape[axis] for axis in axes]))
    rows = x.numpy().transpose(*kept, *sorted(axes)).reshape(-1, count)
    assert got.reshape(-1).tolist() == [float(scalar_ordered_sum(row)) for row in rows]


def test_layout_in_memory_does_not_matter() -> None:
    x = torch.randn(4, 8, 9, 9, generator=torch.Generator().manual_seed(3))
    channels_last = x.to(memory_format=torch.channels_last)
    assert ordered_sum(channels_last, [0, 2, 3], False).equal(ordered_sum(x, [0, 2, 3], False))


def test_close_to_float64() -> None:
    x = torch.randn(20, 5000, generator=torch.Generator().manual_seed(4))
    error = (ordered_sum(x, [1], False).double() - x.double().sum(1)).abs()
    depth = 64 + 4 + 5  # additions that one element goes through
    assert bool((error <= depth * 2**-24 * x.double().abs().sum(1)).all())


def test_no_axes_and_negative_zero() -> None:
    x = torch.tensor([-0.0, 1.5, -2.0])
    got = ordered_sum(x, [], False)
    assert got.equal(x) and not torch.signbit(got[0])
    assert not torch.signbit(ordered_sum(torch.full((40,), -0.0), [0], False))


def test_nothing_to_sum_is_zero() -> None:
    assert ordered_sum(torch.zeros(3, 0), [1], True).tolist() == [[0.0]] * 3
    assert ordered_sum(torch.zeros(0, 3), [0], False).tolist() == [0.0] * 3
    assert ordered_sum(torch.zeros(3, 0), [0], False).shape == (0,)


def test_the_largest_of_a_row() -> None:
    x = torch.randn(7, 50, generator=torch.Generator().manual_seed(5)) * 1e30
    x[0, 3], x[1] = torch.inf, -torch.inf
    assert amax(x).equal(x.max(1).values)
    zeros = amax(torch.tensor([[-0.0, -0.0], [0.0, -0.0]]))
    assert zeros.signbit().tolist() == [True, False]
