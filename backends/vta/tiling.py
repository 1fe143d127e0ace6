"""Chooses how a correlation is cut into blocks and chunks, by an estimate of its cycles.

The estimate adds up what each module does, with the constants of the simulator's model, and
takes the longest: modules overlap. It leaves out who waits for whom, so it compares tilings; the
simulator's model tells how long the chosen one takes.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import product
from math import prod

from sqcompile.backends.vta.correlation import LANES, Correlation
from sqcompile.backends.vta.cuts import Sizes, Tiling, cut, sizes_of, taps_of
from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.nests import PORTABLE_UOPS
from sqcompile.backends.vta.simulator.timing import CONSTANTS
from sqcompile.backends.vta.writer import blocks_at_once
from sqcompile.errors import UsageError

DRAM_LATENCY = 32
"""Cycles that the estimate assumes: a board's, more than upstream's simulated memory has."""

_WAITING = 1 / 16
"""How much of the modules' work is waited for although it could overlap: prefers slack."""

_MOST_HALVINGS = 2
_PIECE = 4 * DRAM_LATENCY
"""Tile operations of the smallest piece of a block."""

_COST = {name: constant.value for name, constant in CONSTANTS.items()}


@lru_cache(maxsize=1 << 12)
def tiled(hardware: Hardware, of: Correlation, overlap: bool = True) -> Tiling:
    """The tiling with the lowest estimate. Without `overlap`, and where the scratchpads hold no
    two chunks, everything has one buffer. Raises UsageError where not even that finds room."""
    # An even number of parts of ACC repeats the pairs of such a part and one of INP sooner, which
    # saves micro-ops.
    blocks = blocks_at_once(of.slices(hardware.width(Memory.OUT)))
    several = [(2, blocks + blocks % 2)] if overlap else []
    for buffers, acc_buffers in (*several, (1, 1)):
        best = _best(hardware, of, buffers, acc_buffers)
        if best is not None:
            return best
    raise UsageError(f"{hardware.name} is too small for it: {_lacking(hardware, of)}")


def _best(hardware: Hardware, of: Correlation, buffers: int, acc_buffers: int) -> Tiling | None:
    """The best of those that find room."""
    room = _Room(hardware)
    best: tuple[float, _Estimate] | None = None
    for tiling in _tilings(of, buffers, acc_buffers):
        sizes = sizes_of(of, tiling)
        if room.fits(of, tiling, sizes):
            estimate = _Estimate(room, of, tiling, sizes)
            cycles = estimate.cycles()
            if best is None or cycles < best[0]:
                best = cycles, estimate
    return None if best is None else replace(best[1].tiling, halvings=best[1].halvings())


def _lacking(hardware: Hardware, of: Correlation) -> str:
    """Which scratchpads do not hold the smallest chunk or block, and how large they must be."""
    *_, smallest = _tilings(of, 1, 1)
    sizes = sizes_of(of, smallest)
    needed = {
        Memory.UOP: _uops(smallest),
        Memory.INP: sizes.inp,
        Memory.WGT: sizes.wgt,
        Memory.ACC: sizes.acc + _sum_tiles(of, smallest),
    }
    said = (hardware.lacks(memory, tiles) for memory, tiles in needed.items())
    return "; ".join(one for one in said if one)


def _tilings(of: Correlation, buffers: int, acc_buffers: int) -> Iterator[Tiling]:
    """All axes whole, halved, and so on. Taps of an axis with several phases stay together: a
    chunk without some phase's taps would leave its results uncomputed."""
    planes = max(run.planes for segment in of.segments for run in segment.runs)
    taps = [
        _halves(taps_of(axis)) if len(axis.phases) == 1 else [max(1, taps_of(axis))]
        for axis in (of.rows, of.columns)
    ]
    sizes = [_halves(size) for size in (of.outputs, of.rows.count, of.columns.count, planes)]
    for outputs, rows, columns, some, row_taps, column_taps in product(*sizes, *taps):
        yield Tiling(outputs, rows, columns, some, row_taps, column_taps, buffers, acc_buffers)


