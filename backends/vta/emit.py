"""The instructions of a correlation under a tiling.

For every block of results: accumulators are cleared, then for every chunk of the reduction a box
of INP and one of WGT are loaded and multiplied, then the epilogue takes its turn, and the block is
stored, in as many slices as OUT is narrower than a result. Nothing here speaks of tokens: `Stream`
places them. Two blocks or chunks overlap when they lie in different parts of a scratchpad, no more
is needed.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from sqcompile.backends.conv_geometry import Lines, Phase
from sqcompile.backends.vta import isa
from sqcompile.backends.vta.boxes import rectangles
from sqcompile.backends.vta.correlation import Correlation, Run
from sqcompile.backends.vta.cuts import (
    Span,
    Tiling,
    Window,
    clipped,
    counted,
    parts,
    sizes_of,
    taps_of,
    window,
)
from sqcompile.backends.vta.epilogues import Setting, epilogue
from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.isa import AluOp
from sqcompile.backends.vta.nests import Loop, nest
from sqcompile.backends.vta.places import Place, places
from sqcompile.backends.vta.stream import Tiles
from sqcompile.backends.vta.writer import Slots, Writer


class Block(NamedTuple):
    """A block of results: where, and its accumulators."""

    group: int
    outputs: tuple[int, int]
    image: int
    rows: tuple[int, int]
    columns: tuple[int, int]
    base: int
    shape: tuple[int, int, int]

    @property
    def tiles(self) -> Tiles:
        """Its accumulators: (outputs, rows, columns), dense."""
        outputs, rows, columns = self.shape
        return Tiles(Memory.OUT, self.base, outputs * rows * columns)


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
        self.sizes = sizes_of(correlation, tiling)
        self.inp = Slots(self.sizes.inp, tiling.buffers)
        self.wgt = Slots(self.sizes.wgt, tiling.buffers)
        self.acc = Slots(self.sizes.acc, tiling.acc_buffers)

    def run(self) -> tuple[bytes, bytes]:
        """Instructions and micro-ops."""
        of = self.of
        blocks = places(of, self.tiling)
        setting = Setting(self.writer, of, self.tiling, self.sizes, blocks, self.at)
        around = epilogue(setting)
        for number, block in enumerate(map(self._block, blocks)):
            around.begin(number, block.tiles)
            covered = False
            for segment in of.segments:
                self.writer.shift([block.tiles], -segment.shift)
                for run in segment.runs:
                    covered |= self._reduce(block, run)
            if not covered or self._lacking():
                self.writer.alu([block.tiles], AluOp.ADD, 0)
            around.end(number, block.tiles)
            store, waiting = partial(self._store, block), self.tiling.acc_buffers - 1
            self.writer.end_block(block.tiles, self.count, store, waiting)
        around.finish()
        return self.writer.finished()

    def _block(self, place: Place) -> Block:
        base, _ = self.acc.take(place)
        return Block(*place, base, place.shape(self.of))

    def _lacking(self) -> bool:
        """Is there a result that no tap meets?"""
        axes = (self.of.rows, self.of.columns)
        return any(phase.count and not phase.taps for axis in axes for phase in axis.phases)

    def _reduce(self, block: Block, run: Run) -> bool:
        """Add the products of a run of planes; False when there is none."""
        of, tiling = self.of, self.tiling
        some = False
        for planes in parts(run.planes, tiling.planes):
            for row_taps in parts(taps_of(of.rows), tiling.row_taps):
                rows = window(of.rows, Span(*block.rows, *row_taps))
                for column_taps in parts(taps_of(of.columns), tiling.column_taps):
                    columns = window(of.columns, Span(*block.columns, *column_taps))
                    if rows is None or columns is None:
                        continue
                    some = True
                    count = planes[1] - planes[0]
                    wgt = self._load_wgt(block, run.wgt + planes[0], count, rows, columns)
                    inp = self._load_inp(block, run.inp + planes[0], count, rows, columns)
                    spans = (Span(*block.rows, *row_taps), Span(*block.columns, *column_taps))
                    self._multiply(block, count, spans, (rows, columns), inp, wgt)
        return some

    def _load_inp(self, block: Block, plane: int, count: int, rows: Window, columns: Window) -> int:
        lines, across = self.of.rows, self.of.columns
        key = (block.group, block.image, plane, count, rows[:2], columns[:2])
        base, there = self.inp.take(key)
        if there:
            return base
        top, height, bottom = clipped(rows, lines.source)
        left, width, right = clipped(columns, across.source)
        pads = (top, bottom, left, right)
        starts = (block.group, block.image, plane, rows.source + top, columns.source + left)
        if any(pads):
            size = rows.sources * columns.sources
            for number in range(count):
                where = (*starts[:2], plane + number, *starts[3:])
                (one,) = rectangles(self.of.inp_shape, where, (1, 1, 1, height, width))
                one = one._replace(rows=height, columns=width, stride=across.source)
                self.writer.load(Memory.INP, base + number * size, self.at["inp"], one, pads)
        else:
            for one in rectangles(self.of.inp_shape, starts, (1, 1, count, height, width)):
                self.writer.load(Memory.INP, base + one.done, self.at["inp"], one)
        return base

    def _load_wgt(self, block: Block, plane: int, count: int, rows: Window, columns: Window) -> int:
        key = (block.group, block.outputs, plane, count, rows[2:4], columns[2:4])
        base, there = self.wgt.take(key)
        if not there:
            first, last = block.outputs
            starts = (block.group, first, plane, rows.kernel, columns.kernel)
            sizes = (1, last - first, count, rows.kernels, columns.kernels)
            for one in rectangles(self.of.wgt_shape, starts, sizes):
                self.writer.load(Memory.WGT, base + one.done, self.at["wgt"], one)
        return base

    def _multiply(
        self,
        block: Block,
        planes: int,
        spans: tuple[Span, Span],
        windows: tuple[Window, Window],
        inp: int,
        wgt: int,
    ) -> None:
        """One GEMM for every pair of phases."""
        rows, columns = windows
        outputs, _, width = block.shape
        source, kernel = rows.sources * columns.sources, rows.kernels * columns.kernels
        reads = (
            Tiles(Memory.INP, inp, planes * source),
            Tiles(Memory.WGT, wgt, outputs * planes * kernel),
        )
        for row_phase in self.of.rows.phases:
            down = _axis(self.of.rows, row_phase, spans[0], rows)
            for column_phase in self.of.columns.phases:
                across = _axis(self.of.columns, column_phase, spans[1], columns)
                if down is None or across is None:
                    continue
                loops = [
                    Loop(outputs, dst=block.tiles.count // outputs, wgt=planes * kernel),
                    Loop(planes, src=source, wgt=kernel),
                    *down.loops(width, columns.sources, columns.kernels),
                    *across.loops(1, 1, 1),
                ]
                base = (
                    block.base + down.dst * width + across.dst,
                    inp + down.src * columns.sources + across.src,
                    wgt + down.wgt * columns.kernels + across.wgt,
                )
                self.writer.compute(isa.Gemm, nest(loops, base), {}, [block.tiles], reads)

    def _store(self, block: Block, number: int) -> None:
        starts = (
            number,
            block.group,
            block.image,
            block.outputs[0],
            block.rows[0] * self.of.rows.step,
            block.columns[0] * self.of.columns.step,
        )
        grid, sizes = (self.count, *self.of.result_shape), (1, 1, 1, *block.shape)
        self.writer.store(block.base, self.at["out"], grid, starts, sizes)


class _Axis(NamedTuple):
    """A phase inside a chunk along one axis, in lines: where it begins and its loops."""

    dst: int
    src: int
    wgt: int
    taps: tuple[int, int, int]
    results: tuple[int, int, int]

    def loops(self, dst: int, src: int, wgt: int) -> list[Loop]:
        """Taps and results, where a line is so many tiles of each memory."""
        taps, spacing, step = self.taps
        count, apart, stride = self.results
        return [
            Loop(taps, src=spacing * src, wgt=step * wgt),
            Loop(count, dst=apart * dst, src=stride * src),
        ]


def _axis(lines: Lines, phase: Phase, span: Span, seen: Window) -> _Axis | None:
    count, taps = counted(phase, span)
    if not count or not taps:
        return None
    source = phase.offset + span.first * lines.stride + span.begin * lines.spacing
    kernel = phase.kernel + span.begin * lines.kernel_step
    return _Axis(
        phase.first,
        source - seen.source,
        kernel - seen.kernel,
        (taps, lines.spacing, lines.kernel_step),
        (count, lines.step, lines.stride),
    )
