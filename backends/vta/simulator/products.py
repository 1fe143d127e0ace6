"""ACC[dst] += INP[src] @ WGT[wgt].T of many tile operations at once, exact modulo 2^32.

INP and WGT are float32 here. A product of whole numbers is exact while its sums do not exceed 2^24,
so long ones are cut there and added up as int32.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqcompile.backends.vta.simulator.scratchpad import Indices

_WORTH = 8
"""From so many tile operations in one, a matrix product of its own is faster than many small ones
in one call."""


def accumulate(
    acc: NDArray[np.int32],
    inp: NDArray[np.float32],
    weights: NDArray[np.float32],
    operations: tuple[Indices, Indices, Indices],
    longest: int,
) -> None:
    """Add to acc (depth, BATCH, BLOCK) the products of inp (depth, BATCH, BLOCK) and weights
    (depth, BLOCK, BLOCK) with indices dst, src, wgt; `longest` products of tiles add up exactly."""
    order = sorting(operations[0])
    dst, src, wgt = (indices[order] for indices in operations)
    starts = np.flatnonzero(np.diff(dst, prepend=-1))
    length = len(dst) // len(starts)
    if (starts == np.arange(len(starts)) * length).all() and len(dst) == len(starts) * length:
        sums = dst[starts], src.reshape(-1, length), wgt.reshape(-1, length)
        groups = list(_alike(sums[2]))
        if len(groups) * _WORTH <= len(dst):
            for some in groups:
                tiles, used = sums[0][some], sums[2][some[0]]
                acc[tiles] += _product(inp, weights, sums[1][some], used, longest)
            return
    products = np.matmul(inp[src], weights[wgt].transpose(0, 2, 1)).astype(np.int32)
    acc[dst[starts]] += np.add.reduceat(products, starts, axis=0)


def sorting(tiles: Indices) -> Indices:
    """The order that sorts indices; 16 bits, which every index has, sort by radix."""
    return np.argsort(tiles.astype(np.uint16), kind="stable")


def _alike(rows: Indices) -> Iterator[Indices]:
    """Numbers of rows that are equal; those whose first column alone is, one by one."""
    order = sorting(rows[:, 0])
    first = rows[order, 0]
    for some in np.split(order, np.flatnonzero(np.diff(first)) + 1):
        if (rows[some] == rows[some[0]]).all():
            yield some
        else:
            yield from some[:, None]


def _product(
    inp: NDArray[np.float32],
    weights: NDArray[np.float32],
    src: Indices,
    wgt: Indices,
    longest: int,
) -> NDArray[np.int32]:
    """src (n, k), wgt (k,) -> (n, BATCH, BLOCK) of sum over k of INP[src] @ WGT[wgt].T."""
    total: Any = 0
    _, batch, block = inp.shape
    for begin in range(0, len(wgt), longest):
        part = slice(begin, begin + longest)
        left = inp[src[:, part]].transpose(0, 2, 1, 3).reshape(len(src) * batch, -1)
        right = weights[wgt[part]].transpose(0, 2, 1).reshape(-1, block)
        total = total + (left @ right).astype(np.int32)
    found: NDArray[np.int32] = total.reshape(len(src), batch, block)
    return found