def _halves(length: int) -> list[int]:
    """length, length / 2, ..., 1, rounded up."""
    found = [max(1, length)]
    while found[-1] > 1:
        found.append(-(-found[-1] // 2))
    return found


def _uops(tiling: Tiling) -> int:
    """Micro-ops of a GEMM: all its loops but the two longest."""
    loops = [
        tiling.outputs,
        tiling.planes,
        tiling.row_taps,
        tiling.column_taps,
        tiling.rows,
        tiling.columns,
    ]
    return prod(sorted(loops)[:-2])


def _sum_tiles(of: Correlation, tiling: Tiling) -> int:
    """Tiles of ACC that sums of channels take."""
    return tiling.outputs * LANES * tiling.buffers if of.most_summed else 0


class _Room:
    """What of the hardware the choice looks at."""

    def __init__(self, hardware: Hardware) -> None:
        self.inp, self.wgt, self.acc = (
            hardware.depth(memory) for memory in (Memory.INP, Memory.WGT, Memory.ACC)
        )
        self.uops = min(PORTABLE_UOPS, hardware.depth(Memory.UOP))
        bus = 1 << hardware.log_bus_width - 3
        bytes_of = {memory: hardware.element_bytes(memory) for memory in Memory}
        self.beats = {memory: -(-size // bus) for memory, size in bytes_of.items()}
        self.page = {memory: max(1, _COST["page"] // size) for memory, size in bytes_of.items()}
        self.out_width = hardware.width(Memory.OUT)

    def fits(self, of: Correlation, tiling: Tiling, sizes: Sizes) -> bool:
        """Do chunks, blocks and the micro-ops of one instruction find room?"""
        return (
            sizes.inp * tiling.buffers <= self.inp
            and sizes.wgt * tiling.buffers <= self.wgt
            and sizes.acc * tiling.acc_buffers + _sum_tiles(of, tiling) <= self.acc
            and (not of.most_summed or sizes.acc // tiling.outputs <= of.most_summed)
            and _uops(tiling) <= self.uops
        )


class _Estimate:
    """Cycles of each module under a tiling."""

    def __init__(self, room: _Room, of: Correlation, tiling: Tiling, sizes: Sizes) -> None:
        self.room, self.of, self.tiling, self.sizes = room, of, tiling, sizes
        self.down = cut(of.rows, tiling.rows, tiling.row_taps)
        self.across = cut(of.columns, tiling.columns, tiling.column_taps)
        runs = [run.planes for segment in of.segments for run in segment.runs]
        self.planes = sum(runs)
        plane_chunks = sum(-(-planes // tiling.planes) for planes in runs)
        self.chunks = plane_chunks * self.down.chunks * self.across.chunks
        self.output_blocks = -(-of.outputs // tiling.outputs)
        self.spatial_blocks = of.images * self.down.blocks * self.across.blocks
        self.blocks = of.groups * self.output_blocks * self.spatial_blocks
        self.slices = of.slices(room.out_width)
        self.results = prod(of.result_shape)

    def cycles(self) -> float:
        """Of the module that is longest at work, and of what nothing can overlap."""
        modules = (self._inp() + self._wgt(), self._compute(), self._store())
        if self.tiling.buffers == 1:
            return sum(modules)
        beats = self.room.beats
        edges = self.sizes.inp * beats[Memory.INP] + self.sizes.wgt * beats[Memory.WGT]
        edges += self.sizes.acc * (beats[Memory.OUT] + 1)
        return max(modules) + _WAITING * sum(modules) + edges

    def halvings(self) -> int:
        """How often the first and the last block are halved: nothing overlaps the first one's
        loads and the last one's stores. A piece lasts longer than a LOAD's latency, and none is cut
        where that would load weights again."""
        if self.tiling.buffers == 1 or self.chunks > self.tiling.buffers:
            return 0
        rounds = self.of.tile_operations // max(1, self.blocks) // _PIECE
        return min(max(1, rounds).bit_length() - 1, _MOST_HALVINGS)

    def _inp(self) -> float:
        """LOADs of INP: every chunk of every block, but for chunks that are still there."""
        down, across, of = self.down, self.across, self.of
        real = down.all_real * across.all_real
        padding = (down.all_real + down.all_padding) * (across.all_real + across.all_padding) - real
        whole_rows = not padding and across.blocks * across.chunks == 1
        rows = down.all_real * across.blocks * across.chunks
        commands = real / self.room.page[Memory.INP] if whole_rows else rows
        held = self.spatial_blocks * self.chunks <= self.tiling.buffers
        times = of.groups * (1 if held else self.output_blocks)
        loads = times * self.spatial_blocks * self.chunks
        loads *= 1 if whole_rows else self.tiling.planes
        moved = real * self.room.beats[Memory.INP] + padding + commands
        return times * of.images * self.planes * moved + self._latency(loads)

    def _wgt(self) -> float:
        """LOADs of WGT: once for an output block where all its chunks are held."""
        fetches = self.of.groups * self.output_blocks
        if self.chunks > self.tiling.buffers:
            fetches *= self.spatial_blocks
        tiles = fetches * self.planes * prod(self.of.kernel) * self.tiling.outputs
        moved = tiles * (self.room.beats[Memory.WGT] + 1 / self.room.page[Memory.WGT])
        return moved + self._latency(fetches * self.chunks)

    def _latency(self, loads: int) -> int:
        return loads * (DRAM_LATENCY + _COST["issue"] + _COST["load_stages"])

    def _compute(self) -> float:
        """Tile operations of GEMM and ALU, instructions, micro-ops."""
        carried = self.of.totals.carry is not None
        shifts = len(self.of.segments) - carried + self.slices - 1  # and resets
        cleared = carried * self.sizes.acc * min(self.blocks, self.tiling.acc_buffers)
        phases = len(self.of.rows.phases) * len(self.of.columns.phases)
        tiles = self.of.tile_operations + self.results * shifts + cleared + self._epilogue()
        gemms = self.blocks * self.chunks * phases
        instructions = gemms + self.blocks * shifts
        return tiles + instructions * _COST["gemm_fill"] + self._uop_loads(gemms, phases)

    def _epilogue(self) -> float:
        """Cycles of ALU operations: one a result for ReLU; two for sums, but where blocks are
        added up in their places."""
        if self.of.relu:
            return self.results
        if not self.of.most_summed:
            return 0
        placed = self.sizes.acc * self.tiling.acc_buffers * self.of.groups * self.output_blocks
        carried = self.of.totals.carry is not None
        return 2 * (min(self.results, placed) if carried else self.results)

    def _uop_loads(self, gemms: int, phases: int) -> float:
        """Micro-ops once, for every combination of parts of the scratchpads; when they do not all
        find room, for every GEMM."""
        uops = _uops(self.tiling)
        variants = self.tiling.buffers ** (1 if self.chunks == 1 else 2)
        variants = min(self.blocks * self.chunks, max(variants, self.tiling.acc_buffers)) * phases
        if uops * variants > self.room.uops:
            return gemms * (DRAM_LATENCY + uops / 2)
        return uops * variants / 2

    def _store(self) -> float:
        """Tiles and bursts of every slice."""
        row = self.across.results
        if self.across.blocks == 1:
            row *= self.down.results * (self.tiling.outputs if self.down.blocks == 1 else 1)
        bursts = self.results / row * -(-row // self.room.page[Memory.OUT])
        tile = self.room.beats[Memory.OUT] + _COST["store_tile"]
        burst = _COST["store_burst"] + DRAM_LATENCY
        return self.slices * (self.results * tile + bursts * burst)
