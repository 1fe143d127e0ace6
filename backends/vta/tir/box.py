"""Boxes of a grid of tiles, and how loops move inside one."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple


class Box(NamedTuple):
    """Of a grid of tiles: where it begins, and its lengths."""

    starts: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def tiles(self) -> int:
        """How many."""
        return prod(self.sizes)

    def moved(self, by: Sequence[int]) -> "Box":
        """The same box elsewhere."""
        starts = tuple(start + step for start, step in zip(self.starts, by, strict=True))
        return Box(starts, self.sizes)

    def offset(self, step: Sequence[int]) -> int:
        """Tiles from one place to another that is so far along every axis, in row-major order."""
        found = 0
        for size, along in zip(self.sizes, step, strict=True):
            found = found * size + along
        return found

    def place(self, at: Sequence[int]) -> int:
        """Tiles before the one with these indices."""
        return self.offset([one - start for one, start in zip(at, self.starts, strict=True)])

    def meets(self, shape: Sequence[int]) -> bool:
        """Is any of it inside a grid of this shape?"""
        return all(
            start + size > 0 and start < length
            for start, size, length in zip(self.starts, self.sizes, shape, strict=True)
        )

    def clipped(self, shape: Sequence[int]) -> tuple["Box", tuple[int, int, int, int]]:
        """What of its last two axes lies inside a grid, and the lines outside of it: above, below,
        left, right."""
        starts, sizes, pads = list(self.starts), list(self.sizes), []
        for axis in (-2, -1):
            before = max(0, -starts[axis])
            after = max(0, starts[axis] + sizes[axis] - shape[axis])
            starts[axis] += before
            sizes[axis] -= before + after
            pads += [before, after]
        return Box(tuple(starts), tuple(sizes)), (pads[0], pads[1], pads[2], pads[3])


class Access(NamedTuple):
    """Which tile is touched at the beginning of some loops, and how far each loop moves that."""

    starts: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]

    def box(self, lengths: Sequence[int]) -> Box:
        """All tiles that loops of these lengths touch."""
        lows, highs = list(self.starts), list(self.starts)
        for length, steps in zip(lengths, self.steps, strict=True):
            for axis, step in enumerate(steps):
                ends = lows if step < 0 else highs
                ends[axis] += (length - 1) * step
        return Box(
            tuple(lows), tuple(high - low + 1 for low, high in zip(lows, highs, strict=True))
        )


def around(boxes: Sequence[Box]) -> Box:
    """The smallest box that has all of them in it."""
    starts = tuple(map(min, *(one.starts for one in boxes))) if len(boxes) > 1 else boxes[0].starts
    ends = [tuple(a + n for a, n in zip(*one, strict=True)) for one in boxes]
    last = tuple(map(max, *ends)) if len(boxes) > 1 else ends[0]
    return Box(starts, tuple(end - start for start, end in zip(starts, last, strict=True)))
