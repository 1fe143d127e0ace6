"""The instructions of a correlation under a tiling: what its scheduled TIR does, written down.

`walk.steps` gives the schedule's leaves in order. A copy into a scratchpad becomes LOADs, products
of tiles one GEMM for every pair of phases, results STOREs, in as many slices as OUT is narrower than
a result. Nothing here speaks of tokens: `Stream` places them. A version of a buffer is a part of a
scratchpad: of those that take turns, the one used longest ago.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from typing import NamedTuple

from sqcompile.backends.vta import isa
from sqcompile.backends.vta.boxes import rectangles
from sqcompile.backends.vta.correlation import Correlation
from sqcompile.backends.vta.cuts import Tiling, growing, parts, results_of, shrinking, sizes_of
from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.isa import AluOp
from sqcompile.backends.vta.nests import Loop, nest
from sqcompile.backends.vta.stream import Tiles
from sqcompile.backends.vta.tir import compute, schedule, walk
from sqcompile.backends.vta.tir.leaves import Access, Box, Leaves, Range, box
from sqcompile.backends.vta.writer import Slots, Writer


Piece = tuple[int, int]


class Block(NamedTuple):
    """The results of a turn: where, and their accumulators."""

    results: Box
    held: Box
    base: int

    @property
    def tiles(self) -> Tiles:
        """Its accumulators, dense."""
        return Tiles(Memory.OUT, self.base, self.held.count)


class Chunk(NamedTuple):
    """What a turn multiplies at once: loops of every pair of phases, and what they read of INP and
    WGT; `inp` and `wgt` are where that is."""

    products: list[tuple[list[Range], list[Access]]]
    read: Box
    weights: Box
    inp: int
    wgt: int


class Emitter:
    """Writes the program of one correlation; addresses are those of inp, wgt, out and uops."""

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
        self.scheduled = schedule.scheduled(hardware, correlation, tiling, turns(correlation, tiling))
        self.leaves = Leaves(self.scheduled)
        sizes, versions = sizes_of(correlation, tiling), walk.parts(self.scheduled)
        self.inp = Slots(sizes.inp, versions.inp)
        self.wgt = Slots(sizes.wgt, versions.wgt)
        self.acc = Slots(sizes.acc, tiling.acc_buffers)
        self.carried = correlation.totals.carry is not None
        self.chunks: dict[tuple[int, int], Chunk | None] = {}

    def run(self) -> tuple[bytes, bytes]:
        """Instructions and micro-ops."""
        if self.carried:
            used = min(self.scheduled.count, self.tiling.acc_buffers)
            self.writer.clear(Tiles(Memory.OUT, 0, used * self.acc.size))
        for step in walk.steps(self.scheduled):
            _ON[step.leaf](self, step.turn, step.chunk)
        return self.writer.finished()

    def _begin(self, turn: int, _: int) -> None:
        """Accumulators for a turn's results."""
        results, held = self.leaves.stored(turn)
        base, _ = self.acc.take(turn)
        self.block, self.covered = Block(results, held, base), False
        if not self.carried:
            self.writer.clear(self.block.tiles)

    def _load_wgt(self, turn: int, chunk: int) -> None:
        """The weights of a chunk, and where the rest of it is."""
        products = self.leaves.products(turn, chunk)
        self.chunks[turn, chunk] = found = self._read(turn, chunk, products)
        if found is None:
            return
        where = found.weights.moved(self.leaves.wgt_source(turn, chunk))
        base, there = self.wgt.take(where)
        self.chunks[turn, chunk] = found._replace(wgt=base)
        if not there:
            for one in rectangles(self.of.wgt_shape, *where):
                self.writer.load(Memory.WGT, base + one.done, self.at["wgt"], one)

    def _read(
        self, turn: int, chunk: int, products: list[tuple[list[Range], list[Access]]]
    ) -> Chunk | None:
        """What a chunk reads; None where that is nothing, or nothing but zeros."""
        if not products:
            return None
        read, weights = (
            Box.around([box(ranges, accesses[number]) for ranges, accesses in products])
            for number in (1, 2)
        )
        source = read.moved(self.leaves.inp_source(turn, chunk))
        for axis, start in enumerate(source.starts):
            if start + source.sizes[axis] <= 0 or start >= self.of.inp_shape[axis]:
                return None
        return Chunk(products, read, weights, 0, 0)

    def _load_inp(self, turn: int, chunk: int) -> None:
        found = self.chunks[turn, chunk]
        if found is None:
            return
        where = found.read.moved(self.leaves.inp_source(turn, chunk))
        base, there = self.inp.take(where)
        self.chunks[turn, chunk] = found._replace(inp=base)
        if there:
            return
        inside, pads = where.clipped(self.of.inp_shape)
        if not any(pads):
            for one in rectangles(self.of.inp_shape, *where):
                self.writer.load(Memory.INP, base + one.done, self.at["inp"], one)
            return
        size = where.sizes[3] * where.sizes[4]
        for number in range(where.sizes[2]):
            starts = (*inside.starts[:2], inside.starts[2] + number, *inside.starts[3:])
            (one,) = rectangles(self.of.inp_shape, starts, (1, 1, 1, *inside.sizes[3:]))
            one = one._replace(rows=inside.sizes[3], columns=inside.sizes[4])
            one = one._replace(stride=self.of.inp_shape[4])
            self.writer.load(Memory.INP, base + number * size, self.at["inp"], one, pads)

    def _multiply(self, turn: int, chunk: int) -> None:
        """One GEMM for every pair of phases, after a shift where a segment begins."""
        self.writer.shift([self.block.tiles], -self.leaves.shift(turn, chunk))
        found = self.chunks.pop((turn, chunk))
        if found is None:
            return
        self.covered = True
        places = (
            (self.block.held, self.block.base),
            (found.read, found.inp),
            (found.weights, found.wgt),
        )
        reads = (
            Tiles(Memory.INP, found.inp, found.read.count),
            Tiles(Memory.WGT, found.wgt, found.weights.count),
        )
        for ranges, accesses in found.products:
            lengths = [last - first for first, last in ranges]
            steps = [
                [where.offset(step) for step in access.steps]
                for (where, _), access in zip(places, accesses, strict=True)
            ]
            loops = [Loop(*one) for one in zip(lengths, *steps, strict=True)]
            dst, src, wgt = (
                base + where.place(access.starts)
                for (where, base), access in zip(places, accesses, strict=True)
            )
            made = nest(loops, (dst, src, wgt))
            self.writer.compute(isa.Gemm, made, {}, [self.block.tiles], reads)

    def _end(self, turn: int, _: int) -> None:
        """Store a turn's results; an operation comes before, for results that no tap meets."""
        block = self.block
        if not self.covered or self._lacking():
            self.writer.alu([block.tiles], AluOp.ADD, 0)
        store, waiting = partial(self._store, block), self.tiling.acc_buffers - 1
        self.writer.end_block(block.tiles, self.count, store, waiting)

    def _lacking(self) -> bool:
        """Is there a result that no tap meets?"""
        axes = (self.of.rows, self.of.columns)
        return any(phase.count and not phase.taps for axis in axes for phase in axis.phases)

    def _store(self, block: Block, number: int) -> None:
        grid = (self.count, *self.of.result_shape)
        starts, sizes = (number, *block.results.starts), (1, *block.results.sizes)
        self.writer.store(block.base, self.at["out"], grid, starts, sizes)


