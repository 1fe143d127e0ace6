"""Where results of a matrix product stand in memory: in its own order, or split and permuted."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Expr
from sqcompile.backends.cpu.sweep import contiguous
from sqcompile.backends.kernels import INTO, KernelSpec

Digits = tuple[tuple[int, int], ...]
"""(size, stride) of the parts of an axis, the outermost first."""


@dataclass(frozen=True)
class Placement:
    """The memory of a result of `shape`: the digits of each axis. A coordinate of an axis is a
    number with these digits; what stands at it is found at the sum of digits times strides.

    `turned`: shape and axes are those of the transpose, whose rows run through memory where those
    of the result do not. The kernel multiplies b^T @ a^T then. `start` is the place of the first
    result, where they are a part of a larger tensor.
    """

    shape: tuple[int, ...]
    axes: tuple[Digits, ...]
    turned: bool
    start: int = 0

    @classmethod
    def of(cls, spec: KernelSpec) -> "Placement":
        """That of a matrix product's result."""
        shape = product_shape(spec)
        sizes, order = spec.get("sizes"), spec.get("order")
        if sizes is None:
            sizes, order = shape, tuple(range(len(shape)))
        placed = contiguous([sizes[axis] for axis in order])
        inner, length, start = spec.get(INTO) or (1, 1, 0)
        placed = [step // inner * length + step % inner for step in placed]
        strides = [placed[order.index(axis)] for axis in range(len(sizes))]
        parts = split(shape, sizes)
        assert parts is not None, "the kernel's limit refuses sizes that cross axes"
        left = iter(zip(sizes, strides, strict=True))
        axes = tuple(_joined([next(left) for _ in part]) for part in parts)
        if _in_vectors(axes[-1]) or not _in_vectors(axes[-2]):
            return cls(shape, axes, False, start)
        *batch, rows, columns = range(len(shape))
        turned = (*batch, columns, rows)
        shape = tuple(shape[axis] for axis in turned)
        return cls(shape, tuple(axes[axis] for axis in turned), True, start)

    @property
    def in_vectors(self) -> bool:
        """Whether rows can be written in vectors."""
        return _in_vectors(self.axes[-1])

    def at(self, coordinates: Sequence[Expr]) -> Expr:
        """The place of the result at these coordinates."""
        place: Expr = self.start
        for coordinate, digits in zip(coordinates, self.axes, strict=True):
            extents = [size for size, _ in digits]
            strides = [stride for _, stride in digits]
            if extents:
                place = nest.linear(nest.unravel(coordinate, extents), strides, place)
        return place


def _in_vectors(digits: Digits) -> bool:
    """Whether an axis lies in memory as one run, or as runs of whole vectors."""
    if not digits:
        return True
    size, stride = digits[-1]
    return stride == 1 and (len(digits) == 1 or size % nest.LANES == 0)


def product_shape(spec: KernelSpec) -> tuple[int, ...]:
    """The shape of a matrix product's result before it is placed."""
    a, b = spec.tensor("a").shape, spec.tensor("b").shape
    m = a[-1] if spec["transpose_a"] else a[-2]
    n = b[-2] if spec["transpose_b"] else b[-1]
    return (*a[:-2], m, n)


def split(shape: Sequence[int], sizes: Sequence[int]) -> list[list[int]] | None:
    """The sizes that each axis is split into, or None where a size crosses two axes."""
    left, found = list(sizes), []
    for extent in shape:
        parts: list[int] = []
        while prod(parts) < extent and left:
            parts.append(left.pop(0))
        if prod(parts) != extent:
            return None
        found.append(parts)
    if any(size != 1 for size in left):
        return None
    found[-1] += left
    return found


def _joined(digits: Sequence[tuple[int, int]]) -> Digits:
    """The digits without those of size 1, neighbours that are one number as one."""
    joined: list[tuple[int, int]] = []
    for size, stride in digits:
        if size == 1:
            continue
        if joined and joined[-1][1] == size * stride:
            size *= joined.pop()[0]
        joined.append((size, stride))
    return tuple(joined)
