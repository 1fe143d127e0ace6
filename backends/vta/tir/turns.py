"""The turns of a schedule: blocks of results, or pieces of them (places.py)."""

from typing import NamedTuple

from sqcompile.backends.conv_geometry import Lines
from sqcompile.backends.vta.correlation import Correlation
from sqcompile.backends.vta.cuts import Tiling, results_of
from sqcompile.backends.vta.places import places

Part = tuple[int, int]
"""First and last (exclusive) of some lines."""


class Turn(NamedTuple):
    """A block by its number, and the result lines that are computed in this turn."""

    block: int
    rows: Part
    columns: Part


def turns(of: Correlation, tiling: Tiling) -> list[Turn] | None:
    """All turns; None where every block has one."""
    found = places(of, tiling)
    if len(found) == found[-1].block + 1:
        return None
    return [
        Turn(one.block, _lines(of.rows, one.rows), _lines(of.columns, one.columns)) for one in found
    ]


def _lines(lines: Lines, part: Part) -> Part:
    """The result lines of a part of every phase."""
    first = part[0] * lines.step
    return first, first + results_of(lines, part)
