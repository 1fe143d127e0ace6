"""The loop over blocks goes over turns, and every leaf says which turn it is of.

Two of its iterations come in pieces (turns.py). A schedule would have a copy of the nest for each.
So the loop goes over a table instead: by turn, a block and the first and last (exclusive) of its
own result rows and columns, which are conditions of the leaves that clear, add or store results.
Turn and chunk stand in every leaf as attributes: the pipeline puts the next ones there.
"""

from collections.abc import Sequence
from typing import Any

import tvm_ffi
from tvm import s_tir, tirx

from sqcompile.backends.vta.tir.compute import every
from sqcompile.backends.vta.tir.names import (
    CHUNK,
    CLEARED,
    LEAVES,
    MULTIPLIED,
    STORE,
    SUMS,
    TURN,
)
from sqcompile.backends.vta.tir.turns import Turn


def turned(
    function: Any, loops: Sequence[Any], own: dict[str, list[Any]], order: list[Turn] | None
) -> Any:
    """The function with named loops, over blocks and, if there is one, over chunks; the first goes
    over the turns in this order. `own`: what `lines` found."""
    named = [tirx.Var(name, "int32") for name in ("turn" if order else "block", "chunk")]
    table = tirx.decl_buffer((len(order), 5), "int32", name="turns") if order else None
    values = [named[0] if table is None else table[named[0], 0], *named[1:]]

    def leaf(realize: Any) -> Any:
        found = realize.block
        if found.name_hint not in LEAVES:
            return realize
        conditions = [] if _always(realize.predicate) else [realize.predicate]
        if table is not None and found.name_hint in own:
            conditions += _own(own[found.name_hint], table, named[0])
        chunked = len(loops) > 1 and found.name_hint not in (CLEARED, STORE)
        chunk = named[1] if chunked else tirx.const(0, "int32")
        body = found.body
        for key, value in ((CHUNK, chunk), (TURN, named[0])):
            body = tirx.AttrStmt(tirx.const(0, "int32"), key, value, body)
        return _realized(conditions, found, body)

    def loop(one: Any) -> Any:
        for number, (var, name) in enumerate(zip(loops, named, strict=False)):
            if one.loop_var.same_as(var):
                extent = tirx.const(len(order), "int32") if order and not number else one.extent
                kept = one.annotations
                return tirx.For(name, one.min, extent, one.kind, one.body, annotations=kept)
        return one

    def variable(var: Any) -> Any:
        for one, value in zip(loops, values, strict=False):
            if var.same_as(one):
                return value
        return var

    body = function.body
    for kind, change in ((s_tir.SBlockRealize, leaf), (tirx.For, loop), (tirx.Var, variable)):
        body = tvm_ffi.structural_map(body, (kind, change))
    params = [*function.params, table] if table is not None else list(function.params)
    return tirx.PrimFunc(params, body, function.ret_type, function.attrs)


def lines(function: Any) -> dict[str, list[Any]]:
    """Row and column of the results that a leaf clears, adds to or stores, by its name."""
    found: dict[str, list[Any]] = {}

    def seen(realize: Any) -> Any:
        block = realize.block
        if block.name_hint in (CLEARED, MULTIPLIED, STORE):
            regions = (*block.writes, *block.reads)
            (region, *_) = (one.region for one in regions if one.source.name == SUMS)
            found[block.name_hint] = [region[axis].min for axis in (3, 4)]
        return realize

    tvm_ffi.structural_map(function.body, (s_tir.SBlockRealize, seen))
    return found


def _own(lines: Sequence[Any], table: Any, turn: Any) -> list[Any]:
    """Conditions under which these are the turn's result lines."""
    found = []
    for number, line in enumerate(lines):
        first, last = (table[turn, 1 + 2 * number + end] for end in range(2))
        found += [first <= line, line < last]
    return found


def _always(predicate: Any) -> bool:
    return isinstance(predicate, tirx.IntImm) and bool(predicate.value)


def _realized(conditions: Sequence[Any], block: Any, body: Any) -> Any:
    made = s_tir.SBlock(
        block.iter_vars,
        block.reads,
        block.writes,
        block.name_hint,
        body,
        block.init,
        block.alloc_buffers,
        block.match_buffers,
        block.annotations,
    )
    return s_tir.SBlockRealize([], every(conditions), made)