_ON: dict[str, Callable[[Emitter, int, int], None]] = {
    schedule.CLEARED: Emitter._begin,
    schedule.FETCHED: Emitter._load_wgt,
    compute.PAD: Emitter._load_inp,
    schedule.MULTIPLIED: Emitter._multiply,
    compute.STORE: Emitter._end,
}
"""What writes a leaf's instructions."""


def turns(of: Correlation, tiling: Tiling) -> list[schedule.Turn] | None:
    """The blocks in order. The modules wait for the first one's loads and the last one's stores:
    those two come in pieces of their rows, or of their columns where they have one row. None where
    none is cut."""
    outer = of.groups * len(list(parts(of.outputs, tiling.outputs))) * of.images
    rows, columns = parts(of.rows.count, tiling.rows), parts(of.columns.count, tiling.columns)
    blocks = list(enumerate(product(range(outer), list(rows), list(columns))))
    if len(blocks) == 1 or not tiling.halvings:
        return None
    cutting = {0: growing, len(blocks) - 1: shrinking}
    return list(_turns(of, blocks, cutting, tiling.halvings))


def _turns(
    of: Correlation,
    blocks: list[tuple[int, tuple[int, Piece, Piece]]],
    cutting: dict[int, Callable[[Piece, int], list[Piece]]],
    halvings: int,
) -> Iterator[schedule.Turn]:
    for number, (_, rows, columns) in blocks:
        pieces = [(rows, columns)]
        if number in cutting and rows[1] - rows[0] > 1:
            pieces = [(piece, columns) for piece in cutting[number](rows, halvings)]
        elif number in cutting:
            pieces = [(rows, piece) for piece in cutting[number](columns, halvings)]
        for own in pieces:
            lines = [
                (part[0] * axis.step, part[0] * axis.step + results_of(axis, part))
                for axis, part in zip((of.rows, of.columns), own, strict=True)
            ]
            yield schedule.Turn(number, *lines)
