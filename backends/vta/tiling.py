"""Chooses how a correlation is cut into blocks and chunks that fit the scratchpads."""

from dataclasses import replace

from sqcompile.backends.vta.correlation import Correlation
from sqcompile.backends.vta.emit import Tiling, chunk_sizes
from sqcompile.backends.vta.hardware import Hardware, Memory

_CUTS = {
    "acc": ("rows", "columns", "outputs"),
    "wgt": ("planes", "outputs", "row_taps", "column_taps"),
    "inp": ("planes", "rows", "row_taps", "columns", "column_taps"),
}


def fits(hardware: Hardware, of: Correlation, tiling: Tiling) -> str | None:
    """The scratchpad that is too small for the tiling, None when there is none."""
    sizes = chunk_sizes(of, tiling)
    for name, size in sizes._asdict().items():
        if size * tiling.buffers > hardware.depth(Memory[name.upper()]):
            return name
    return None


def tiled(hardware: Hardware, of: Correlation, buffers: int = 2) -> Tiling:
    """A tiling that fits: whole axes, halved one after the other where they do not."""
    tiling = Tiling(
        of.outputs,
        of.rows.count,
        of.columns.count,
        max(run.count for segment in of.segments for run in segment.runs),
        max(phase.taps for phase in of.rows.phases),
        max(phase.taps for phase in of.columns.phases),
        buffers,
    )
    while short := fits(hardware, of, tiling):
        longest = max(_CUTS[short], key=lambda name: getattr(tiling, name))
        tiling = replace(tiling, **{longest: -(-getattr(tiling, longest) // 2)})
    return tiling
