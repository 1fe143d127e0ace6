"""The instructions of a correlation under a tiling: what its scheduled TIR does, written down.

`walk.steps` gives the schedule's leaves in order. A copy into a scratchpad becomes LOADs, products
of tiles one GEMM for every pair of phases, results STOREs, in as many slices as OUT is narrower
than a result. Before a block is multiplied and before it is stored, the epilogue takes its turn
(epilogues.py). Nothing here speaks of tokens: `Stream` places them. As many versions as a buffer
has, so many parts of a scratchpad take turns; which one is next, and what is not copied because a
part still holds it, is decided here (`Slots`).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from sqcompile.backends.vta import isa
from sqcompile.backends.vta.boxes import rectangles
from sqcompile.backends.vta.correlation import Correlation
from sqcompile.backends.vta.cuts import Tiling, sizes_of
from sqcompile.backends.vta.epilogues import Setting, epilogue
from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.isa import AluOp
from sqcompile.backends.vta.nests import Loop, nest
from sqcompile.backends.vta.places import places
from sqcompile.backends.vta.stream import Tiles
from sqcompile.backends.vta.tir import names, walk
from sqcompile.backends.vta.tir.box import Box
from sqcompile.backends.vta.tir.leaves import Chunk, Copy, Leaves
from sqcompile.backends.vta.tir.schedule import scheduled
from sqcompile.backends.vta.writer import Slots, Writer


class Block(NamedTuple):
    """The results of a turn: where, and their accumulators."""

    where: Copy
    base: int

    @property
    def tiles(self) -> Tiles:
        """Its accumulators, dense."""
        return Tiles(Memory.OUT, self.base, self.where.scratch.tiles)


class Held(NamedTuple):
    """A chunk, and where in INP and WGT it is."""

    chunk: Chunk
    inp: int
    wgt: int

    @property
    def tiles(self) -> tuple[Tiles, Tiles]:
        """What its products read."""
        return (
            Tiles(Memory.INP, self.inp, self.chunk.inp.scratch.tiles),
            Tiles(Memory.WGT, self.wgt, self.chunk.wgt.scratch.tiles),
        )


class Emitter:
    """Writes the program of one correlation; addresses are those of inp, wgt, out, sums and
    uops."""

    def __init__(
        self,
        hardware: Hardware,
        correlation: Correlation,
        tiling: Tiling,
        addresses: Mapping[str, int],
    ) -> None:
        self.of, self.tiling, self.at = correlation, tiling, addresses
        self.writer = Writer(hardware, addresses["uops"])
        self.count = correlation.slices(hardware.width(Memory.OUT))
        self.scheduled = scheduled(hardware, correlation, tiling)
        self.leaves = Leaves(self.scheduled, correlation.inp_shape)
        sizes, versions = sizes_of(correlation, tiling), walk.versions(self.scheduled)
        self.inp = Slots(sizes.inp, versions.inp)
        self.wgt = Slots(sizes.wgt, versions.wgt)
        self.acc = Slots(sizes.acc, tiling.acc_buffers)
        setting = Setting(
            self.writer, correlation, tiling, sizes, places(correlation, tiling), addresses
        )
        self.around = epilogue(setting)
        self.held: dict[tuple[int, int], Held] = {}

    def run(self) -> tuple[bytes, bytes]:
        """Instructions and micro-ops."""
        for step in walk.steps(self.scheduled):
            _ON[step.leaf](self, step.turn, step.chunk)
        self.around.finish()
        return self.writer.finished()

    def _begin(self, turn: int, _: int) -> None:
        """Accumulators for a turn's results."""
        base, _ = self.acc.take(turn)
        self.block, self.covered = Block(self.leaves.stored(turn), base), False
        self.around.begin(turn, self.block.tiles)

    def _fetch(self, turn: int, chunk: int) -> None:
        """The weights of a chunk; from here on it is held."""
        found = self.leaves.chunk(turn, chunk)
        if found is None:
            return
        base, there = self.wgt.take(found.wgt.dram)
        self.held[turn, chunk] = Held(found, 0, base)
        if not there:
            for one in rectangles(self.of.wgt_shape, *found.wgt.dram):
                self.writer.load(Memory.WGT, base + one.done, self.at["wgt"], one)

    def _load(self, turn: int, chunk: int) -> None:
        """The inputs of a chunk."""
        held = self.held.get((turn, chunk))
        if held is None:
            return
        where = held.chunk.inp.dram
        base, there = self.inp.take(where)
        self.held[turn, chunk] = held._replace(inp=base)
        if there:
            return
        inside, pads = where.clipped(self.of.inp_shape)
        if any(pads):
            self._load_padded(base, where, inside, pads)
        else:
            for one in rectangles(self.of.inp_shape, *where):
                self.writer.load(Memory.INP, base + one.done, self.at["inp"], one)

    def _load_padded(
        self, base: int, where: Box, inside: Box, pads: tuple[int, int, int, int]
    ) -> None:
        """A plane at a time: zeros are around each."""
        group, image, plane, *lines = inside.starts
        *_, planes, rows, columns = inside.sizes
        size = where.tiles // planes
        for number in range(planes):
            starts = (group, image, plane + number, *lines)
            (one,) = rectangles(self.of.inp_shape, starts, (1, 1, 1, rows, columns))
            one = one._replace(rows=rows, columns=columns, stride=self.of.columns.source)
            self.writer.load(Memory.INP, base + number * size, self.at["inp"], one, pads)

    def _multiply(self, turn: int, chunk: int) -> None:
        """One GEMM for every pair of phases, after a shift where a segment begins."""
        self.writer.shift([self.block.tiles], -self.leaves.shift(turn, chunk))
        held = self.held.pop((turn, chunk), None)
        if held is None:
            return
        self.covered = True
        boxes = (self.block.where.scratch, held.chunk.inp.scratch, held.chunk.wgt.scratch)
        bases = (self.block.base, held.inp, held.wgt)
        for lengths, *accesses in held.chunk.products:
            steps = (
                [where.offset(step) for step in access.steps]
                for where, access in zip(boxes, accesses, strict=True)
            )
            loops = [Loop(*one) for one in zip(lengths, *steps, strict=True)]
            dst, src, wgt = (
                base + where.place(access.starts)
                for where, base, access in zip(boxes, bases, accesses, strict=True)
            )
            made = nest(loops, (dst, src, wgt))
            self.writer.compute(isa.Gemm, made, {}, [self.block.tiles], held.tiles)

    def _end(self, turn: int, _: int) -> None:
        """Store a turn's results; an operation comes before, for results that no tap meets."""
        block = self.block
        if not self.covered or self._lacking():
            self.writer.alu([block.tiles], AluOp.ADD, 0)
        self.around.end(turn, block.tiles)
        store, waiting = partial(self._store, block), self.tiling.acc_buffers - 1
        self.writer.end_block(block.tiles, self.count, store, waiting)

    def _lacking(self) -> bool:
        """Is there a result that no tap meets?"""
        axes = (self.of.rows, self.of.columns)
        return any(phase.count and not phase.taps for axis in axes for phase in axis.phases)

    def _store(self, block: Block, number: int) -> None:
        grid = (self.count, *self.of.result_shape)
        starts, sizes = (number, *block.where.dram.starts), (1, *block.where.dram.sizes)
        self.writer.store(block.base, self.at["out"], grid, starts, sizes)


_ON: dict[str, Callable[[Emitter, int, int], None]] = {
    names.CLEARED: Emitter._begin,
    names.FETCHED: Emitter._fetch,
    names.PAD: Emitter._load,
    names.MULTIPLIED: Emitter._multiply,
    names.STORE: Emitter._end,
}
"""What writes a leaf's instructions."""
