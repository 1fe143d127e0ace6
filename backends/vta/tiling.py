"""Chooses how a correlation is cut into blocks and chunks, by an estimate of its cycles.

The estimate adds up what each module does, with the constants of the simulator's model, and
takes the longest: modules overlap. It leaves out who waits for whom, so it compares tilings; the
simulator's model tells how long the chosen one takes.
"""

from collections.abc import Iterator
from itertools import product
from math import prod

from sqcompile.backends.vta.correlation import Correlation
from sqcompile.backends.vta.cuts import Sizes, Tiling, cut, sizes_of, taps_of
from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.nests import PORTABLE_UOPS
from sqcompile.backends.vta.simulator.timing import CONSTANTS
from sqcompile.errors import UsageError

DRAM_LATENCY = 32
"""Cycles that the estimate assumes: a board's, more than upstream's simulated memory has."""


def tiled(hardware: Hardware, of: Correlation, overlap: bool = True) -> Tiling:
    """The tiling with the lowest estimate. Without `overlap` everything has one buffer."""
    slices = of.slices(hardware.width(Memory.OUT))
    # A block is in ACC for its products and for every slice; an even number of parts repeats the
    # pairs of a part of INP and one of ACC sooner, which saves micro-ops.
    buffers, acc_buffers = (2, slices + 1 + (slices + 1) % 2) if overlap else (1, 1)
    best = min(
        (
            (estimate(hardware, of, tiling), number, tiling)
            for number, tiling in enumerate(_tilings(of, buffers, acc_buffers))
            if fits(hardware, of, tiling)
        ),
        default=None,
    )
    if best is None:
        raise UsageError(f"{hardware.name}: the scratchpads cannot hold one tile of each operand")
    return best[-1]


def fits(hardware: Hardware, of: Correlation, tiling: Tiling) -> bool:
    """Do chunks, blocks and the micro-ops of one instruction find room?"""
    sizes = sizes_of(of, tiling)
    room = (
        sizes.inp * tiling.buffers <= hardware.depth(Memory.INP),
        sizes.wgt * tiling.buffers <= hardware.depth(Memory.WGT),
        sizes.acc * tiling.acc_buffers <= hardware.depth(Memory.ACC),
        _uops(of, tiling) <= min(PORTABLE_UOPS, hardware.depth(Memory.UOP)),
    )
    return all(room)


def _tilings(of: Correlation, buffers: int, acc_buffers: int) -> Iterator[Tiling]:
    """All axes whole, halved, and so on. Taps of an axis with several phases stay together: a
    chunk without some phase's taps would leave its results uncomputed."""
    planes = max(run.planes for segment in of.segments for run in segment.runs)
    taps = [
        _halves(taps_of(axis)) if len(axis.phases) == 1 else [taps_of(axis)]
        for axis in (of.rows, of.columns)
    ]
    sizes = product(
        _halves(of.outputs), _halves(of.rows.count), _halves(of.columns.count), _halves(planes)
    )
    for (outputs, rows, columns, some), row_taps, column_taps in product(sizes, *taps):
        yield Tiling(outputs, rows, columns, some, row_taps, column_taps, buffers, acc_buffers)


