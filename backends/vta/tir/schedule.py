"""The schedule of a correlation: blocks of results, chunks of the reduction, tiles of both.

`block` counts blocks of results; in it, `chunk` counts chunks of the reduction. Each chunk has what
it reads copied into INP and WGT and is multiplied by the GEMM intrinsic; the block is cleared
before and stored after. Where a block has several chunks, the copies of the next one stand before
the products of this one (`InjectSoftwarePipeline`), else those of the next block do. The buffers
that have two versions then are the two parts of a scratchpad.

The first and the last block come in pieces (`cuts.growing`): the block loop goes over a table of
turns then, each a block with the result lines that are its own.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir import Schedule

from sqcompile.backends.vta.correlation import Correlation
from sqcompile.backends.vta.cuts import Tiling
from sqcompile.backends.vta.hardware import Hardware
from sqcompile.backends.vta.tir import compute, intrinsics
from sqcompile.backends.vta.tir.turns import Turn, turns

TURN, CHUNK = "vta.turn", "vta.chunk"
"""Attributes of a leaf: which turn it is of, and which chunk of its block."""

CLEARED, MULTIPLIED = f"{compute.PRODUCT}_init", f"{compute.PRODUCT}_update"
FETCHED = "wgt_" + compute.WGT
"""Blocks that the schedule makes: of cleared accumulators, of products, of weights copied."""

LEAVES = (compute.PAD, FETCHED, CLEARED, MULTIPLIED, compute.STORE)
"""What becomes instructions."""

_OVER_CHUNKS = ((0, 0, 1), (0, 1, 2))
_OVER_BLOCKS = ((0, 0, 1, 1, 1), (0, 1, 2, 3, 4))
"""Stage and order in the software pipeline: of the copies of weights and inputs and the products;
and of those with a block's clearing before and its STORE after the products."""


class Scheduled(NamedTuple):
    """The function as scheduled, and with its pipeline; values of its tables; how many turns there
    are."""

    flat: Any
    pipelined: Any
    tables: list[int]
    turns: list[Turn] | None
    total: int

    def script(self) -> str:
        """Both as text, simplified."""
        module = tvm.IRModule({"schedule": self.flat, "pipelined": self.pipelined})
        found: str = s_tir.transform.StmtSimplify()(module).script()
        return found


def scheduled(hardware: Hardware, of: Correlation, tiling: Tiling) -> Scheduled:
    """Schedule a correlation under a tiling."""
    order = turns(of, tiling)
    function, tables = compute.function(hardware, of)
    schedule = Schedule(function)
    block, chunk, chunks = _loops(schedule, hardware, tiling)
    blocks = len(order) if order else int(schedule.get(block).extent)
    pipeline: tuple[Sequence[int], Sequence[int]] | None = None
    if tiling.buffers > 1 and chunks > 1:
        pipeline, looped = _OVER_CHUNKS, chunk
    elif tiling.buffers > 1 and blocks > 1:
        pipeline, looped = _OVER_BLOCKS, block
    if pipeline:
        schedule.annotate(looped, "software_pipeline_stage", list(pipeline[0]))
        schedule.annotate(looped, "software_pipeline_order", list(pipeline[1]))
    loops = [schedule.get(block).loop_var]
    loops += [schedule.get(chunk).loop_var] if chunks > 1 else []
    module = _through(schedule.mod, _OPAQUE)
    lines = _lines(module["main"])
    flat = _turning(_through(module, _COMPACT)["main"], loops, lines, order)
    pipelined = _through(tvm.IRModule({"main": flat}), _PIPELINED)["main"]
    return Scheduled(flat, pipelined, tables, order, blocks)


_OPAQUE = (
    s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
    s_tir.transform.ConvertBlocksToOpaque(),
)
_COMPACT = (s_tir.transform.CompactBufferAllocation(),)
_PIPELINED = (s_tir.transform.InjectSoftwarePipeline(),)


def _through(module: Any, passes: Sequence[Callable[[Any], Any]]) -> Any:
    for one in passes:
        module = one(module)
    return module


