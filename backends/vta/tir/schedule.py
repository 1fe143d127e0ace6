"""The schedule of a correlation: blocks of results, chunks of the reduction, tiles of both.

`block` counts blocks of results; in it, `chunk` counts chunks of the reduction. Each chunk has what
it reads copied into INP and WGT and is multiplied by the GEMM intrinsic; the block is cleared
before and stored after. Where a block has several chunks, the copies of the next one stand before
the products of this one (`InjectSoftwarePipeline`), else those of the next block do. The buffers
that have two versions then are the two parts of a scratchpad.

The first and the last block may come in pieces: then the loop goes over turns (turning.py).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import tvm
from tvm import s_tir
from tvm.s_tir import Schedule

from sqcompile.backends.vta.correlation import Correlation
from sqcompile.backends.vta.cuts import Tiling
from sqcompile.backends.vta.hardware import Hardware
from sqcompile.backends.vta.tir import compute, intrinsics, turning
from sqcompile.backends.vta.tir.names import PAD, PRODUCT, STORE, WGT
from sqcompile.backends.vta.tir.turns import Turn, turns

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


@lru_cache(maxsize=1 << 8)
def scheduled(hardware: Hardware, of: Correlation, tiling: Tiling) -> Scheduled:
    """Schedule a correlation under a tiling."""
    order = turns(of, tiling)
    function, tables = compute.function(hardware, of)
    schedule = Schedule(function)
    block, chunk, chunks = _loops(schedule, hardware, tiling)
    total = len(order) if order else int(schedule.get(block).extent)
    if tiling.buffers > 1 and chunks > 1:
        _pipeline(schedule, chunk, _OVER_CHUNKS)
    elif tiling.buffers > 1 and total > 1:
        _pipeline(schedule, block, _OVER_BLOCKS)
    loops = [schedule.get(loop).loop_var for loop in (block, chunk)[: 1 + (chunks > 1)]]
    module = _through(schedule.mod, _OPAQUE)
    lines = turning.lines(module["main"])
    flat = turning.turned(_through(module, _COMPACT)["main"], loops, lines, order)
    pipelined = _through(tvm.IRModule({"main": flat}), _PIPELINED)["main"]
    return Scheduled(flat, pipelined, tables, order, total)


_OPAQUE = (
    s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
    s_tir.transform.ConvertBlocksToOpaque(),
)
_COMPACT = (s_tir.transform.CompactBufferAllocation(),)
_PIPELINED = (s_tir.transform.InjectSoftwarePipeline(),)


def _pipeline(schedule: Schedule, loop: Any, how: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    for name, values in zip(("stage", "order"), how, strict=True):
        schedule.annotate(loop, f"software_pipeline_{name}", list(values))


def _through(module: Any, passes: Sequence[Callable[[Any], Any]]) -> Any:
    for one in passes:
        module = one(module)
    return module


def _loops(schedule: Schedule, hardware: Hardware, tiling: Tiling) -> tuple[Any, Any, int]:
    """Tile and tensorize -> (the loop over blocks, that over a block's chunks, chunks)."""
    gemm, clear = intrinsics.registered(hardware)
    product = schedule.get_sblock(PRODUCT)
    fetched = schedule.cache_read(product, "wgt", WGT)
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
    schedule.compute_at(schedule.get_sblock(PAD), place)
    schedule.reverse_compute_at(schedule.get_sblock(STORE), block)
    cleared = schedule.decompose_reduction(product, chunk)
    for tiles, intrinsic in (
        (schedule.get_sblock("product_tile"), gemm),
        (schedule.get_child_blocks(cleared)[0], clear),
    ):
        schedule.tensorize(intrinsics.replaced(hardware, schedule.get_loops(tiles)), intrinsic)
    return block, chunk, chunks
