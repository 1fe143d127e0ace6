"""From global to shared memory: how the threads of a block bring a tile of an operand there.

A tile has rows of KS bytes, along k. Its 16-byte chunks are swizzled by the row, so that neither
the eight rows of an ldmatrix nor the stores of a warp meet in a bank. How a tile is brought
depends on how an operand lies:

    Chunks   16 bytes of a row lie together: a copy that runs on its own (cp.async), or a vector
    Blocks   four neighbouring rows lie together: words of four rows, transposed in registers
    Words    four bytes of a row lie together
    Columns  neighbouring rows lie side by side, on any boundary
    Bytes    anything else

What is multiplied as nibbles and lies as bytes is joined on the way, two steps to a byte
(`per_byte`): by blocks, which have eight steps then, columns or bytes.

A tile is brought in two parts: `load` begins it before the products of another tile, `store` ends
it after them. What is in between is in registers, or under way.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tvm import tirx

from sqcompile.backends.cuda import grid, intrinsics
from sqcompile.backends.cuda.architectures import Architecture
from sqcompile.backends.cuda.gemm_operands import Operand, Part, Parts
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


def in_words(index: Expr) -> Expr:
    """The index of a word, of that of its first byte."""
    return tirx.shift_right(index, grid.const(2, "int32"))


def word_place(row: Expr, word: Expr) -> Expr:
    """Where a word of a row lies in a tile."""
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
        return self.operand.row(self.z, self.first + row)

    def step(self, k: Expr) -> Part:
        """A step of the reduction."""
        return self.operand.step(self.z, k)

    def parts(self, count: int, part: Callable[[Expr], Part]) -> Parts:
        """part(i) of the first `count` numbers, in registers."""
        kept = Parts(count)
        with grid.unrolled(count) as i:
            kept.store(i, part(i))
        return kept

    def word_steps(self, k: Expr) -> Parts:
        """The steps of the word at byte k of a row."""
        per_byte = self.operand.per_byte
        return self.parts(WORD * per_byte, lambda i: self.step(k * per_byte + i))

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
    whole = operand.along if operand.per_byte == 1 else 1
    if whole % CHUNK == 0:
        return _Copies(tile) if on.cp_async else _Vectors(tile)
    if operand.across % WORD == 0:
        return _Blocks(tile)
    if whole % WORD == 0:
        return _Words(tile)
    if operand.adjacent:
        return _Columns(tile) if operand.per_byte == 1 else _ColumnsInOrder(tile)
    return _Bytes(tile)


class _Chunks:
    """A thread brings one chunk of some rows."""

    def __init__(self, tile: Tile) -> None:
        per_row = KS // CHUNK
        apart = tile.threads // per_row
        self.tile, self.count, self.apart = tile, tile.rows // apart, apart * KS
        self.chunk = tirx.floormod(tile.thread, per_row)
        row = tirx.floordiv(tile.thread, per_row)
        self.rows = tile.parts(self.count, lambda i: tile.row(row + i * apart))
        self.place = grid.keep(place(row, self.chunk))

    def _each(self, k: Expr, emit: Callable[[Expr, Expr, Expr], None]) -> None:
        """emit(i, place, whether it is there) of the chunk of every row."""
        step = self.tile.step(k + self.chunk * CHUNK).kept()
        with grid.unrolled(self.count) as i:
            emit(i, *self.tile.operand.at(self.rows[i], step))


class _Copies(_Chunks):
    """By cp.async: nothing passes through registers."""

    def load(self, k: Expr, to: Expr) -> None:
        """Begin the copies."""

        def one(i: Expr, at: Expr, there: Expr) -> None:
            held = grid.keep(there)
            intrinsics.copy(
                grid.cast(to + self.place + i * self.apart, "uint32"),
                self.tile.operand.array,
                grid.select(held, at, 0),
                grid.select(held, grid.const(CHUNK, "int32"), grid.zero("int32")),
            )

        self._each(k, one)

    def store(self, to: Expr) -> None:
        """They end on their own."""


class _Vectors(_Chunks):
    """Through registers."""

    def __init__(self, tile: Tile) -> None:
        super().__init__(tile)
        self.words, self.held = tile.words, grid.slots(self.count * WORD, "int32")

    def load(self, k: Expr, to: Expr) -> None:
        """Vector loads."""

        def one(i: Expr, at: Expr, there: Expr) -> None:
            for word in range(WORD):
                self.held.store(i * WORD + word, grid.zero("int32"))
            with grid.when(there):
                grid.load(self.words, in_words(at), self.held, i * WORD)

        self._each(k, one)

    def store(self, to: Expr) -> None:
        """Vector stores."""
        with grid.unrolled(self.count) as i:
            words = [self.held[i * WORD + word] for word in range(WORD)]
            at = grid.cast(to + self.place + i * self.apart, "uint32")
            intrinsics.store_shared_vector(at, words)


class _Words:
    """A thread brings one word of some rows: neighbours take neighbouring words of a row."""

    def __init__(self, tile: Tile) -> None:
        per_row = KS // WORD
        self.tile, self.count = tile, tile.rows * per_row // tile.threads
        self.word = tirx.floormod(tile.thread, per_row)
        self.first, self.apart = tirx.floordiv(tile.thread, per_row), tile.threads // per_row
        self.rows = tile.parts(self.count, lambda i: tile.row(self.first + i * self.apart))
        self.words, self.held = tile.words, grid.slots(self.count, "int32")

    def load(self, k: Expr, to: Expr) -> None:
        """A word of each row."""
        step = self.tile.step(k + self.word * WORD).kept()
        with grid.unrolled(self.count) as i:
            at, there = self.tile.operand.at(self.rows[i], step)
            word = self.words[in_words(at)]
            self.held.store(i, tirx.if_then_else(there, word, grid.zero("int32")))

    def store(self, to: Expr) -> None:
        """The words as they are."""
        with grid.unrolled(self.count) as i:
            at = to + word_place(self.first + i * self.apart, self.word)
            intrinsics.store_shared(grid.cast(at, "uint32"), self.held[i])


class _Bytes(_Words):
    """A thread makes words of the bytes of some rows."""

    def load(self, k: Expr, to: Expr) -> None:
        """A load for each step of a word."""
        steps = self.tile.word_steps(k + self.word * WORD)
        with grid.unrolled(self.count) as i:
            self.held.store(i, joined(self.tile.operand, self.rows[i], steps))


class _Columns:
    """A thread makes words of the bytes of one row: neighbours take neighbouring rows."""

    def __init__(self, tile: Tile) -> None:
        self.tile, self.count = tile, tile.rows * (KS // WORD) // tile.threads
        self.row, self.apart = tirx.floormod(tile.thread, tile.rows), tile.threads // tile.rows
        self.word = tirx.floordiv(tile.thread, tile.rows)
        self.rows = tile.parts(1, lambda _: tile.row(self.row))
        self.held = grid.slots(self.count, "int32")

    def load(self, k: Expr, to: Expr) -> None:
        """A load for each step of a word."""
        with grid.unrolled(self.count) as i:
            steps = self.tile.word_steps(k + (self.word + i * self.apart) * WORD)
            self.held.store(i, joined(self.tile.operand, self.rows[0], steps))

    def store(self, to: Expr) -> None:
        """The words as they are."""
        with grid.unrolled(self.count) as i:
            at = to + word_place(self.row, self.word + i * self.apart)
            intrinsics.store_shared(grid.cast(at, "uint32"), self.held[i])


class _ColumnsInOrder(_Columns):
    """The same word by word, each stored at once: the loads of nibbles, twice as many, would take
    more registers than there are."""

    def load(self, k: Expr, to: Expr) -> None:
        """All of it."""
        with grid.serial(self.count, "word") as i:
            word = self.word + i * self.apart
            value = joined(self.tile.operand, self.rows[0], self.tile.word_steps(k + word * WORD))
            at = to + word_place(self.row, word)
            intrinsics.store_shared(grid.cast(at, "uint32"), value)

    def store(self, to: Expr) -> None:
        """Nothing is left."""


def joined(operand: Operand, row: Part, steps: Parts) -> Expr:
    """The word of a row's elements at its steps."""
    word = grid.slots(1, "int32")
    word.store(0, grid.zero("int32"))
    bits = 8 // operand.per_byte
    low = grid.const((1 << bits) - 1, "int32")
    with grid.unrolled(WORD * operand.per_byte, "step") as i:
        at, there = operand.at(row, steps[i])
        value = tirx.bitwise_and(grid.cast(operand.array[at], "int32"), low)
        read = tirx.if_then_else(there, value, grid.zero("int32"))
        moved = tirx.shift_left(grid.cast(read, "uint32"), grid.cast(i * bits, "uint32"))
        word.store(0, tirx.bitwise_or(word[0], grid.cast(moved, "int32")))
    return word[0]


