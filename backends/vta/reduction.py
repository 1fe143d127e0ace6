"""How the reduced axis of a product lies in planes of tiles, and what shifts it by groups.

Groups of the reduced axis count 2^shift times. There are two ways to that.

Shifted operands: the host shifts the first one as it packs. It needs the bits of the largest
shift, in several digits where an element has fewer, and is right for all exponents.

Sorted groups: each group has planes of its own, and the accumulators shift between them (Horner).
Operands need no bits for shifts; each group's last plane may be padding. Such a program is right
for exponents whose groups find room in the planes, so it is written when those are known.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sqcompile.backends.vta.correlation import Run
from sqcompile.backends.vta.digits import Digits
from sqcompile.backends.vta.spec import Values
from sqcompile.errors import UsageError


class Sides(NamedTuple):
    """The integers that INP and WGT hold, and how they are written."""

    values: tuple[Values, Values]
    digits: tuple[Digits, Digits]


class Length(NamedTuple):
    """Of a reduction: `inner` values that lie inside tiles, each at up to so many taps; `mean` is
    how many taps the accumulators have on average, which padding and strides make fewer."""

    inner: int
    taps: int = 1
    mean: float = 1.0


@dataclass(frozen=True)
class SortedGroups:
    """Planes of BLOCK values of the reduced axis for each group, the largest shift first."""

    planes: tuple[int, ...]
    block: int

    @property
    def room(self) -> tuple[int, ...]:
        """For how many values of each exponent there is room."""
        return tuple(planes * self.block for planes in self.planes)

    @property
    def size(self) -> int:
        """Values in all planes, padding included."""
        return sum(self.room)

    def places(self, exponents: NDArray[Any]) -> NDArray[Any]:
        """(sorts, k) exponents -> where each k goes. Raises ValueError where a group of theirs
        does not find room."""
        found = lengths(exponents, len(self.planes))
        if any(count > room for count, room in zip(found, self.room, strict=True)):
            raise ValueError(
                f"the program has room for {self.room} values of each exponent, and there are "
                f"{found}"
            )
        starts = [0, *accumulate(self.room)]
        places = np.empty(exponents.shape, np.int64)
        for row, of_row in zip(places, exponents, strict=True):
            for group, start in enumerate(starts[:-1]):
                members = of_row == group
                row[members] = start + np.arange(members.sum())
        return places

    def spread(
        self, values: NDArray[Any], places: NDArray[Any], sort: int, axis: int
    ) -> NDArray[Any]:
        """`axis` of length k -> of `size`, zero where nothing goes; each index of the axis `sort`
        has places of its own, unless there is but one row of them."""
        moved = np.moveaxis(values, (sort, axis), (0, -1))
        found = np.zeros((*moved.shape[:-1], self.size), values.dtype)
        rows = np.broadcast_to(places, (moved.shape[0], places.shape[1]))
        for out, given, row in zip(found, moved, rows, strict=True):
            out[..., row] = given
        return np.moveaxis(found, (0, -1), (sort, axis))

    def runs(self, inp: Digits, wgt: Digits) -> list[tuple[int, Run]]:
        """(power of two, planes that meet) of all pairs of digits and all groups."""
        starts = [0, *accumulate(self.planes)]
        most = len(self.planes) - 1
        return [
            (weight + most - group, Run(run.inp + start, run.wgt + start, planes))
            for weight, run in digit_runs(inp, wgt, starts[-1])
            for group, (start, planes) in enumerate(zip(starts, self.planes, strict=False))
            if planes
        ]

    def weight(self, k: int) -> int:
        """The largest sum of 2^shift over k values that find room."""
        total, left = 0, k
        for group, room in enumerate(self.room):
            count = min(room, left)
            total += count << len(self.planes) - 1 - group
            left -= count
        return total


@dataclass(frozen=True)
class Reduction:
    """Planes of each digit of the operands, the runs of them that meet by power of two, the
    largest absolute value of a sum, taps on average; `groups`: None where operands are shifted."""

    digits: tuple[Digits, Digits]
    planes: int
    runs: list[tuple[int, Run]]
    largest: int
    taps: float
    groups: SortedGroups | None = None

    @property
    def cost(self) -> float:
        """Operations on an accumulator tile: products, and shifts between weights."""
        weights = {0, *(weight for weight, _ in self.runs)}
        return self.taps * sum(run.planes for _, run in self.runs) + len(weights)


def reduction(
    sides: Callable[[int], Sides],
    length: Length,
    block: int,
    groups: int,
    counts: Sequence[int] | None,
    sort: bool = False,
) -> Reduction:
    """The way that multiplies less; sorted groups only where `counts` say for how many values of
    each exponent there must be room, and always there with `sort`. `sides` gives the operands when
    the first one is shifted by up to so many bits."""
    ways = [_shifted(sides(groups - 1), length, block)]
    if counts is not None:
        if len(counts) != groups:
            raise UsageError(f"{groups} groups have {groups} lengths, and not {tuple(counts)}")
        planes = tuple(-(-count // block) for count in counts)
        ways.append(_sorted(sides(0), length, SortedGroups(planes, block)))
    return ways[-1] if sort else min(ways, key=lambda way: way.cost)


def _shifted(sides: Sides, length: Length, block: int) -> Reduction:
    planes = -(-length.inner // block)
    largest = bound(*sides.digits, sides.values, length.inner * length.taps)
    runs = digit_runs(*sides.digits, planes)
    return Reduction(sides.digits, planes, runs, largest, length.mean)


def _sorted(sides: Sides, length: Length, groups: SortedGroups) -> Reduction:
    largest = bound(*sides.digits, sides.values, groups.weight(length.inner) * length.taps)
    runs = groups.runs(*sides.digits)
    return Reduction(sides.digits, sum(groups.planes), runs, largest, length.mean, groups)


def digit_runs(inp: Digits, wgt: Digits, planes: int) -> list[tuple[int, Run]]:
    """(power of two, planes that meet) of all pairs of digits; digit i of an operand has planes
    i * planes onwards."""
    return [
        (i * inp.width + j * wgt.width, Run(i * planes, j * planes, planes))
        for i in range(inp.count)
        for j in range(wgt.count)
    ]


def bound(inp: Digits, wgt: Digits, values: tuple[Values, Values], length: int) -> int:
    """The largest absolute value of a sum of `length` products of the operands less their
    offsets."""
    found = length
    for digits, of in zip((inp, wgt), values, strict=True):
        found *= max(abs(of.low - digits.offset), abs(of.high - digits.offset))
    return found


def lengths(exponents: NDArray[Any], groups: int) -> tuple[int, ...]:
    """(sorts, k) exponents -> how many values of each one there are, in the sort with the most."""
    counts = [np.bincount(row, minlength=groups) for row in exponents]
    return tuple(int(count) for count in np.max(counts, axis=0))


def factors(exponents: NDArray[Any], groups: int) -> NDArray[Any]:
    """2^shift, int32."""
    one: NDArray[Any] = np.int32(1) << (groups - 1 - exponents.astype(np.int32))
    return one
