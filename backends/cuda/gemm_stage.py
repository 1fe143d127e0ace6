"""From global to shared memory: how the threads of a block bring a tile of an operand there.

A tile has rows of KS bytes, along k. Its 16-byte chunks are swizzled by the row, so that neither
the eight rows of an ldmatrix nor the stores of a warp meet in a bank. How a tile is brought
depends on how an operand lies:

    Chunks   16 bytes of a row lie together: a copy that runs on its own (cp.async), or a vector
    Blocks   four neighbouring rows lie together: words of four rows, transposed in registers
    Words    four bytes of a row lie together
    Bytes    anything else

A tile is brought in two parts: `load` begins it before the products of another tile, `store` ends
it after them. What is in between is in registers, or under way.
"""

from dataclasses import dataclass
from typing import Protocol

from tvm import tirx

from sqcompile.backends.cuda import grid, intrinsics
from sqcompile.backends.cuda.architectures import Architecture
from sqcompile.backends.cuda.gemm_operands import Operand, Part
from sqcompile.backends.cuda.grid import Array, Expr
from sqcompile.backends.kernels import TensorSpec

KS = 64
"""Bytes of k in a tile."""
CHUNK = 16
"""Bytes of k that stay together in shared memory."""
WORD = 4


def place(row: Expr, chunk: Expr) -> Expr:
    """Where a chunk of a row lies in a tile."""
    key = tirx.bitwise_and(tirx.shift_right(row, grid.const(1, "int32")), KS // CHUNK - 1)
    return row * KS + tirx.bitwise_xor(chunk, key) * CHUNK


def _word_place(row: Expr, word: Expr) -> Expr:
    chunk, inner = tirx.floordiv(word, CHUNK // WORD), tirx.floormod(word, CHUNK // WORD)
    return place(row, chunk) + inner * WORD


@dataclass(frozen=True)
class Tile:
    """A tile of an operand in a block: `rows` of them, from `first` of number `z` on, brought by
    `threads`, of which this is `thread`."""

    operand: Operand
    rows: int
    threads: int
    thread: Expr
    z: Expr
    first: Expr

    def row(self, row: Expr) -> Part:
        """A row of the tile."""
        return self.operand.row(self.z, self.first + row).kept()

    def step(self, k: Expr) -> Part:
        """A step of the reduction."""
        return self.operand.step(self.z, k).kept()

    @property
    def words(self) -> Array:
        """The operand's memory as words."""
        array = self.operand.array
        return grid.viewed(array, TensorSpec((max(array.size // WORD, 1),), "int32"))


class Loader(Protocol):
    """How a tile is brought."""

    def load(self, k: Expr, to: Expr) -> None:
        """Begin the tile of steps k, ..., for the shared memory from `to` on."""
        ...

    def store(self, to: Expr) -> None:
        """End it."""
        ...


def loader(tile: Tile, on: Architecture) -> Loader:
    """The best way for a tile."""
    operand = tile.operand
    if operand.along % CHUNK == 0:
        return _Copies(tile) if on.cp_async else _Vectors(tile)
    if operand.across % WORD == 0:
        return _Blocks(tile)
    return _Words(tile) if operand.along % WORD == 0 else _Bytes(tile)


class _Chunks:
    """A thread brings one chunk of some rows."""

    def __init__(self, tile: Tile) -> None:
        per_row = KS // CHUNK
        apart = tile.threads // per_row
        self.tile, self.count = tile, tile.rows // apart
        self.chunk = tirx.floormod(tile.thread, per_row)
        row = tirx.floordiv(tile.thread, per_row)
        self.rows = [tile.row(row + i * apart) for i in range(self.count)]
        self.place = grid.keep(place(row, self.chunk))
        self.apart = apart * KS

    def _found(self, k: Expr) -> list[tuple[int, Expr, Expr]]:
        step = self.tile.step(k + self.chunk * CHUNK)
        return [(i, *self.tile.operand.at(row, step)) for i, row in enumerate(self.rows)]


class _Copies(_Chunks):
    """By cp.async: nothing passes through registers."""

    def load(self, k: Expr, to: Expr) -> None:
        """Begin the copies."""
        for i, at, there in self._found(k):
            held = grid.keep(there)
            intrinsics.copy(
                grid.cast(to + self.place + i * self.apart, "uint32"),
                self.tile.operand.array,
                grid.select(held, at, 0),
                grid.select(held, grid.const(CHUNK, "int32"), grid.zero("int32")),
            )

    def store(self, to: Expr) -> None:
        """They end on their own."""


class _Vectors(_Chunks):
    """Through registers."""

    def __init__(self, tile: Tile) -> None:
        super().__init__(tile)
        self.words, self.held = tile.words, grid.slots(self.count * WORD, "int32")

    def load(self, k: Expr, to: Expr) -> None:
        """Vector loads."""
        for i, at, there in self._found(k):
            for word in range(WORD):
                self.held.store(i * WORD + word, grid.zero("int32"))
            with grid.when(there):
                first = tirx.shift_right(at, grid.const(2, "int32"))
                self.held.store(grid.ramp(i * WORD), self.words[grid.ramp(first)])

    def store(self, to: Expr) -> None:
        """Vector stores."""
        for i in range(self.count):
            words = [self.held[i * WORD + word] for word in range(WORD)]
            at = grid.cast(to + self.place + i * self.apart, "uint32")
            intrinsics.store_shared_vector(at, words)


class _Held:
    """Words that wait in registers, `places` in the tile."""

    def __init__(self, tile: Tile, count: int) -> None:
        self.tile, self.count = tile, count
        self.held = grid.slots(count, "int32")

    def place(self, i: int) -> Expr:
        """Where word i goes."""
        raise NotImplementedError

    def store(self, to: Expr) -> None:
        """The words as they are."""
        for i in range(self.count):
            intrinsics.store_shared(grid.cast(to + self.place(i), "uint32"), self.held[i])


class _Words(_Held):
    """A thread brings one word of some rows: neighbours take neighbouring words of a row."""

    def __init__(self, tile: Tile) -> None:
        per_row = KS // WORD
        super().__init__(tile, tile.rows * per_row // tile.threads)
        self.word = tirx.floormod(tile.thread, per_row)
        self.first, self.apart = tirx.floordiv(tile.thread, per_row), tile.threads // per_row
        self.rows = [tile.row(self.first + i * self.apart) for i in range(self.count)]
        self.words = tile.words

    def place(self, i: int) -> Expr:
        """In row i of the thread."""
        return _word_place(self.first + i * self.apart, self.word)

    def load(self, k: Expr, to: Expr) -> None:
        """A word of each row."""
        step = self.tile.step(k + self.word * WORD)
        for i, row in enumerate(self.rows):
            at, there = self.tile.operand.at(row, step)
            word = self.words[tirx.shift_right(at, grid.const(2, "int32"))]
            self.held.store(i, tirx.if_then_else(there, word, grid.zero("int32")))


class _Bytes(_Held):
    """A thread makes words of four bytes: neighbours take neighbouring rows where these lie side by
    side, neighbouring words of a row otherwise."""

    def __init__(self, tile: Tile) -> None:
        per_row = KS // WORD
        super().__init__(tile, tile.rows * per_row // tile.threads)
        self.by_row = tile.operand.adjacent
        if self.by_row:
            self.row, self.apart = tirx.floormod(tile.thread, tile.rows), tile.threads // tile.rows
            self.word = tirx.floordiv(tile.thread, tile.rows)
            self.rows = [tile.row(self.row)] * self.count
        else:
            self.word, self.apart = tirx.floormod(tile.thread, per_row), tile.threads // per_row
            self.row = tirx.floordiv(tile.thread, per_row)
            self.rows = [tile.row(self.row + i * self.apart) for i in range(self.count)]

    def place(self, i: int) -> Expr:
        """In row or word i of the thread."""
        if self.by_row:
            return _word_place(self.row, self.word + i * self.apart)
        return _word_place(self.row + i * self.apart, self.word)

    def load(self, k: Expr, to: Expr) -> None:
        """Four loads for each word."""
        steps: list[Part] = []
        for i, row in enumerate(self.rows):
            if self.by_row or not i:
                word = self.word + i * self.apart if self.by_row else self.word
                steps = [self.tile.step(k + word * WORD + byte) for byte in range(WORD)]
            parts = [self._byte(row, step, place) for place, step in enumerate(steps)]
            first, second, third, fourth = parts
            low, high = tirx.bitwise_or(first, second), tirx.bitwise_or(third, fourth)
            self.held.store(i, tirx.bitwise_or(low, high))

    def _byte(self, row: Part, step: Part, place: int) -> Expr:
        at, there = self.tile.operand.at(row, step)
        value = grid.cast(self.tile.operand.array[at], "int32")
        byte = tirx.bitwise_and(value, grid.const(255, "int32"))
        read = tirx.if_then_else(there, byte, grid.zero("int32"))
        return tirx.shift_left(read, grid.const(8 * place, "int32"))


class _Blocks:
    """A thread brings blocks of four rows and four steps, which it reads as words of four rows:
    neighbours take neighbouring rows."""

    def __init__(self, tile: Tile) -> None:
        groups = tile.rows // WORD
        self.tile, self.count = tile, groups * (KS // WORD) // tile.threads
        self.first = tirx.floormod(tile.thread, groups) * WORD
        self.word, self.apart = tirx.floordiv(tile.thread, groups), tile.threads // groups
        self.row = tile.row(self.first)
        self.words, self.held = tile.words, grid.slots(self.count * WORD, "int32")

    def load(self, k: Expr, to: Expr) -> None:
        """A word for each of four steps."""
        for i in range(self.count):
            first = k + (self.word + i * self.apart) * WORD
            for j in range(WORD):
                at, there = self.tile.operand.at(self.row, self.tile.step(first + j))
                word = self.words[tirx.shift_right(at, grid.const(2, "int32"))]
                self.held.store(i * WORD + j, tirx.if_then_else(there, word, grid.zero("int32")))

    def store(self, to: Expr) -> None:
        """A word for each of four rows."""
        for i in range(self.count):
            words = [self.held[i * WORD + j] for j in range(WORD)]
            for row, word in enumerate(transposed(words)):
                at = _word_place(self.first + row, self.word + i * self.apart)
                intrinsics.store_shared(grid.cast(to + at, "uint32"), word)


def transposed(words: list[Expr]) -> list[Expr]:
    """Words whose byte j of word i was byte i of word j."""
    result = []
    for low, high in ((0x5140, 0x5410), (0x5140, 0x7632), (0x7362, 0x5410), (0x7362, 0x7632)):
        pairs = [intrinsics.bytes_of(words[i], words[i + 1], low) for i in (0, 2)]
        result.append(grid.keep(intrinsics.bytes_of(*pairs, high)))
    return result
