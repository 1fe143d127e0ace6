"""Strides of row-major tensors as axes are merged and split, for the loops of every target."""

from collections.abc import Iterator, Sequence
from math import prod

from sqcompile.backends.builder import Array
from sqcompile.walks import common_axes, split_strides


def contiguous(shape: Sequence[int]) -> list[int]:
    """Row-major strides."""
    return [prod(shape[axis + 1 :]) for axis in range(len(shape))]


def flipped(shape: Sequence[int], axes: Sequence[int]) -> tuple[list[int], int]:
    """(strides, begin) that read a contiguous tensor of `shape` backwards along `axes`, which may
    count from the end."""
    steps, begin = contiguous(shape), 0
    for axis in {one % len(shape) for one in axes} if shape else ():
        begin += (shape[axis] - 1) * steps[axis]
        steps[axis] = -steps[axis]
    return steps, begin


def joined(sources: Sequence[Array], shape: Sequence[int], dim: int) -> Iterator[tuple[Array, int]]:
    """The arrays that a concatenation along `dim` to `shape` writes, empty ones left out, and
    where the first element of each stands in the result."""
    put = 0
    for source in sources:
        if source.size:
            yield source, put
            axis = dim % len(shape)
            put += source.shape[axis] * contiguous(shape)[axis]


def fronts(pad: Sequence[int], rank: int) -> list[int]:
    """What a padding, given from the last axis on, puts before each axis of `rank`; negative where
    it crops."""
    before = [0] * rank
    for i in range(len(pad) // 2):
        before[rank - 1 - i] = pad[2 * i]
    return before


def broadcast(shape: Sequence[int], operand: Sequence[int]) -> list[int]:
    """Strides with which a contiguous tensor of shape `operand` is read as `shape`."""
    missing = len(shape) - len(operand)
    own = contiguous(operand)
    return [
        0 if axis < missing or operand[axis - missing] == 1 else own[axis - missing]
        for axis in range(len(shape))
    ]


def refined(array: Array, *shapes: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """(extents, strides): an array's elements in order, in memory and in row-major tensors of its
    shape or broadcast to it, which have `shapes`."""
    extents = common_axes([array.shape, array.walk.extents])
    assert extents is not None
    own = split_strides(array.walk.extents, array.walk.strides, extents)
    others = [split_strides(array.shape, broadcast(array.shape, one), extents) for one in shapes]
    return extents, [own, *others]


def merge(
    extents: Sequence[int], strides: Sequence[Sequence[int]]
) -> tuple[list[int], list[list[int]]]:
    """Fuse neighbouring axes that every operand walks as one; drop axes of size 1.

    Returns at least one axis.
    """
    merged: list[int] = []
    kept: list[list[int]] = [[] for _ in strides]
    for axis, extent in enumerate(extents):
        if extent == 1:
            continue
        if merged and all(k[-1] == s[axis] * extent for k, s in zip(kept, strides, strict=True)):
            merged[-1] *= extent
            for k, s in zip(kept, strides, strict=True):
                k[-1] = s[axis]
        else:
            merged.append(extent)
            for k, s in zip(kept, strides, strict=True):
                k.append(s[axis])
    return (merged, kept) if merged else ([1], [[0] for _ in strides])
