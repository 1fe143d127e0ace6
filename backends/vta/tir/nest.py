"""Loops around tiles, read once: where they end, which tiles they touch, how far apart.

Conditions, be they an uneven cut's, a turn's or a phase's, each bound one loop, where outer loops
have values.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from sqcompile.backends.vta.tir.affine import affine, evaluated, slacks
from sqcompile.backends.vta.tir.box import Access

Expr = Any


class Nest:
    """Loops around tiles: their ends, conditions, and indices of buffers."""

    def __init__(
        self,
        loops: Sequence[Any],
        outer: Sequence[Any],
        conditions: Sequence[Expr],
        indices: Sequence[Sequence[Expr]],
        memory: dict[str, Any],
    ) -> None:
        self.extents = [int(loop.extent) for loop in loops]
        inner = [loop.loop_var for loop in loops]
        limits = [affine(one, inner) for condition in conditions for one in slacks(condition)]
        places = [[affine(index, inner) for index in one] for one in indices]
        self.limits = [limit.steps for limit in limits]
        if any(sum(map(bool, steps)) > 1 for steps in self.limits):
            raise RuntimeError(f"a condition that bounds several loops at once: {conditions}")
        # By buffer, by loop, the step along each axis.
        self.steps = [
            tuple(zip(*(axis.steps for axis in place), strict=True)) if inner else ()
            for place in places
        ]
        bases = [limit.base for limit in limits]
        bases += [axis.base for place in places for axis in place]
        self.ranks = [len(place) for place in places]
        self.bases = evaluated(bases, outer, memory)

    def at(self, *outer: int) -> tuple[tuple[int, ...], list[Access]] | None:
        """The loops' lengths and the accesses at their beginnings; None where there is nothing."""
        bases = self.bases(*outer)
        firsts, lasts = [0] * len(self.extents), list(self.extents)
        for slack, steps in zip(bases, self.limits, strict=False):
            moving = [number for number, step in enumerate(steps) if step]
            if not moving and slack < 0:
                return None
            for number in moving:
                step = steps[number]
                if step > 0:
                    firsts[number] = max(firsts[number], -(slack // step))
                else:
                    lasts[number] = min(lasts[number], slack // -step + 1)
        lengths = tuple(last - first for first, last in zip(firsts, lasts, strict=True))
        if any(length <= 0 for length in lengths):
            return None
        return lengths, list(self._accesses(bases[len(self.limits) :], firsts))

    def _accesses(self, bases: Sequence[int], firsts: Sequence[int]) -> Iterator[Access]:
        for rank, steps in zip(self.ranks, self.steps, strict=True):
            starts, bases = list(bases[:rank]), bases[rank:]
            for first, along in zip(firsts, steps, strict=True):
                if first:
                    starts = [at + first * step for at, step in zip(starts, along, strict=True)]
            yield Access(tuple(starts), steps)
