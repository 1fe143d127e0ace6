"""Which results every block of a correlation has, in the order in which they are computed."""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

from sqcompile.backends.vta.correlation import Correlation
from sqcompile.backends.vta.cuts import Tiling, growing, parts, results_of, shrinking


class Place(NamedTuple):
    """Which results are computed in a turn: the parts of every axis; `block`: the number of the
    block that they are of, or are a piece of."""

    group: int
    outputs: tuple[int, int]
    image: int
    rows: tuple[int, int]
    columns: tuple[int, int]
    block: int

    def cut(
        self, pieces: Callable[[tuple[int, int], int], list[tuple[int, int]]], halvings: int
    ) -> list["Place"]:
        """In pieces of its rows, or of its columns where it has one row."""
        if self.rows[1] - self.rows[0] > 1:
            return [self._replace(rows=piece) for piece in pieces(self.rows, halvings)]
        return [self._replace(columns=piece) for piece in pieces(self.columns, halvings)]

    def shape(self, of: Correlation) -> tuple[int, int, int]:
        """Its results: output tiles, rows, columns."""
        first, last = self.outputs
        return last - first, results_of(of.rows, self.rows), results_of(of.columns, self.columns)


def places(of: Correlation, tiling: Tiling) -> list[Place]:
    """Of all blocks. The modules wait for the first one's loads and the last one's stores: those
    two come in pieces, the first one's growing and the last one's shrinking."""
    outer = (range(of.groups), parts(of.outputs, tiling.outputs), range(of.images))
    rows, columns = parts(of.rows.count, tiling.rows), parts(of.columns.count, tiling.columns)
    found = [
        Place(*parts_of, block) for block, parts_of in enumerate(product(*outer, rows, columns))
    ]
    if len(found) > 1 and tiling.halvings:
        found[-1:] = found[-1].cut(shrinking, tiling.halvings)
        found[:1] = found[0].cut(growing, tiling.halvings)
    return found


def sum_chunks(of: Correlation, blocks: list[Place]) -> list[int]:
    """By block, the number of its chunk: the blocks of one part of the outputs, as many as have no
    more than `of.most_summed` results of a channel, so that int32 holds their sum."""
    numbers: list[int] = []
    results = number = 0
    for index, block in enumerate(blocks):
        _, rows, columns = block.shape(of)
        if not index or block[:2] != blocks[index - 1][:2]:
            results = number = 0
        elif results + rows * columns > of.most_summed:
            results, number = 0, number + 1
        results += rows * columns
        numbers.append(number)
    return numbers
