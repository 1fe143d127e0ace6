"""The instructions of a correlation under a tiling.

For every block of results: accumulators are cleared, then for every chunk of the reduction a box
of INP and one of WGT are loaded and multiplied, then the block is stored, in as many slices as
OUT is narrower than an accumulator. Nothing here speaks of tokens: `Stream` places them. Two
blocks or chunks overlap when they lie in different parts of a scratchpad, no more is needed.

A slice is stored before the next one may be shifted into its place. So that COMPUTE does not wait
for STORE then, a block's later slices come one by one after the products of the blocks behind it.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

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
    results_of,
    sizes_of,
    taps_of,
    window,
)
from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.isa import AluOp
from sqcompile.backends.vta.nests import MOST_LEFT, MOST_RIGHT, Loop, Nest, Uops, nest
from sqcompile.backends.vta.stream import Stream, Tiles


class Addresses(NamedTuple):
    """Where the grids begin in DRAM, in their tiles."""

    inp: int
    wgt: int
    out: int
    uops: int


class Slots:
    """Equal parts of a scratchpad that take turns; each remembers what it holds."""

    def __init__(self, memory: Memory, size: int, count: int) -> None:
        self.memory, self.size = memory, size
        self.held: dict[Any, int] = {}
        self.free = list(range(count))

    def take(self, key: Any) -> tuple[int, bool]:
        """(first tile, whether it already holds `key`); else the one used longest ago is given."""
        there = key in self.held
        if there:
            slot = self.held.pop(key)
        elif self.free:
            slot = self.free.pop(0)
        else:
            slot = self.held.pop(next(iter(self.held)))
        self.held[key] = slot
        return slot * self.size, there


class Block(NamedTuple):
    """A block of results: where, and its accumulators."""

    group: int
    image: int
    outputs: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]
    base: int
    shape: tuple[int, int, int]

    @property
    def tiles(self) -> int:
        """How many accumulator tiles."""
        outputs, rows, columns = self.shape
        return outputs * rows * columns


class Emitter:
    """Writes the program of one correlation."""

    def __init__(
        self, hardware: Hardware, correlation: Correlation, tiling: Tiling, addresses: Addresses
    ) -> None:
        self.hardware, self.of, self.tiling, self.at = hardware, correlation, tiling, addresses
        self.stream = Stream(hardware)
        self.uops = Uops(hardware)
        self.page_loads: list[dict[str, Any]] = []
        sizes = sizes_of(correlation, tiling)
        self.inp = Slots(Memory.INP, sizes.inp, tiling.buffers)
        self.wgt = Slots(Memory.WGT, sizes.wgt, tiling.buffers)
        self.acc = Slots(Memory.ACC, sizes.acc, tiling.acc_buffers)
        self.unfinished: list[Iterator[None]] = []

    def run(self) -> tuple[isa.Instruction, ...]:
        """All instructions."""
        for block in self._blocks():
            self._clear(block)
            covered = False
            for segment in self.of.segments:
                self._shift(block, -segment.shift)
                for run in segment.runs:
                    covered |= self._reduce(block, run)
            if not covered or self._lacking():
                self._alu(block, AluOp.ADD, 0)
            self._advance([*self.unfinished, self._slices(block)])
            if self.tiling.acc_buffers == 1:
                self._finish_blocks()
        self._finish_blocks()
        self._patch_pages()
        return self.stream.finished()

    def _blocks(self) -> Iterator[Block]:
        of, tiling = self.of, self.tiling
        for group in range(of.groups):
            for outputs in parts(of.outputs, tiling.outputs):
                for image in range(of.images):
                    for rows in parts(of.rows.count, tiling.rows):
                        for columns in parts(of.columns.count, tiling.columns):
                            shape = (
                                outputs[1] - outputs[0],
                                results_of(of.rows, rows),
                                results_of(of.columns, columns),
                            )
                            key = (group, outputs, image, rows, columns)
                            base, _ = self.acc.take(key)
                            yield Block(group, image, outputs, rows, columns, base, shape)

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
        pads = {"y_pad_0": top, "y_pad_1": bottom, "x_pad_0": left, "x_pad_1": right}
        starts = (block.group, block.image, plane, rows.source + top, columns.source + left)
        if any(pads.values()):
            size = rows.sources * columns.sources
            for number in range(count):
                where = (*starts[:2], plane + number, *starts[3:])
                (one,) = rectangles(self.of.inp_shape, where, (1, 1, 1, height, width))
                one = one._replace(rows=height, columns=width, stride=across.source)
                self._load(Memory.INP, base + number * size, self.at.inp, one, pads)
        else:
            for one in rectangles(self.of.inp_shape, starts, (1, 1, count, height, width)):
                self._load(Memory.INP, base + one.done, self.at.inp, one, {})
        return base

    def _load_wgt(self, block: Block, plane: int, count: int, rows: Window, columns: Window) -> int:
        key = (block.group, block.outputs, plane, count, rows[2:4], columns[2:4])
        base, there = self.wgt.take(key)
        if not there:
            first, last = block.outputs
            starts = (block.group, first, plane, rows.kernel, columns.kernel)
            sizes = (1, last - first, count, rows.kernels, columns.kernels)
            for one in rectangles(self.of.wgt_shape, starts, sizes):
                self._load(Memory.WGT, base + one.done, self.at.wgt, one, {})
        return base

    def _load(self, memory: Memory, base: int, dram: int, one: Any, pads: dict[str, int]) -> None:
        fields = {
            "memory": memory,
            "sram_base": base,
            "dram_base": dram + one.first,
            "y_size": one.rows,
            "x_size": one.columns,
            "x_stride": one.stride,
        } | pads
        rows = one.rows + pads.get("y_pad_0", 0) + pads.get("y_pad_1", 0)
        columns = one.columns + pads.get("x_pad_0", 0) + pads.get("x_pad_1", 0)
        self.stream.add(isa.Load, fields, writes=(Tiles(memory, base, rows * columns),))

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
                    Loop(outputs, dst=block.tiles // outputs, wgt=planes * kernel),
                    Loop(planes, src=source, wgt=kernel),
                    *down.loops(width, columns.sources, columns.kernels),
                    *across.loops(1, 1, 1),
                ]
                base = (
                    block.base + down.dst * width + across.dst,
                    inp + down.src * columns.sources + across.src,
                    wgt + down.wgt * columns.kernels + across.wgt,
                )
                self._compute(isa.Gemm, nest(loops, base), {}, block, reads)

    def _clear(self, block: Block) -> None:
        self._over_block(isa.Gemm, block, {"reset": True})

    def _shift(self, block: Block, right: int) -> None:
        """To the right, or to the left by a negative number, as far as one instruction can."""
        while right:
            amount = max(-MOST_LEFT, min(right, MOST_RIGHT))
            self._alu(block, AluOp.SHR, amount)
            right -= amount

    def _alu(self, block: Block, opcode: AluOp, imm: int) -> None:
        self._over_block(isa.Alu, block, {"alu_opcode": opcode, "use_imm": True, "imm": imm})

    def _over_block(self, kind: type[isa.Nest], block: Block, fields: dict[str, Any]) -> None:
        outputs, rows, columns = block.shape
        loops = [Loop(outputs * rows, columns, columns), Loop(columns, 1, 1)]
        if kind is isa.Gemm:
            loops = [loop._replace(src=0) for loop in loops]
        base = (block.base, 0 if kind is isa.Gemm else block.base, 0)
        self._compute(kind, nest(loops, base), fields, block, ())

    def _compute(
        self,
        kind: type[isa.Nest],
        loops: Nest,
        fields: dict[str, Any],
        block: Block,
        reads: tuple[Tiles, ...],
    ) -> None:
        begin, opened = self.uops.place(loops.uops)
        if opened:
            page = {"memory": Memory.UOP, "sram_base": 0, "dram_base": 0, "y_size": 1}
            page |= {"x_size": 0, "x_stride": 0}
            self.page_loads.append(page)
            self.stream.add(isa.Load, page)
        steps = loops.fields(begin, kind is isa.Gemm)
        writes = (Tiles(Memory.OUT, block.base, block.tiles),)
        self.stream.add(kind, steps | fields, reads, writes)

    def _advance(self, blocks: list[Iterator[None]]) -> None:
        """Let every block store one slice, the oldest block first."""
        self.unfinished = [block for block in blocks if next(block, self) is not self]

    def _finish_blocks(self) -> None:
        while self.unfinished:
            self._advance(self.unfinished)

    def _slices(self, block: Block) -> Iterator[None]:
        """Store the block in slices of OUT's width, the lowest first, one at a time."""
        width = self.hardware.width(Memory.OUT)
        for number in range(self.of.slices(width)):
            self._shift(block, width if number else 0)
            self._store(block, number)
            if number + 1 < self.of.slices(width):
                yield

    def _store(self, block: Block, number: int) -> None:
        grid = (self.of.slices(self.hardware.width(Memory.OUT)), *self.of.result_shape)
        starts = (
            number,
            block.group,
            block.image,
            block.outputs[0],
            block.rows[0] * self.of.rows.step,
            block.columns[0] * self.of.columns.step,
        )
        for one in rectangles(grid, starts, (1, 1, 1, *block.shape)):
            fields = {
                "memory": Memory.OUT,
                "sram_base": block.base + one.done,
                "dram_base": self.at.out + one.first,
                "y_size": one.rows,
                "x_size": one.columns,
                "x_stride": one.stride,
            }
            tiles = Tiles(Memory.OUT, block.base + one.done, one.rows * one.columns)
            self.stream.add(isa.Store, fields, reads=(tiles,))

    def _patch_pages(self) -> None:
        """Now that every page is full, its load's place and length."""
        place = self.at.uops
        for page, size in zip(self.page_loads, self.uops.sizes(), strict=True):
            page |= {"dram_base": place, "x_size": size, "x_stride": size}
            place += size


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
