"""What the innermost loops of a scheduled correlation do, as boxes and steps.

Outer loops (the turn, the chunk, the phases of rows and columns) have values here. The others are
read once: where they end, which tiles they touch, how far apart. Conditions, be they an uneven
cut's, a turn's or a phase's, each bound one loop; a copy is narrowed to what is read of it.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any, NamedTuple

from tvm import s_tir, tirx

from sqcompile.backends.vta.tir import compute
from sqcompile.backends.vta.tir.affine import affine, evaluated, slacks
from sqcompile.backends.vta.tir.schedule import (
    CLEARED,
    FETCHED,
    LEAVES,
    MULTIPLIED,
    TURN,
    Scheduled,
)

Expr = Any
_PHASES, _TILED = ("e", "f"), ("oi", "pi", "ri", "qi", "si", "zi")
"""The innermost loops of products, as schedule.py names them."""

TILE_AXES = 2
"""Axes of a buffer that lie inside a tile."""


class Box(NamedTuple):
    """Of a grid of tiles: where it begins, and its lengths."""

    starts: tuple[int, ...]
    sizes: tuple[int, ...]

    def moved(self, by: Sequence[int]) -> "Box":
        """The same box elsewhere."""
        starts = tuple(start + step for start, step in zip(self.starts, by, strict=True))
        return Box(starts, self.sizes)

    @property
    def count(self) -> int:
        """Its tiles."""
        return prod(self.sizes)

    def offset(self, step: Sequence[int]) -> int:
        """Tiles from one place to another that is so far along every axis, in row-major order."""
        found = 0
        for size, along in zip(self.sizes, step, strict=True):
            found = found * size + along
        return found

    def place(self, at: Sequence[int]) -> int:
        """Tiles before the one with these indices."""
        return self.offset([one - start for one, start in zip(at, self.starts, strict=True)])

    def clipped(self, shape: Sequence[int]) -> tuple["Box", tuple[int, int, int, int]]:
        """What lies inside a grid, and lines outside of it: above, below, left, right."""
        starts, sizes, pads = list(self.starts), list(self.sizes), []
        for axis in (-2, -1):
            before = max(0, -starts[axis])
            after = max(0, starts[axis] + sizes[axis] - shape[axis])
            starts[axis] += before
            sizes[axis] -= before + after
            pads += [before, after]
        return Box(tuple(starts), tuple(sizes)), (pads[0], pads[1], pads[2], pads[3])

    @staticmethod
    def around(boxes: Sequence["Box"]) -> "Box":
        """The smallest one that has all of them in it."""
        starts = tuple(map(min, zip(*(box.starts for box in boxes), strict=True)))
        ends = [
            max(start + size for start, size in axis)
            for axis in zip(*(zip(*box, strict=True) for box in boxes), strict=True)
        ]
        return Box(starts, tuple(end - start for start, end in zip(starts, ends, strict=True)))


class Range(NamedTuple):
    """Of a loop; the end is exclusive."""

    first: int
    last: int


class Access(NamedTuple):
    """Where a tile is at the beginning of all loops, and how far each loop moves it."""

    starts: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]


class _Nest:
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
        # By buffer, by loop, the step along each axis.
        self.steps = [
            tuple(zip(*(axis.steps for axis in place), strict=True)) if inner else ()
            for place in places
        ]
        bases = [limit.base for limit in limits]
        bases += [axis.base for place in places for axis in place]
        self.ranks = [len(place) for place in places]
        self.bases = evaluated(bases, outer, memory)

    def at(self, *outer: int) -> tuple[list[Range], list[Access]] | None:
        """The loops' ranges and the accesses at their beginnings; None where there is nothing."""
        bases = self.bases(*outer)
        ranges = [Range(0, extent) for extent in self.extents]
        for slack, steps in zip(bases, self.limits, strict=False):
            moving = [number for number, step in enumerate(steps) if step]
            if not moving:
                if slack < 0:
                    return None
                continue
            (number,) = moving
            ranges[number] = _bounded(ranges[number], slack, steps[number])
            if ranges[number].first >= ranges[number].last:
                return None
        done = len(self.limits)
        found = []
        for rank, steps in zip(self.ranks, self.steps, strict=True):
            starts = list(bases[done : done + rank])
            done += rank
            for moved, along in zip(ranges, steps, strict=True):
                if moved.first:
                    starts = [start + moved.first * s for start, s in zip(starts, along, strict=True)]
            found.append(Access(tuple(starts), steps))
        return ranges, found


