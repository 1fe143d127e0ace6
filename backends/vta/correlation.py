"""The one form that every product has on the accelerator: a correlation of grids of tiles.

result[i, o, y, x] = sum over planes p and taps (r, s) of INP[i, p, y', x'] @ WGT[o, p, r, s].T

where a tile of INP has BATCH rows of BLOCK values of the reduced axis, and y' and x' follow from
y, r and x, s as conv_geometry.Lines says, zero outside the grid. A matrix product has one row
of tiles and one tap; a convolution's grid is its image; how a wgrad is one stands in conv.py.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

from sqcompile.backends.conv_geometry import Lines, Phase
from sqcompile.backends.vta.carry import ACC_BITS, Totals, slices_of

MOST_PADDING = 15
"""A LOAD has four bits for every side."""
LANES = 4
"""Tiles that take turns in a sum of tiles."""


class Run(NamedTuple):
    """So many planes of INP from `inp` on, and of WGT from `wgt` on, that meet one by one."""

    inp: int
    wgt: int
    planes: int


class Segment(NamedTuple):
    """Accumulators shift left by `shift`, then the products of some planes are added."""

    shift: int
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Correlation:
    """`groups` correlations of `images` grids each. Segments are in order (Horner). What is stored
    are integers of `totals.bits`: what is above the lowest of their 32 bits is the sign, or zero.

    With `relu`, negative results are 0. With `most_summed`, the sums of channels over images, rows
    and columns are stored too, in chunks of no more results than that."""

    groups: int
    images: int
    inp_planes: int
    wgt_planes: int
    outputs: int
    rows: Lines
    columns: Lines
    kernel: tuple[int, int]
    segments: tuple[Segment, ...]
    totals: Totals
    relu: bool = False
    most_summed: int = 0

    def slices(self, width: int) -> int:
        """Slices of `width` bits that a result has in DRAM."""
        return slices_of(self.totals.bits, width)

    @property
    def inp_shape(self) -> tuple[int, ...]:
        """The grid of INP tiles in DRAM."""
        return self.groups, self.images, self.inp_planes, self.rows.source, self.columns.source

    @property
    def wgt_shape(self) -> tuple[int, ...]:
        """The grid of WGT tiles in DRAM."""
        return self.groups, self.outputs, self.wgt_planes, *self.kernel

    @property
    def result_shape(self) -> tuple[int, ...]:
        """The grid of OUT tiles in DRAM."""
        return self.groups, self.images, self.outputs, self.rows.results, self.columns.results

    def sum_slices(self, width: int) -> int:
        """Slices that a sum has in DRAM."""
        return slices_of(ACC_BITS, width)

    def sums_shape(self, chunks: int) -> tuple[int, ...]:
        """The grid of OUT tiles in DRAM that the sums are, of so many chunks at most."""
        return self.groups, self.outputs, chunks, LANES

    @property
    def tile_operations(self) -> int:
        """Products of one tile with another, those with padding included."""
        planes = sum(run.planes for segment in self.segments for run in segment.runs)
        lines = [sum(p.count * p.taps for p in axis.phases) for axis in (self.rows, self.columns)]
        return self.groups * self.images * self.outputs * planes * lines[0] * lines[1]


def plain(size: int) -> Lines:
    """An axis along which nothing slides: result q reads line q."""
    return Lines(size, size, 1, 1, 1, 1, 1, (Phase(0, size, 0, 1, 0),))


def outside(lines: Lines) -> tuple[int, int]:
    """Lines before the first and after the last one of the source that results read."""
    reads = [
        (phase.offset, phase.offset + (phase.count - 1) * lines.stride + _span(lines, phase))
        for phase in lines.phases
        if phase.taps and phase.count
    ]
    first = min((low for low, _ in reads), default=0)
    last = max((high for _, high in reads), default=0)
    return max(0, -first), max(0, last - lines.source)


def widened(lines: Lines, before: int, after: int) -> Lines:
    """The same axis over a source with so many more lines on both ends."""
    phases = tuple(replace(phase, offset=phase.offset + before) for phase in lines.phases)
    return replace(lines, source=lines.source + before + after, phases=phases)


def _span(lines: Lines, phase: Phase) -> int:
    return (phase.taps - 1) * lines.spacing + 1
