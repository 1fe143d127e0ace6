"""Copies between two walks over the same elements, in vectors.

Rows that both sides walk along are copied as they are. A transposition goes through registers in
square tiles, a vector of the source for each row and a vector of the result for each column; when
one of its two axes is too short for tiles (3 channels), vectors that hold all of it are taken
apart or put together.
"""

from collections.abc import Callable, Sequence
from math import prod

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.sweep import in_vectors, merge, rows

SHORT_AXIS = 8
"""Axes below this length are not tiled."""
TILE_BYTES = 64
"""A row of a tile: a cache line."""


def copy(
    source: Array,
    out: Array,
    extents: Sequence[int],
    read: Sequence[int],
    write: Sequence[int],
    begin: int = 0,
    put: int = 0,
) -> None:
    """out[put + i . write] = source[begin + i . read] for every i below extents."""
    if not prod(extents):
        return
    merged, (into, from_) = merge(extents, [write, read])
    walk = _Walk(source, out, merged, from_, into, begin, put)
    along = [axis for axis in range(len(merged) - 1) if from_[axis] == 1]
    if into[-1] == 1 < from_[-1] and along:
        walk.transposed(along[0])
    else:
        walk.straight()


class _Walk:
    """The axes of a copy, and its strides in the source and in the result."""

    def __init__(
        self,
        source: Array,
        out: Array,
        extents: list[int],
        read: list[int],
        write: list[int],
        begin: int,
        put: int,
    ) -> None:
        self.source, self.out = source, out
        self.extents, self.read, self.write = extents, read, write
        self.begin, self.put = begin, put
        self.work = prod(extents)
        self.width = {"float64": 8, "int64": 8, "float32": 4, "int32": 4}.get(out.dtype, 1)

    def straight(self) -> None:
        """Along the last axis, whose elements may lie apart on both sides."""
        lanes, count = TILE_BYTES // self.width, self.extents[-1]
        step, apart = self.read[-1], self.write[-1]

        def line(start: Expr, place: Expr, length: int) -> None:
            def vector(i: Expr, lanes: int) -> None:
                with nest.lanes(count=lanes) as lane:
                    element = self.source[nest.linear([i + lane], [step], start)]
                    self.out.store(nest.linear([i + lane], [apart], place), element)

            in_vectors(length, vector, lanes)

        if len(self.extents) == 1 and count > nest.CHUNK:
            with nest.parallel(-(-count // nest.CHUNK), self.work, "chunk") as chunk:
                first = tirx.min(chunk * nest.CHUNK, count - nest.CHUNK)
                start = nest.linear([first], [step], self.begin)
                line(start, nest.linear([first], [apart], self.put), nest.CHUNK)
            return
        strides = [self.read[:-1], self.write[:-1]]
        with rows(self.extents[:-1], strides, self.work) as (start, place):
            line(start + self.begin, place + self.put, count)

    def transposed(self, axis: int) -> None:
        """Between the last axis, `across`, and `axis`, `down`, along which the source is
        contiguous."""
        pair = (axis, len(self.extents) - 1)
        others = [a for a in range(len(self.extents)) if a not in pair]
        plane = _Plane(
            self.source,
            self.out,
            self.extents[axis],
            self.extents[-1],
            self.read[-1],
            self.write[axis],
        )
        tile = plane.tile(TILE_BYTES // max(self.width, 4))
        if tile is None:
            self.straight()
            return
        lanes, move = tile
        steps = -(-plane.down // lanes)
        extents = [*[self.extents[a] for a in others], steps]
        strides = [[*[s[a] for a in others], 0] for s in (self.read, self.write)]
        number = [0] * len(others) + [1]
        with rows(extents, [*strides, number], self.work) as (start, place, step):
            first = step * lanes
            if plane.down % lanes:
                first = tirx.min(first, plane.down - lanes)
            move(start + self.begin + first, place + self.put + first * plane.write, lanes)


class _Plane:
    """out[place + j * write + i] = source[start + i * read + j], j down, i across."""

    def __init__(
        self, source: Array, out: Array, down: int, across: int, read: int, write: int
    ) -> None:
        self.source, self.out = source, out
        self.down, self.across, self.read, self.write = down, across, read, write

    def tile(self, most: int) -> tuple[int, Callable[[Expr, Expr, int], None]] | None:
        """(length of a piece of `down`, what moves it over all of `across`); None where only
        single elements can be moved."""
        side = min(most, _power(self.down), _power(self.across))
        if side >= SHORT_AXIS:
            return side, self._tiles
        if self.down < SHORT_AXIS and self.read == self.down:
            return self.down, self._apart
        if self.across < SHORT_AXIS and self.write == self.across:
            return min(nest.LANES, _power(self.down)), self._together
        return None

    def _tiles(self, start: Expr, place: Expr, side: int) -> None:
        """Squares of `side`: in round d, lane l of row i swaps places with lane l ^ d of row
        i ^ d where bit d of them differs."""

        def tile(i: Expr, lanes: int) -> None:
            held = [
                _held(self.source[nest.ramp(start + (i + row) * self.read, side)], side, self.out)
                for row in range(side)
            ]
            distance = side // 2
            while distance:
                for row in range(side):
                    if row & distance:
                        continue
                    pair = [held[row], held[row | distance]]
                    low = [c if not c & distance else side + c - distance for c in range(side)]
                    high = [c + distance if not c & distance else side + c for c in range(side)]
                    held[row], held[row | distance] = (
                        _held(_shuffled(pair, side, order), side, self.out) for order in (low, high)
                    )
                distance //= 2
            for row, vector in enumerate(held):
                at = place + row * self.write + i
                self.out.store(nest.ramp(at, side), vector[nest.ramp(0, side)])

        in_vectors(self.across, tile, side)

    def _apart(self, start: Expr, place: Expr, down: int) -> None:
        """Vectors of whole columns, `down` long, one lane of each for every row."""

        def piece(i: Expr, lanes: int) -> None:
            whole = self.source[nest.ramp(start + i * self.read, lanes * down)]
            held = _held(whole, lanes * down, self.out)
            for j in range(down):
                row = _shuffled([held], lanes * down, [j + c * down for c in range(lanes)])
                self.out.store(nest.ramp(place + j * self.write + i, lanes), row)

        in_vectors(self.across, piece)

    def _together(self, start: Expr, place: Expr, lanes: int) -> None:
        """A vector of each of the few rows across, their lanes next to each other."""
        vectors = [
            _held(self.source[nest.ramp(start + i * self.read, lanes)], lanes, self.out)
            for i in range(self.across)
        ]
        order = [i * lanes + j for j in range(lanes) for i in range(self.across)]
        whole = _shuffled(vectors, lanes, order)
        self.out.store(nest.ramp(place, lanes * self.across), whole)


def _power(count: int) -> int:
    """The largest power of two up to count."""
    return 1 << (count.bit_length() - 1)


def _held(vector: Expr, lanes: int, like: Array) -> Array:
    """A vector in a register."""
    register = nest.scratch(lanes, like.dtype)
    register.store(nest.ramp(0, lanes), vector)
    return register


def _shuffled(vectors: Sequence[Array], lanes: int, order: Sequence[int]) -> Expr:
    """Lanes of all vectors in another order."""
    read = [vector[nest.ramp(0, lanes)] for vector in vectors]
    return tirx.Shuffle(read, [tirx.const(place, "int32") for place in order])
