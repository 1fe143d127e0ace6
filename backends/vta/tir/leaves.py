"""What the innermost loops of a scheduled correlation do, as boxes and steps.

Outer loops (the turn, the chunk, the phases of rows and columns) have values here. The others are
read once (nest.py). A copy is narrowed to what is read of it: at the edges of results, in a turn
that is a piece of a block, and where phases have different taps, that is less than the schedule's
rectangle.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

from tvm import s_tir, tirx

from sqcompile.backends.vta.tir.affine import affine, evaluated
from sqcompile.backends.vta.tir.box import Access, Box, around
from sqcompile.backends.vta.tir.names import (
    CHUNK,
    FETCHED,
    LEAVES,
    MULTIPLIED,
    PAD,
    PADDED,
    STORE,
    SUMS,
    TILE_AXES,
    TURN,
)
from sqcompile.backends.vta.tir.nest import Nest
from sqcompile.backends.vta.tir.schedule import Scheduled

Expr = Any
_PHASES, _TILED = ("e", "f"), ("oi", "pi", "ri", "qi", "si", "zi")
"""The innermost loops of products, as schedule.py names them."""


class Products(NamedTuple):
    """Tile products of a pair of phases: lengths of the loops, outermost first, and accesses."""

    lengths: tuple[int, ...]
    acc: Access
    inp: Access
    wgt: Access


class Copy(NamedTuple):
    """What is copied into a scratchpad: a box of the function's buffer there, and of DRAM."""

    scratch: Box
    dram: Box


class Chunk(NamedTuple):
    """Products of a turn, and the copies that they read."""

    products: list[Products]
    inp: Copy
    wgt: Copy


class _Found(NamedTuple):
    """A leaf of the function: loops around it, what it runs under, its block."""

    loops: list[Any]
    conditions: list[Expr]
    outer: Sequence[Any]
    body: list[Any]


class Leaves:
    """The leaves of a schedule, by turn and chunk."""

    def __init__(self, scheduled: Scheduled, inp_shape: Sequence[int]) -> None:
        self.inp_shape = inp_shape
        memory: dict[str, Any] = {"tables": scheduled.tables}
        if scheduled.turns is not None:
            memory["turns"] = [(one.block, *one.rows, *one.columns) for one in scheduled.turns]
        self.memory = memory
        found = dict(_leaves(scheduled.flat.body, []))
        if sorted(found) != sorted(LEAVES):
            raise RuntimeError(f"a schedule with the leaves {sorted(found)}")
        self._products(found[MULTIPLIED])
        self._inp_source = self._copied(found[PAD])
        self._wgt_source = self._copied(found[FETCHED])
        store = found[STORE]
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
    ) -> Nest:
        outer = [*leaf.outer, *(loop.loop_var for loop in phases)]
        inside = [index[:-TILE_AXES] for index in indices]
        return Nest(loops, outer, conditions, inside, self.memory)

    def _products(self, leaf: _Found) -> None:
        first = len(leaf.loops) - len(_TILED) - len(_PHASES)
        phases = leaf.loops[first : first + len(_PHASES)]
        loops = [*leaf.loops[:first], *leaf.loops[first + len(_PHASES) :]]
        self.phases = list(product(*(range(int(loop.extent)) for loop in phases)))
        self._shifts: Nest | None = None
        for conditions, block in _inside(leaf.body):
            every = [*leaf.conditions, *conditions]
            if block.match_buffers:
                at = {
                    one.source.source.name: [axis.min for axis in one.source.region]
                    for one in block.match_buffers
                }
                indices = [at[SUMS], at[PADDED], at[FETCHED]]
                self._multiplied = self._nest(leaf, loops, every, indices, phases)
            else:
                outer = [*leaf.outer, *(loop.loop_var for loop in phases)]
                amount = block.body.value.b
                self._shifts = Nest(loops, outer, every, [[amount]], self.memory)

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

    def chunk(self, turn: int, chunk: int) -> Chunk | None:
        """What is multiplied; None where that is nothing, or reads nothing but zeros."""
        found = [self._multiplied.at(turn, chunk, *phases) for phases in self.phases]
        products = [Products(one[0], *one[1]) for one in found if one is not None]
        if not products:
            return None
        read = around([one.inp.box(one.lengths) for one in products])
        weights = around([one.wgt.box(one.lengths) for one in products])
        source = read.moved(self._inp_source(turn, chunk))
        if not source.meets(self.inp_shape):
            return None
        fetched = weights.moved(self._wgt_source(turn, chunk))
        return Chunk(products, Copy(read, source), Copy(weights, fetched))

    def shift(self, turn: int, chunk: int) -> int:
        """How far a block's accumulators shift left before the products of a chunk."""
        if self._shifts is None:
            return 0
        for phases in self.phases:
            found = self._shifts.at(turn, chunk, *phases)
            if found is not None:
                return found[1][0].starts[0]
        return 0

    def stored(self, turn: int) -> Copy:
        """The results of a turn; in DRAM without the axis of slices."""
        found = self._store.at(turn, 0)
        if found is None:
            raise RuntimeError(f"turn {turn} has no results")
        lengths, (out, acc) = found
        return Copy(acc.box(lengths), out.box(lengths))


def _leaves(stmt: Any, loops: list[Any]) -> Iterator[tuple[str, _Found]]:
    """Every leaf by its name, with the loops between it and the last statement that has others
    beside it."""
    if isinstance(stmt, tirx.SeqStmt):
        for one in stmt.seq:
            yield from _leaves(one, [])
    elif isinstance(stmt, tirx.For):
        yield from _leaves(stmt.body, [*loops, stmt])
    elif isinstance(stmt, s_tir.SBlockRealize) and stmt.block.name_hint in LEAVES:
        *outer, body = turn_of(stmt.block)
        yield stmt.block.name_hint, _Found(loops, [stmt.predicate], outer, _statements(body))
    elif isinstance(stmt, s_tir.SBlockRealize):
        yield from _leaves(stmt.block.body, loops)
    else:
        raise RuntimeError(f"a {type(stmt).__name__} between the loops of a schedule")


def turn_of(leaf: Any) -> tuple[Any, Any, Any]:
    """Turn and chunk that the block of a leaf is of, and what it does."""
    turn = leaf.body
    chunk = turn.body
    if (turn.attr_key, chunk.attr_key) != (TURN, CHUNK):
        raise RuntimeError(f"a leaf that begins with {turn.attr_key}")
    return turn.value, chunk.value, chunk.body


def _statements(body: Any) -> list[Any]:
    return list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]


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