class _Blocks:
    """A thread brings blocks of four rows and the steps of a word, which it reads as words of four
    rows: neighbours take neighbouring rows."""

    def __init__(self, tile: Tile) -> None:
        groups = tile.rows // WORD
        self.tile, self.count = tile, groups * (KS // WORD) // tile.threads
        self.first = tirx.floormod(tile.thread, groups) * WORD
        self.word, self.apart = tirx.floordiv(tile.thread, groups), tile.threads // groups
        self.rows = tile.parts(1, lambda _: tile.row(self.first))
        self.steps = WORD * tile.operand.per_byte
        self.words, self.held = tile.words, grid.slots(self.count * self.steps, "int32")

    def load(self, k: Expr, to: Expr) -> None:
        """A word for each step."""
        first = k * self.tile.operand.per_byte + self.word * self.steps
        with grid.unrolled(self.count) as i, grid.unrolled(self.steps, "step") as j:
            step = self.tile.step(first + i * (self.apart * self.steps) + j).kept()
            at, there = self.tile.operand.at(self.rows[0], step)
            word = self.words[in_words(at)]
            self.held.store(i * self.steps + j, tirx.if_then_else(there, word, grid.zero("int32")))

    def store(self, to: Expr) -> None:
        """A word for each of four rows."""
        with grid.unrolled(self.count) as i:
            words = [self.held[i * self.steps + j] for j in range(self.steps)]
            if self.steps > WORD:
                words = [nibbles(*words[j : j + 2]) for j in range(0, self.steps, 2)]
            for row, word in enumerate(transposed(words)):
                at = to + word_place(self.first + row, self.word + i * self.apart)
                intrinsics.store_shared(grid.cast(at, "uint32"), word)


def nibbles(low: Expr, high: Expr) -> Expr:
    """The low nibbles of the bytes of two words, those of the second above those of the first."""
    mask = grid.const(0x0F0F0F0F, "uint32")
    low, high = (tirx.bitwise_and(grid.cast(word, "uint32"), mask) for word in (low, high))
    moved = tirx.shift_left(high, grid.const(4, "uint32"))
    return grid.keep(grid.cast(tirx.bitwise_or(low, moved), "int32"))


def transposed(words: list[Expr]) -> list[Expr]:
    """Words whose byte j of word i was byte i of word j."""
    result = []
    for low, high in ((0x5140, 0x5410), (0x5140, 0x7632), (0x7362, 0x5410), (0x7362, 0x7632)):
        first = intrinsics.bytes_of(words[0], words[1], low)
        second = intrinsics.bytes_of(words[2], words[3], low)
        result.append(grid.keep(intrinsics.bytes_of(first, second, high)))
    return result
