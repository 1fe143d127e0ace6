"""Tables of sq::resample: which elements a result reads, and what each counts.

Positions are computed in float32, as torch computes them, so that both pick the same elements.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Matrix = np.ndarray
"""float32 (results, elements): what an element counts in a result; nonzero in one run a row."""
Window = tuple[int, int, float]
"""Elements begin .. end - 1, each counting a weight."""


def table(matrix: Matrix) -> tuple[Tensor, Tensor]:
    """(first int32 (R,), weight float32 (R, taps)): as many taps as the longest run; a shorter
    one is filled up with neighbours that count 0."""
    results, elements = matrix.shape
    begins = np.array([np.flatnonzero(row)[0] if row.any() else 0 for row in matrix])
    ends = np.array([np.flatnonzero(row)[-1] + 1 if row.any() else 1 for row in matrix])
    taps = int((ends - begins).max())
    first = np.minimum(begins, elements - taps)
    weight = matrix[np.arange(results)[:, None], first[:, None] + np.arange(taps)]
    return torch.from_numpy(first.astype(np.int32)), torch.from_numpy(weight.copy())


def windows(size: int, rows: Sequence[Window]) -> Matrix:
    """Of `size` elements, a window a result."""
    matrix = np.zeros((len(rows), size), np.float32)
    for row, (begin, end, weight) in zip(matrix, rows, strict=True):
        row[begin:end] = weight
    return matrix


def adaptive(size: int, results: int) -> Matrix:
    """Adaptive average pooling: windows of nearly equal length, which may overlap."""
    begins = [i * size // results for i in range(results)]
    ends = [-(-(i + 1) * size // results) for i in range(results)]
    return windows(size, [(b, e, 1 / (e - b)) for b, e in zip(begins, ends, strict=True)])


def pooling(
    size: int,
    results: int,
    kernel: int,
    stride: int,
    padding: int,
    count_padding: bool,
    divisor: int | None = None,
) -> Matrix:
    """Average pooling: padding counts or not, up to `padding` behind the end; a divisor stands
    for the count."""
    rows = []
    for i in range(results):
        begin = i * stride - padding
        end = min(begin + kernel, size + padding)
        inside = max(begin, 0), min(end, size)
        count = end - begin if count_padding else inside[1] - inside[0]
        rows.append((*inside, 1 / (divisor or max(count, 1))))
    return windows(size, rows)


def _step(size: int, results: int, factor: float | None) -> np.float32:
    """Elements a result, as torch rounds it: from the factor that the user gave, if any."""
    return np.float32(1 / factor) if factor else np.float32(size) / np.float32(results)


def nearest(size: int, results: int, factor: float | None, exact: bool) -> Matrix:
    """The element at (`exact`: or nearest to) the scaled position."""
    place = np.arange(results, dtype=np.float32) + np.float32(0.5 if exact else 0)
    at = np.floor(place * _step(size, results, factor)).astype(int)
    if not exact and results in (size, 2 * size):
        at = np.arange(results) // (results // size)
    return windows(size, [(i, i + 1, 1.0) for i in np.minimum(at, size - 1).tolist()])


def linear(size: int, results: int, factor: float | None, align_corners: bool) -> Matrix:
    """Linear interpolation between the two elements around a position."""
    i = np.arange(results, dtype=np.float32)
    half = np.float32(0.5)
    if align_corners:
        step = np.float32(size - 1) / np.float32(results - 1) if results > 1 else np.float32(0)
        place = i * step
    else:
        place = np.maximum((i + half) * _step(size, results, factor) - half, np.float32(0))
    low = np.minimum(place.astype(int), size - 1)
    share = np.clip(place - low.astype(np.float32), np.float32(0), np.float32(1))
    matrix = np.zeros((results, size), np.float32)
    every = np.arange(results)
    matrix[every, low] += np.float32(1) - share
    matrix[every, np.minimum(low + 1, size - 1)] += share
    return matrix
