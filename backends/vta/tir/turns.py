"""The order of the blocks of results: which come in pieces.

The modules wait for the first block's loads and for the last block's stores. So these two come in
pieces, the first one's growing and the last one's shrinking (cuts.py): each is a turn of its own.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

from sqcompile.backends.vta.correlation import Correlation
from sqcompile.backends.vta.cuts import Tiling, growing, parts, results_of, shrinking

Part = tuple[int, int]
"""First and last (exclusive) of some lines."""


class Turn(NamedTuple):
    """A block by its number, and the result lines that are computed in this turn."""

    block: int
    rows: Part
    columns: Part


def turns(of: Correlation, tiling: Tiling) -> list[Turn] | None:
    """All turns; None where every block has one."""
    outer = of.groups * len(list(parts(of.outputs, tiling.outputs))) * of.images
    rows, columns = parts(of.rows.count, tiling.rows), parts(of.columns.count, tiling.columns)
    blocks = [(down, across) for _, down, across in product(range(outer), rows, columns)]
    if len(blocks) == 1 or not tiling.halvings:
        return None
    cutting = {0: growing, len(blocks) - 1: shrinking}
    return [
        Turn(number, _lines(of, 0, down), _lines(of, 1, across))
        for number, block in enumerate(blocks)
        for down, across in _pieces(block, cutting.get(number), tiling.halvings)
    ]


def _pieces(
    block: tuple[Part, Part], cut: Callable[[Part, int], list[Part]] | None, halvings: int
) -> Iterator[tuple[Part, Part]]:
    """Of a block's rows, or of its columns where it has one row."""
    rows, columns = block
    if cut is None:
        yield block
    elif rows[1] - rows[0] > 1:
        yield from ((piece, columns) for piece in cut(rows, halvings))
    else:
        yield from ((rows, piece) for piece in cut(columns, halvings))


def _lines(of: Correlation, axis: int, part: Part) -> Part:
    """The result lines of a part of every phase."""
    lines = (of.rows, of.columns)[axis]
    first = part[0] * lines.step
    return first, first + results_of(lines, part)