def _bounded(one: Range, slack: int, step: int) -> Range:
    """Of a loop, where slack + step * value is not negative."""
    if step > 0:
        return one._replace(first=max(one.first, -(slack // step)))
    return one._replace(last=min(one.last, slack // -step + 1))


def box(ranges: Sequence[Range], access: Access) -> Box:
    """All tiles that loops touch."""
    lows, highs = list(access.starts), list(access.starts)
    for (first, last), steps in zip(ranges, access.steps, strict=True):
        for axis, step in enumerate(steps):
            reach = (last - first - 1) * step
            if reach > 0:
                highs[axis] += reach
            else:
                lows[axis] += reach
    return Box(tuple(lows), tuple(high - low + 1 for low, high in zip(lows, highs, strict=True)))


class _Found(NamedTuple):
    """A leaf of the function: loops around it, what it runs under, its block."""

    loops: list[Any]
    conditions: list[Expr]
    outer: tuple[Any, Any]
    body: list[Any]


class Leaves:
    """The leaves of a schedule, by turn and chunk."""

    def __init__(self, scheduled: Scheduled) -> None:
        memory: dict[str, Any] = {"tables": scheduled.tables}
        if scheduled.turns is not None:
            memory["turns"] = [(one.block, *one.rows, *one.columns) for one in scheduled.turns]
        self.memory = memory
        found = dict(_leaves(scheduled.flat.body, []))
        if sorted(found) != sorted(LEAVES):
            raise RuntimeError(f"a schedule with the leaves {sorted(found)}")
        self._products(found[MULTIPLIED])
        self.inp_source = self._copied(found[compute.PAD])
        self.wgt_source = self._copied(found[FETCHED])
        store = found[compute.STORE]
        target, value = _moved(store.body)
        (loaded,) = _loads(value)
        self._store = self._nest(store, store.loops, store.conditions, [target[1:], loaded])

    def _nest(
        self,
        leaf: _Found,
        loops: Sequence[Any],
        conditions: Sequence[Expr],
        indices: Sequence[Sequence[Expr]],
        phases: Sequence[Any] = (),
    ) -> _Nest:
        outer = [*leaf.outer, *(loop.loop_var for loop in phases)]
        inside = [index[:-TILE_AXES] for index in indices]
        return _Nest(loops, outer, conditions, inside, self.memory)

    def _products(self, leaf: _Found) -> None:
        first = len(leaf.loops) - len(_TILED) - len(_PHASES)
        phases = leaf.loops[first : first + len(_PHASES)]
        loops = [*leaf.loops[:first], *leaf.loops[first + len(_PHASES) :]]
        self.phases = list(product(*(range(int(loop.extent)) for loop in phases)))
        self.shifts = None
        for conditions, block in _inside(leaf.body):
            every = [*leaf.conditions, *conditions]
            if block.match_buffers:
                at = {
                    one.source.source.name: [axis.min for axis in one.source.region]
                    for one in block.match_buffers
                }
                indices = [at["acc"], at["padded"], at[FETCHED]]
                self.multiplied = self._nest(leaf, loops, every, indices, phases)
            else:
                stored = block.body
                amount = [stored.value.b, *stored.indices[-TILE_AXES:]]
                self.shifts = self._nest(leaf, loops, every, [amount], phases)

    def _copied(self, leaf: _Found) -> Any:
        """By axis, how far the source of a copy lies from its target, as a function of turn and
        chunk."""
        target, value = _moved(leaf.body)
        (loaded,) = _loads(value)
        inner = [loop.loop_var for loop in leaf.loops]
        between = [
            affine(source - to, inner)
            for source, to in zip(loaded[:-TILE_AXES], target[:-TILE_AXES], strict=True)
        ]
        if any(step for axis in between for step in axis.steps):
            raise RuntimeError("a copy that is no move")
        return evaluated([axis.base for axis in between], leaf.outer, self.memory)

    def products(self, turn: int, chunk: int) -> list[tuple[list[Range], list[Access]]]:
        """Those of every pair of phases that has any."""
        found = (self.multiplied.at(turn, chunk, *phases) for phases in self.phases)
        return [one for one in found if one is not None]

    def shift(self, turn: int, chunk: int) -> int:
        """How far a block's accumulators shift left before the products of a chunk."""
        if self.shifts is None:
            return 0
        for phases in self.phases:
            found = self.shifts.at(turn, chunk, *phases)
            if found is not None:
                return found[1][0].starts[0]
        return 0

    def stored(self, turn: int) -> tuple[Box, Box]:
        """The results of a turn: in out, without its axis of slices, and in acc."""
        found = self._store.at(turn, 0)
        if found is None:
            raise RuntimeError(f"turn {turn} has no results")
        ranges, (out, acc) = found
        return box(ranges, out), box(ranges, acc)


def _leaves(stmt: Any, loops: list[Any]) -> Iterator[tuple[str, _Found]]:
    """Every leaf by its name, with the loops between it and the last statement that has others
    beside it."""
    if isinstance(stmt, tirx.SeqStmt):
        for one in stmt.seq:
            yield from _leaves(one, [])
    elif isinstance(stmt, tirx.For):
        yield from _leaves(stmt.body, [*loops, stmt])
    elif isinstance(stmt, s_tir.SBlockRealize) and stmt.block.name_hint in LEAVES:
        call, *body = stmt.block.body.seq
        yield stmt.block.name_hint, _Found(loops, [stmt.predicate], turn_of(call), body)
    elif isinstance(stmt, s_tir.SBlockRealize):
        yield from _leaves(stmt.block.body, loops)
    else:
        raise RuntimeError(f"a {type(stmt).__name__} between the loops of a schedule")


def turn_of(call: Any) -> tuple[Any, Any]:
    """Turn and chunk that a leaf begins with."""
    name, turn, chunk = call.value.args
    if name.value != TURN:
        raise RuntimeError(f"a leaf that begins with {name}")
    return turn, chunk


def _inside(body: Sequence[Any]) -> Iterator[tuple[list[Expr], Any]]:
    """(conditions, block) of every operation on tiles in a leaf."""
    for one in body:
        if isinstance(one, tirx.SeqStmt):
            yield from _inside(one.seq)
        elif isinstance(one, tirx.IfThenElse):
            for conditions, block in _inside([one.then_case]):
                yield [one.condition, *conditions], block
        elif isinstance(one, tirx.For):
            yield from _inside([one.body])
        else:
            yield [], one.block


def _moved(body: Sequence[Any]) -> tuple[list[Expr], Expr]:
    """Indices and value of the only statement of a copy."""
    (stored,) = body
    return list(stored.indices), stored.value


def _loads(value: Expr) -> list[list[Expr]]:
    """Indices of what a copied value reads: zeros around it and its width aside."""
    if type(value).__name__ == "TensorLoad":
        return [list(value.indices)]
    if type(value).__name__ == "Call":
        return _loads(value.args[1])
    if type(value).__name__ == "Cast":
        return _loads(value.value)
    return _loads(value.a)
