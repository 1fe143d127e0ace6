"""The order in which a scheduled correlation does things: its outer loops, run."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from tvm import s_tir, tirx

from sqcompile.backends.vta.tir.affine import evaluated
from sqcompile.backends.vta.tir.leaves import turn_of
from sqcompile.backends.vta.tir.names import FETCHED, LEAVES, PADDED
from sqcompile.backends.vta.tir.schedule import Scheduled

Run = Callable[[dict[Any, int]], Iterator["Step"]]
"""Runs a statement where outer loops have these values."""


class Step(NamedTuple):
    """A leaf of the schedule (by its name) at a turn and a chunk of it."""

    leaf: str
    turn: int
    chunk: int


class Versions(NamedTuple):
    """Versions of the buffers of inputs and weights: parts of their scratchpads."""

    inp: int
    wgt: int


def steps(scheduled: Scheduled) -> Iterator[Step]:
    """What is done, in order: the pipeline's prologue, body and epilogue as TVM wrote them."""
    return _compiled(scheduled.pipelined.body, [])({})


def versions(scheduled: Scheduled) -> Versions:
    """How many versions of a chunk the pipeline keeps."""
    found = {
        buffer.name: list(buffer.shape)
        for block in blocks(scheduled.pipelined.body)
        for buffer in block.alloc_buffers
    }
    plain = {
        buffer.name: list(buffer.shape)
        for block in blocks(scheduled.flat.body)
        for buffer in block.alloc_buffers
    }
    names = (PADDED, FETCHED)
    return Versions(*(int(found[n][0]) if len(found[n]) > len(plain[n]) else 1 for n in names))


def blocks(stmt: Any) -> Iterator[Any]:
    """All blocks of a statement, down to the schedule's leaves."""
    if isinstance(stmt, tirx.SeqStmt):
        for one in stmt.seq:
            yield from blocks(one)
    elif isinstance(stmt, tirx.For):
        yield from blocks(stmt.body)
    elif isinstance(stmt, s_tir.SBlockRealize):
        yield stmt.block
        if stmt.block.name_hint not in LEAVES:
            yield from blocks(stmt.block.body)


def _compiled(stmt: Any, outer: Sequence[Any]) -> Run:
    """A statement between outer loops as Python."""
    leaf = _leaf(stmt)
    if leaf is not None:
        return _step(leaf, outer)
    if isinstance(stmt, tirx.SeqStmt):
        every = [_compiled(one, outer) for one in stmt.seq]
        return lambda at: (step for one in every for step in one(at))
    if isinstance(stmt, tirx.For):
        return _loop(stmt, outer)
    if isinstance(stmt, s_tir.SBlockRealize):
        body = _compiled(stmt.block.body, outer)
        holds = evaluated([stmt.predicate], outer, {})
        return lambda at: body(at) if holds(*at.values())[0] else iter(())
    raise RuntimeError(f"a {type(stmt).__name__} between the loops of a schedule")


def _leaf(stmt: Any) -> Any:
    """The block at the bottom of nothing but loops, if it is one of the schedule's leaves."""
    while isinstance(stmt, tirx.For):
        stmt = stmt.body
    is_leaf = isinstance(stmt, s_tir.SBlockRealize) and stmt.block.name_hint in LEAVES
    return stmt.block if is_leaf else None


def _step(leaf: Any, outer: Sequence[Any]) -> Run:
    place = evaluated(turn_of(leaf)[:2], outer, {})
    return lambda at: iter((Step(leaf.name_hint, *place(*at.values())),))


def _loop(stmt: Any, outer: Sequence[Any]) -> Run:
    first, extent = (int(bound) for bound in (stmt.min, stmt.extent))
    body = _compiled(stmt.body, [*outer, stmt.loop_var])

    def run(at: dict[Any, int]) -> Iterator[Step]:
        for value in range(first, first + extent):
            yield from body(at | {stmt.loop_var: value})

    return run
