"""Weights (O, C, 3, 3) as nine vectors, one for each tap: a lane is a column of the product, its
four bytes are four reduced channels, modulo 256.

Taps are innermost in memory, nine bytes apart from one channel to the next. Both readers bring
them into order with a transposition of 16 x 16 dwords of which nine columns are used.
"""

from dataclasses import dataclass

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.machine import Dot
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.winograd_input import WIDTH, clear, pieces, repeated, span
from sqcompile.backends.cpu.winograd_ranges import SIDE, TAPS, padded

COUNT = len(TAPS)
SEGMENT = 16
"""Steps of four channels that are staged at a time, in L1."""
_LANES = 16


@dataclass(frozen=True)
class Filters:
    """Weights (O, C, 3, 3) seen as `depth` reduced channels times `columns` results: fprop
    reduces C, dgrad (`flipped`) reduces O and turns the taps around.

    A block holds `vectors` vectors of columns: [column pair][column][row pair][depth / 4][row of
    the pair][vector][lane][4 channels], as products read it.
    """

    depth: int
    columns: int
    flipped: bool
    vectors: int
    dot: Dot

    @property
    def width(self) -> int:
        """Columns of a block."""
        return self.vectors * self.dot.lanes

    @property
    def blocks(self) -> int:
        """Blocks of all columns."""
        return -(-self.columns // self.width)

    @property
    def steps(self) -> int:
        """Dot products over the depth."""
        return padded(self.depth, self.dot.depth) // self.dot.depth

    @property
    def vector(self) -> int:
        """Bytes of a vector."""
        return self.dot.lanes * self.dot.depth

    @property
    def pair(self) -> int:
        """Bytes of two rows of one column."""
        return self.steps * 2 * self.vectors * self.vector

    @property
    def block(self) -> int:
        """Bytes of a block."""
        return SIDE * 2 * self.pair


class Straight:
    """Taps of fprop: a lane is an output channel, whose weights are one row of 9 C bytes.

    Four channels are nine dwords of a row. Transposed, dword d of all lanes is a vector; the four
    bytes of tap t come from dwords (t + 9 c) / 4, where byte c is byte (t + c) mod 4: three
    selections and a rotation.
    """

    row = SEGMENT * COUNT * 4 + WIDTH

    def __init__(self, filters: Filters, source: Array) -> None:
        self.filters, self.source = filters, source
        self.panel = nest.scratch(_LANES * self.row, "uint8")

    def stage(self, column: Expr, before: Expr, steps: Expr) -> None:
        """Copy what 16 lanes need from step `before` on, zeros after the last channel."""
        filters = self.filters
        length, whole = SEGMENT * COUNT * 4, filters.depth // (SEGMENT * 4)
        rest = filters.depth * COUNT - whole * length
        with nest.serial(tirx.min(_LANES, filters.columns - column), "lane") as lane:
            start, base = lane * self.row, (column + lane) * (filters.depth * COUNT)
            if whole:
                with nest.when(before < whole * SEGMENT):
                    self._copy(start, base + before * (COUNT * 4), length)
            if rest:
                with nest.when(tirx.EQ(before, whole * SEGMENT)):
                    self._copy(start, base + whole * length, rest)
                    clear(self.panel, start + rest, padded(rest, COUNT * 4) - rest)

    def _copy(self, to: Expr, base: Expr, length: int) -> None:
        for at, lanes in pieces(length):
            value = self.source[span(base + at, lanes)]
            self.panel.store(span(to + at, lanes), nest.cast(value, "uint8", lanes))

    def read(self, k: Expr) -> list[Expr]:
        """The taps of step k of the segment."""
        rows = [
            nest.bound(_as("uint32", self.panel[nest.ramp(lane * self.row + k * 36, WIDTH)]))
            for lane in range(_LANES)
        ]
        words = transposed(rows)
        taps = [_as("uint8", self._tap(words, t)) for t in range(COUNT)]
        return nest.kept(taps, "uint8", WIDTH)

    def _tap(self, words: list[Expr], t: int) -> Expr:
        total = None
        for channel in range(4):
            byte = (t + channel) % 4
            mask = nest.splat(nest.const(255 << 8 * byte, "uint32"), _LANES)
            part = tirx.bitwise_and(words[(t + COUNT * channel) // 4], mask)
            total = part if total is None else tirx.bitwise_or(total, part)
        if not t % 4:
            return total
        right, left = (nest.splat(nest.const(n, "uint32"), _LANES) for n in _turns(t % 4))
        return tirx.bitwise_or(tirx.shift_right(total, right), tirx.shift_left(total, left))


class Turned:
    """Taps of dgrad, in reverse: a lane is an input channel, the bytes are four output channels.

    The bytes of four rows are interleaved to dwords, nine of which belong to a lane.
    """

    row = _LANES * COUNT + _LANES

    def __init__(self, filters: Filters, source: Array) -> None:
        self.filters, self.source = filters, source
        self.panel = nest.scratch(SEGMENT * self.row * 4, "uint8")

    def stage(self, column: Expr, before: Expr, steps: Expr) -> None:
        """Interleave the rows of `steps` steps from step `before` on for 16 lanes."""
        left = self.filters.columns - column
        with nest.serial(steps, "k") as k:
            start, channel = k * self.row, (before + k) * 4
            with nest.when(left >= _LANES), nest.serial(COUNT, "piece") as piece:
                self._interleave(start + piece * _LANES, channel, column, piece * _LANES, _LANES)
            if self.filters.columns % _LANES:
                with nest.when(left < _LANES), nest.serial(left * COUNT, "byte") as byte:
                    self._interleave(start + byte, channel, column, byte, 1)

    def _interleave(self, to: Expr, channel: Expr, column: Expr, byte: Expr, lanes: int) -> None:
        depth, columns = self.filters.depth, self.filters.columns
        rows = []
        for place in range(4):
            row = channel + place
            if depth % 4:
                row = tirx.min(row, depth - 1)
            at = (row * columns + column) * COUNT + byte
            rows.append(nest.cast(self.source[span(at, lanes)], "uint8", lanes))
        places = [place * lanes + lane for lane in range(lanes) for place in range(4)]
        value = tirx.Shuffle(rows, [nest.const(one, "int32") for one in places])
        if depth % 4:
            inside = nest.const(2 ** (8 * (depth % 4)) - 1, "uint32")
            inside = nest.select(channel + 4 > depth, inside, nest.const(2**32 - 1, "uint32"))
            value = tirx.bitwise_and(value, repeated(inside, lanes))
        self.panel.store(nest.ramp(to * 4, 4 * lanes), value)

    def read(self, k: Expr) -> list[Expr]:
        """The taps of step k of the segment."""
        rows = [
            nest.bound(
                _as("uint32", self.panel[nest.ramp((k * self.row + lane * COUNT) * 4, WIDTH)])
            )
            for lane in range(_LANES)
        ]
        return [_as("uint8", word) for word in transposed(rows)[::-1]]


def _within(*places: int) -> list[int]:
    """The same places of every 128 bits of two vectors, those of the second from four on."""
    return [4 * q + p % 4 + _LANES * (p // 4) for q in range(4) for p in places]


_LOW, _HIGH = _within(0, 4, 1, 5), _within(2, 6, 3, 7)
_LOW_PAIRS, _HIGH_PAIRS = _within(0, 1, 4, 5), _within(2, 3, 6, 7)


def _turns(count: int) -> tuple[int, int]:
    """Bits right and left of a rotation by `count` bytes."""
    return 8 * count, 32 - 8 * count


def _as(dtype: str, vector: Expr) -> Expr:
    return tirx.reinterpret(f"{dtype}x{WIDTH if dtype == 'uint8' else _LANES}", vector)


def transposed(rows: list[Expr]) -> list[Expr]:
    """The first nine columns of 16 rows of 16 dwords: in every 128 bits dwords, then pairs of
    them are interleaved, then 128 bits move."""
    parts = []
    for a, b, c, d in zip(rows[::4], rows[1::4], rows[2::4], rows[3::4], strict=True):
        for one in (_LOW, _HIGH):
            x, y = _mix(a, b, one), _mix(c, d, one)
            parts += [_mix(x, y, two) for two in (_LOW_PAIRS, _HIGH_PAIRS)]
    held = nest.kept(parts, "uint32", _LANES)
    first, second = [], []
    for j in range(4):
        one = held[j::4]
        left, right = (_mix(one[q], one[q + 1], _quarters(0, 1, 0, 1)) for q in (0, 2))
        first.append(_mix(left, right, _quarters(0, 2, 0, 2)))
        second.append(_mix(left, right, _quarters(1, 3, 1, 3)))
    left, right = (_mix(held[4 * q], held[4 * q + 4], _quarters(2, 2, 2, 2)) for q in (0, 2))
    words = [*first, *second, _mix(left, right, _quarters(0, 2, 0, 2))]
    return nest.kept(words, "uint32", _LANES)


def _quarters(*numbers: int) -> list[int]:
    """Two quarters of one vector, two of the next."""
    starts = [4 * n + _LANES * (i // 2) for i, n in enumerate(numbers)]
    return [start + i for start in starts for i in range(4)]


def _mix(a: Expr, b: Expr, places: list[int]) -> Expr:
    return tirx.Shuffle([a, b], [nest.const(one, "int32") for one in places])
