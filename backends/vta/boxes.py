"""Boxes of a grid of tiles as the rectangles that a transfer moves."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

_MOST = (1 << 16) - 1
"""Rows, columns and the step from row to row have 16 bits."""


class Rectangle(NamedTuple):
    """`rows` rows of `columns` tiles, `stride` tiles from one to the next, from tile `first` of
    the grid on; `done` tiles of the box come before it."""

    first: int
    rows: int
    columns: int
    stride: int
    done: int


def rectangles(
    shape: Sequence[int], starts: Sequence[int], sizes: Sequence[int]
) -> Iterator[Rectangle]:
    """The fewest rectangles that are a box of a row-major grid, in its order."""
    first, steps, step = 0, [], 1
    for length, start in zip(reversed(shape), reversed(starts), strict=True):
        first += start * step
        steps.append(step)
        step *= length
    loops: list[tuple[int, int]] = [
        (1, 1)
    ]  # innermost first: (count, step), contiguous ones merged
    for size, step in zip(reversed(sizes), steps, strict=True):
        count, inner = loops[-1]
        if size == 1:
            continue
        if step == count * inner:
            loops[-1] = (count * size, inner)
        else:
            loops.append((size, step))
    columns = loops[0][0]
    rows, stride = (1, columns)
    outer = loops[1:]
    if outer and outer[0][0] <= _MOST and outer[0][1] <= _MOST:
        rows, stride = outer[0]
        outer = outer[1:]
    offsets = [[number * step for number in range(count)] for count, step in reversed(outer)]
    for number, offset in enumerate(product(*offsets)):
        yield Rectangle(first + sum(offset), rows, columns, stride, number * rows * columns)
