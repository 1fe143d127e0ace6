"""How one tensor's elements, in row-major order, stand in another's memory: what any chain of
views, permutes, slices and selects comes to. Passes put such chains in one form; kernels read
through them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

Axis = tuple[int, int]
"""Extent and stride."""


@dataclass(frozen=True)
class Walk:
    """A tensor of `shape` in the memory of a row-major one: from `begin` on, along `axes` (none of
    extent 1, as few as there can be), which cut its elements elsewhere than `shape` does."""

    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    begin: int = 0

    @classmethod
    def whole(cls, shape: Sequence[int]) -> "Walk":
        """All of a tensor as it stands."""
        size = prod(shape)
        return cls(tuple(shape), _merged([(size, 1)]))

    @property
    def extents(self) -> list[int]:
        """How far `axes` go."""
        return [extent for extent, _ in self.axes]

    @property
    def strides(self) -> list[int]:
        """How far the elements of `axes` lie apart."""
        return [stride for _, stride in self.axes]

    @property
    def in_order(self) -> bool:
        """Whether the elements stand in memory as they do here, one behind the other."""
        return len(self.axes) == 0 or (len(self.axes) == 1 and self.axes[0][1] == 1)

    @property
    def run(self) -> int:
        """How many elements stand one behind the other, wherever one begins to read."""
        return self.axes[-1][0] if self.axes and self.axes[-1][1] == 1 else 1

    def reshaped(self, shape: Sequence[int]) -> "Walk":
        """The same elements under another shape."""
        return replace(self, shape=tuple(shape))

    def by_axis(self) -> list[list[Axis]] | None:
        """The part of `axes` that every axis of the shape is; None where one begins inside of what
        lies between two."""
        left, found = list(self.axes), []
        for size in reversed(self.shape):
            part: list[Axis] = []
            while size > 1:
                extent, stride = left.pop() if left else (1, 0)
                if extent == 1 or (size % extent and extent % size):
                    return None
                if extent > size:
                    left.append((extent // size, stride * size))
                    extent = size
                part.insert(0, (extent, stride))
                size //= extent
            found.append(part)
        return found[::-1]

    def permuted(self, order: Sequence[int]) -> "Walk | None":
        """Axis i of the result is axis order[i]."""
        parts = self.by_axis()
        if parts is None:
            return None
        axes = [axis for i in order for axis in parts[i]]
        return Walk(tuple(self.shape[i] for i in order), _merged(axes), self.begin)

    def sliced(self, axis: int, start: int, count: int, step: int = 1) -> "Walk | None":
        """`count` indices of an axis, from `start` on."""
        parts = self.by_axis()
        if parts is None or len(parts[axis]) > 1 or count < 1:
            return None
        stride = parts[axis][0][1] if parts[axis] else 0
        parts[axis] = [(count, stride * step)]
        shape = tuple(count if i == axis else n for i, n in enumerate(self.shape))
        merged = _merged([one for part in parts for one in part])
        return Walk(shape, merged, self.begin + start * stride)

    def selected(self, axis: int, index: int) -> "Walk | None":
        """One index of an axis, which goes."""
        one = self.sliced(axis, index, 1)
        return one and one.reshaped([n for i, n in enumerate(self.shape) if i != axis])


def _merged(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """Without axes of one element; neighbours as one where one walks on from the other."""
    found: list[Axis] = []
    for extent, stride in axes:
        if extent == 1:
            continue
        if found and found[-1][1] == stride * extent:
            found[-1] = (found[-1][0] * extent, stride)
        else:
            found.append((extent, stride))
    return tuple(found)


def common_axes(shapes: Sequence[Sequence[int]]) -> list[int] | None:
    """Axes to which every one of some shapes of equal size can be split; None when there are
    none. (6, 4) and (2, 12) have (2, 3, 4)."""
    borders = sorted({prod(shape[axis:]) for shape in shapes for axis in range(len(shape) + 1)})
    if borders[0] == 0:
        return [0]
    if any(b % a for a, b in zip(borders, borders[1:], strict=False)):
        return None
    return [b // a for a, b in zip(borders, borders[1:], strict=False)][::-1] or [1]


def split_strides(shape: Sequence[int], strides: Sequence[int], axes: Sequence[int]) -> list[int]:
    """The strides of `axes`, a refinement of `shape` as `common_axes` gives it."""
    split = []
    for number in range(len(axes)):
        inner = prod(axes[number + 1 :])
        step = 0
        for axis, extent in enumerate(shape):
            below = prod(shape[axis + 1 :])
            if extent != 1 and below <= inner < below * extent:
                step = strides[axis] * (inner // below)
        split.append(step)
    return split