def _halves(length: int) -> list[int]:
    """length, length / 2, ..., 1, rounded up."""
    found = [max(1, length)]
    while found[-1] > 1:
        found.append(-(-found[-1] // 2))
    return found


def _uops(of: Correlation, tiling: Tiling) -> int:
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


def estimate(hardware: Hardware, of: Correlation, tiling: Tiling) -> float:
    """Cycles of the module that is longest at work, and of what nothing can overlap."""
    sizes = sizes_of(of, tiling)
    work = _Work(hardware, of, tiling)
    modules = (work.load(sizes), work.compute(sizes), work.store(sizes))
    edges = work.beats(Memory.INP) * sizes.inp + work.beats(Memory.WGT) * sizes.wgt
    edges += sizes.acc * (work.beats(Memory.OUT) + 1)
    return max(modules) + edges if tiling.buffers > 1 else sum(modules)


class _Work:
    """Cycles of each module under a tiling."""

    def __init__(self, hardware: Hardware, of: Correlation, tiling: Tiling) -> None:
        self.hardware, self.of, self.tiling = hardware, of, tiling
        self.down = cut(of.rows, tiling.rows, tiling.row_taps)
        self.across = cut(of.columns, tiling.columns, tiling.column_taps)
        self.output_blocks = -(-of.outputs // tiling.outputs)
        self.grids = of.groups * of.images
        self.blocks = self.grids * self.output_blocks * self.down.blocks * self.across.blocks
        runs = [run.planes for segment in of.segments for run in segment.runs]
        self.planes = sum(runs)
        plane_chunks = sum(-(-planes // tiling.planes) for planes in runs)
        self.chunks = plane_chunks * self.down.chunks * self.across.chunks
        self.slices = of.slices(hardware.width(Memory.OUT))
        self.results = self.grids * of.outputs * of.rows.results * of.columns.results

    def beats(self, memory: Memory) -> int:
        """Cycles of the bus for one tile."""
        bus = 1 << self.hardware.log_bus_width - 3
        return -(-self.hardware.element_bytes(memory) // bus)

    def load(self, sizes: Sizes) -> float:
        """Beats, commands, padding, and the latency of every LOAD of INP and WGT."""
        each = DRAM_LATENCY + _of("issue") + _of("load_stages")
        down, across = self.down, self.across
        columns = across.all_real + across.all_padding
        rows = down.all_real * across.blocks * across.chunks
        read = down.all_real * across.all_real
        padding = (down.all_real + down.all_padding) * columns - read
        flat = not padding and across.blocks * across.chunks == 1
        again = self.grids * self.output_blocks * self.planes
        visits = self.blocks * self.chunks
        if self._held(self.blocks // (self.grids * self.output_blocks) * self.grids):
            again, visits = self.planes, self.chunks
        loads = visits if flat else visits * self.tiling.planes
        inp = again * (read * self.beats(Memory.INP) + padding + rows / (30 if flat else 1))
        kernels = self.of.kernel[0] * self.of.kernel[1]
        fetches = self.of.groups * self.output_blocks
        if self.chunks > self.tiling.buffers:
            fetches = self.blocks
        wgt_tiles = fetches * self.planes * min(kernels, sizes.wgt) * self.tiling.outputs
        if self.chunks > self.tiling.buffers:
            wgt_tiles = fetches * self.planes * kernels * self.tiling.outputs
        wgt = wgt_tiles * (self.beats(Memory.WGT) + 0.2)
        return inp + wgt + each * (loads + fetches * self.chunks)

    def _held(self, blocks: int) -> bool:
        """Does INP keep what the next output block reads again?"""
        return blocks * self.chunks <= self.tiling.buffers

    def compute(self, sizes: Sizes) -> float:
        """Tile operations of GEMM and ALU, and what an instruction takes besides."""
        segments = len(self.of.segments)
        phases = len(self.of.rows.phases) * len(self.of.columns.phases)
        tiles = self.of.tile_operations + self.results * (segments + self.slices - 1)
        gemms = self.blocks * self.chunks * phases
        instructions = gemms + self.blocks * (segments + self.slices)
        uops = _uops(self.of, self.tiling)
        variants = self.tiling.buffers if self.chunks <= 1 else self.tiling.buffers**2
        variants = min(self.blocks * self.chunks, max(variants, self.tiling.acc_buffers)) * phases
        reload = DRAM_LATENCY + uops / 2 if uops * variants > PORTABLE_UOPS else 0
        first = uops * min(variants, PORTABLE_UOPS) / 2
        return tiles + instructions * _of("gemm_fill") + gemms * reload + first

    def store(self, sizes: Sizes) -> float:
        """Tiles and bursts of every slice."""
        tile = self.beats(Memory.OUT) + _of("store_tile")
        page = _of("page") // self.hardware.element_bytes(Memory.OUT)
        row = self.across.results
        if self.across.blocks == 1:
            row *= self.down.results
            if self.down.blocks == 1:
                row *= self.tiling.outputs
        bursts = self.results / row * max(1, -(-row // max(1, page)))
        return self.slices * (self.results * tile + bursts * (_of("store_burst") + DRAM_LATENCY))


def _of(name: str) -> int:
    return CONSTANTS[name].value
