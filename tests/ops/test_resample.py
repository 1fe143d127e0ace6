"""Resampling: torch's interpolation and pooling, gradients of float64, the written order."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from sqcompile.ops.resample import resample
from sqcompile.ops.resample_table import Matrix, adaptive, linear, nearest, pooling, table, windows
from sqcompile.shape_swap import interpolate

SIZES = [(1, 1), (1, 5), (4, 1), (5, 10), (6, 3), (7, 13), (13, 5), (9, 9)]


def along(x: torch.Tensor, matrix: Matrix) -> torch.Tensor:
    """x (..., S) resampled along its last axis."""
    return resample(x, x.dim() - 1, *table(matrix), *table(matrix.T))


@pytest.mark.parametrize(("size", "results"), SIZES)
def test_tables_of_interpolation_are_torchs(size: int, results: int) -> None:
    x = torch.randn(2, 3, size)
    for mode in ("nearest", "nearest-exact"):
        got = along(x, nearest(size, results, None, mode == "nearest-exact"))
        assert got.equal(functional.interpolate(x, results, mode=mode))
    for corners in (False, True):
        got = along(x, linear(size, results, None, corners))
        want = functional.interpolate(x, results, mode="linear", align_corners=corners)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {"scale_factor": 2},
        {"scale_factor": (1.7, 0.6)},
        {"scale_factor": 1.7, "recompute_scale_factor": True},
        {"size": (3, 11), "mode": "nearest-exact"},
        {"scale_factor": 2, "mode": "bilinear"},
        {"scale_factor": (0.7, 2.3), "mode": "bilinear"},
        {"size": 7, "mode": "bilinear", "align_corners": True},
        {"size": (3, 4), "mode": "bicubic"},
        {"size": (3, 4), "mode": "area"},
    ],
    ids=str,
)
def test_interpolation_and_its_gradient_are_torchs(arguments: dict[str, Any]) -> None:
    ours = torch.randn(2, 3, 6, 5, requires_grad=True)
    theirs = ours.detach().double().requires_grad_()
    got = interpolate(ours, **arguments)
    want = functional.interpolate(theirs, **arguments)
    g = torch.randn(want.shape)
    got.backward(g)
    want.backward(g.double())
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "results"), [(7, 3), (5, 5), (3, 7), (12, 4), (11, 1)])
def test_adaptive_windows_are_torchs(size: int, results: int) -> None:
    x = torch.randn(2, 3, size)
    want = functional.adaptive_avg_pool1d(x, results)
    torch.testing.assert_close(along(x, adaptive(size, results)), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), [(7, 3, 2, 1), (8, 2, 3, 0)])
def test_average_windows_are_torchs(
    size: int, kernel: int, stride: int, padding: int, counted: bool, ceil: bool
) -> None:
    x = torch.randn(2, 3, size)
    want = functional.avg_pool1d(x, kernel, stride, padding, ceil, counted)
    matrix = pooling(size, want.shape[-1], kernel, stride, padding, counted)
    torch.testing.assert_close(along(x, matrix), want, rtol=1e-5, atol=1e-6)


def test_taps_are_rounded_and_added_in_order() -> None:
    matrix = windows(9, [(0, 4, 0.1), (2, 7, 0.3), (8, 9, 1.0)])
    x = torch.randn(9, 5) * torch.logspace(-3, 3, 9)[:, None]
    first, weight = table(matrix)
    wanted = np.zeros((3, 5), np.float32)
    for result in range(3):
        for tap in range(weight.shape[1]):
            product = weight[result, tap].numpy() * x[int(first[result]) + tap].numpy()
            wanted[result] = wanted[result] + product
    assert resample(x, 0, first, weight, None, None).equal(torch.from_numpy(wanted))


def test_the_transposed_table_is_the_gradient() -> None:
    for matrix in (linear(7, 12, None, False), adaptive(9, 4), nearest(5, 3, 0.7, False)):
        first, weight = table(matrix.T)
        dense = torch.zeros(matrix.T.shape)
        for row, (start, values) in enumerate(zip(first.tolist(), weight, strict=True)):
            dense[row, start : start + len(values)] = values
        assert dense.equal(torch.from_numpy(matrix.T.copy()))