def _loops(schedule: Schedule, hardware: Hardware, tiling: Tiling) -> tuple[Any, Any, int]:
    """Tile and tensorize -> (the loop over blocks, that over a block's chunks, chunks)."""
    gemm, clear = intrinsics.registered(hardware)
    product = schedule.get_sblock(compute.PRODUCT)
    fetched = schedule.cache_read(product, "wgt", compute.WGT)
    g, i, o, q, e, z, f, d, p, r, s = schedule.get_loops(product)
    sizes = (
        *(tiling.outputs, tiling.rows, tiling.columns),
        *(tiling.planes, tiling.row_taps, tiling.column_taps),
    )
    split = [
        schedule.split(loop, [None, size])
        for loop, size in zip((o, q, z, p, r, s), sizes, strict=True)
    ]
    (o, oi), (q, qi), (z, zi), (p, pi), (r, ri), (s, si) = split
    # Outputs, planes, rows of taps and results, columns: so micro-ops are in order of addresses.
    schedule.reorder(g, o, i, q, z, d, p, r, s, e, f, oi, pi, ri, qi, si, zi)
    block, chunk = schedule.fuse(g, o, i, q, z), schedule.fuse(d, p, r, s)
    chunks = int(schedule.get(chunk).extent)
    place = chunk if chunks > 1 else block
    schedule.compute_at(fetched, place)
    schedule.compute_at(schedule.get_sblock(compute.PAD), place)
    schedule.reverse_compute_at(schedule.get_sblock(compute.STORE), block)
    cleared = schedule.decompose_reduction(product, chunk)
    for tiles, intrinsic in (
        (schedule.get_sblock("product_tile"), gemm),
        (schedule.get_child_blocks(cleared)[0], clear),
    ):
        schedule.tensorize(intrinsics.replaced(hardware, schedule.get_loops(tiles)), intrinsic)
    return block, chunk, chunks


def _turning(
    function: Any, loops: Sequence[Any], lines: dict[str, list[Any]], order: list[Turn] | None
) -> Any:
    """Name the loops, let the first go over turns, and say in every leaf which turn it is of;
    `lines`: row and column of a leaf's results."""
    named = [tirx.Var(name, "int32") for name in ("turn" if order else "block", "chunk")]
    table = tirx.decl_buffer((len(order), 5), "int32", name="turns") if order else None
    values = [named[0] if table is None else table[named[0], 0], *named[1:]]

    def leaf(realize: Any) -> Any:
        found = realize.block
        if found.name_hint not in LEAVES:
            return realize
        conditions = [] if _always(realize.predicate) else [realize.predicate]
        if table is not None and found.name_hint in lines:
            conditions += _own(lines[found.name_hint], table, named[0])
        chunked = len(loops) > 1 and found.name_hint not in (CLEARED, compute.STORE)
        chunk = named[1] if chunked else tirx.const(0, "int32")
        body = found.body
        for key, value in ((CHUNK, chunk), (TURN, named[0])):
            body = tirx.AttrStmt(tirx.const(0, "int32"), key, value, body)
        return _realized(conditions, found, body)

    def loop(one: Any) -> Any:
        for var, name in zip(loops, named, strict=False):
            if one.loop_var.same_as(var):
                extent = (
                    tirx.const(len(order), "int32") if order and var is loops[0] else one.extent
                )
                return tirx.For(
                    name, one.min, extent, one.kind, one.body, annotations=one.annotations
                )
        return one

    def variable(var: Any) -> Any:
        for loop, value in zip(loops, values, strict=False):
            if var.same_as(loop):
                return value
        return var

    body = function.body
    for kind, change in ((s_tir.SBlockRealize, leaf), (tirx.For, loop), (tirx.Var, variable)):
        body = tvm_ffi.structural_map(body, (kind, change))
    params = [*function.params, table] if table is not None else list(function.params)
    return tirx.PrimFunc(params, body, function.ret_type, function.attrs)


def _lines(function: Any) -> dict[str, list[Any]]:
    """Row and column of the results that a leaf clears, adds to or stores, by its name."""
    found: dict[str, list[Any]] = {}

    def seen(realize: Any) -> Any:
        block = realize.block
        if block.name_hint in (CLEARED, MULTIPLIED, compute.STORE):
            regions = (*block.writes, *block.reads)
            (region, *_) = (one.region for one in regions if one.source.name == "acc")
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
    return s_tir.SBlockRealize([], compute.every(conditions), made)
