"""The product of two operands: tiles in shared memory, matrix instructions, one launch.

A block computes a tile of rows of A times rows of B; a warp of it has WARP_TILE of each, as
accumulators in registers. Tiles along k pass through a ring of stages in shared memory: those of
later steps are on their way while one is multiplied, with one barrier for each. Results go
through shared memory to whoever finishes them, so that neighbouring threads have neighbouring
columns.

The reduction may be cut into slices, each a block of its own, whose sums are added in memory:
integers have no order. An operand may have several planes, bytes of wider integers (see
`gemm_shift`); each has accumulators of its own.

The instruction is the architecture's: m16n8k32 from sm_80 on, m8n8k16 on sm_75, whose fragments
are quarters of the same registers, dp4a without matrix instructions; for nibbles (`gemm_nibbles`)
m16n8k64 and m8n8k32, whose registers are the same again.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tvm import tirx

from sqcompile.backends.cuda import architectures, grid, intrinsics
from sqcompile.backends.cuda.architectures import Architecture
from sqcompile.backends.cuda.gemm_operands import Image, Operand
from sqcompile.backends.cuda.gemm_shift import BYTE
from sqcompile.backends.cuda.gemm_stage import KS, WORD, Loader, Tile, loader, place, word_place
from sqcompile.backends.cuda.grid import WARP, Array, Expr

WARP_TILE = 32
"""Rows of A and of B of a warp."""
_PAD = 8
"""Words between rows of results in shared memory: rows of a warp's quarters meet in no bank."""
_HALVES = KS // 32
_SMALL, _LARGE = 64, 1024
ENOUGH_BLOCKS = 256
"""Blocks that keep a GPU busy: with fewer a long reduction is cut."""
LEAST_STEPS = 512
"""Steps of k of a slice, at least."""


@dataclass(frozen=True)
class Tiling:
    """Rows of A and of B of a block, and tiles of k in shared memory."""

    rows: int
    columns: int
    stages: int

    @classmethod
    def of(cls, m: int, n: int, planes: int, on: Architecture, least: int) -> "Tiling":
        """For results (m, n): small ones have small tiles of `least` or more, several planes fewer
        stages."""
        rows, columns = (min(_SMALL, max(-(-size // least), 1) * least) for size in (m, n))
        if m >= _LARGE and columns == _SMALL and planes == 1:
            rows *= 2
        return cls(rows, columns, 3 if on.cp_async and planes == 1 else 2)

    @property
    def threads(self) -> int:
        """A warp for every WARP_TILE x WARP_TILE results."""
        return self.rows * self.columns // WARP_TILE


class Results(Protocol):
    """What takes sums: `put` those of one block and plane, in the thread that has one."""

    apart: bool
    """Whether sums of planes come one by one, with the plane's number."""

    def start(self) -> None:
        """In every thread, before its sums."""
        ...

    def put(self, z: Expr, m: Expr, n: Expr, value: Expr, plane: int) -> None:
        """A sum, int32."""
        ...

    def leave(self, lane: Expr) -> None:
        """In every thread of all warps, after its sums."""
        ...


@dataclass(frozen=True)
class Gemm:
    """A product: the planes of its operands, of which one has several at most, `batch` times.

    signed: of the highest plane of each operand; lower ones are unsigned. bits: of an integer in a
    plane; a byte of nibbles holds two steps (see `gemm_nibbles`), and counts as one here.
    """

    a: Sequence[Operand]
    b: Sequence[Operand]
    signed: tuple[bool, bool]
    batch: int = 1
    bits: int = BYTE

    @property
    def m(self) -> int:
        """Rows of the result."""
        return self.a[0].rows

    @property
    def n(self) -> int:
        """Columns of the result."""
        return self.b[0].rows

    @property
    def planes(self) -> int:
        """Sums that each result has."""
        return max(len(self.a), len(self.b))

    @property
    def tiles(self) -> int:
        """Tiles along k."""
        return -(-self.a[0].steps // KS)

    def kinds(self, plane: int) -> tuple[str, str]:
        """The types of both operands in a plane."""
        return tuple(  # type: ignore[return-value]
            f"{'s' if signed and plane >= len(side) - 1 else 'u'}{self.bits}"
            for side, signed in zip((self.a, self.b), self.signed, strict=True)
        )

    def tiling(self) -> Tiling:
        """The block's tile. Pixels gathered byte by byte (in gradients of weights) want more
        threads: each keeps the coordinates of all its rows in registers."""
        bytewise = any(isinstance(one, Image) and one.together % WORD for one in (*self.a, *self.b))
        least = _SMALL if bytewise else WARP_TILE
        return Tiling.of(self.m, self.n, self.planes, architectures.current(), least)

    def blocks(self) -> int:
        """Blocks of a slice."""
        tiling = self.tiling()
        return self.batch * -(-self.m // tiling.rows) * -(-self.n // tiling.columns)

    def slices(self, most_tiles: int) -> int:
        """Parts of the reduction, each of `most_tiles` at most."""
        wanted = -(-ENOUGH_BLOCKS // max(self.blocks(), 1))
        most = self.tiles * KS * BYTE // self.bits // LEAST_STEPS
        return max(1, min(wanted, most), -(-self.tiles // most_tiles))

    def launch(self, results: Results, slices: int = 1) -> None:
        """One launch, if there are results."""
        if not self.batch * self.m * self.n:
            return
        tiling = self.tiling()
        over = [self.batch, slices, -(-self.m // tiling.rows), -(-self.n // tiling.columns)]
        with grid.launch(slices * self.blocks(), tiling.threads) as (block, thread):
            z, part, row, column = grid.unravel(block, over)
            at = (grid.keep(z), row * tiling.rows, column * tiling.columns)
            _Block(self, tiling, thread, at, results).emit(part, slices)


class _Block:
    """What one block does."""

    def __init__(
        self,
        gemm: Gemm,
        tiling: Tiling,
        thread: Expr,
        at: tuple[Expr, Expr, Expr],
        results: Results,
    ) -> None:
        self.gemm, self.tiling, self.thread, self.results = gemm, tiling, thread, results
        self.z, self.row, self.column = at
        self.on = architectures.current()
        sizes = [tiling.rows * KS] * len(gemm.a) + [tiling.columns * KS] * len(gemm.b)
        self.offsets = [sum(sizes[:i]) for i in range(len(sizes))]
        self.stage = sum(sizes)
        self.pitch = tiling.columns + _PAD
        shared = max(self.stage * tiling.stages, tiling.rows * self.pitch * WORD)
        self.base = grid.keep(grid.cast(intrinsics.shared(shared), "int32"))
        self.lane = tirx.floormod(thread, WARP)
        across = tiling.columns // WARP_TILE
        warp = tirx.floordiv(thread, WARP)
        self.warp_row = tirx.floordiv(warp, across) * WARP_TILE
        self.warp_column = tirx.floormod(warp, across) * WARP_TILE

    def emit(self, part: Expr, slices: int) -> None:
        """All of it, for a slice of the reduction."""
        self.warp = _warp(self)
        self.warp.clear()
        if self.gemm.tiles:
            per = -(-self.gemm.tiles // slices)
            first = grid.keep(part * per)
            end = grid.keep(tirx.min(first + per, grid.const(self.gemm.tiles, "int32")))
            self._reduce(first, end)
        self._finish()

    def _loaders(self) -> list[Loader]:
        sides = [(one, self.tiling.rows, self.row) for one in self.gemm.a]
        sides += [(one, self.tiling.columns, self.column) for one in self.gemm.b]
        return [
            loader(Tile(one, rows, self.tiling.threads, self.thread, self.z, first), self.on)
            for one, rows, first in sides
        ]

    def _reduce(self, first: Expr, end: Expr) -> None:
        """Tiles first .. end - 1 of k."""
        loaders, stages = self._loaders(), self.tiling.stages

        def each(what: Callable[[Loader, Expr], None], tile: Expr) -> None:
            """One part of bringing a tile, if there is one."""
            to = grid.keep(self._stage(tile - first))
            with grid.when(tile < end):
                for one, offset in zip(loaders, self.offsets, strict=True):
                    what(one, to + offset)

        def bring(tile: Expr) -> None:
            each(lambda one, to: one.load(tile * KS, to), tile)
            if self.on.cp_async:
                intrinsics.commit()

        # The first passes only bring tiles: the code that does is there once.
        with grid.serial(end, "tile", first - (stages - 1)) as tile:
            if self.on.cp_async:
                intrinsics.wait(stages - 2)
            intrinsics.barrier()
            bring(tile + (stages - 1))
            with grid.when(tile >= first):
                self.warp.multiply(grid.keep(self._stage(tile - first)))
            each(lambda one, to: one.store(to), tile + (stages - 1))
        intrinsics.barrier()

    def _stage(self, tile: Expr) -> Expr:
        number = tirx.floormod(tile + self.tiling.stages, self.tiling.stages)
        return self.base + number * self.stage

    def _finish(self) -> None:
        """Sums to whoever takes them: of all planes together, or plane by plane."""
        self.results.start()
        planes = self.gemm.planes
        together = [list(range(planes))]
        for number, taken in enumerate(
            [[plane] for plane in range(planes)] if self.results.apart else together
        ):
            if number:
                intrinsics.barrier()
            self._spread(taken)
            intrinsics.barrier()
            self._put(taken[0])
        self.results.leave(self.lane)

    def _spread(self, planes: Sequence[int]) -> None:
        """Sums of some planes into shared memory, each plane its bits above the one before it."""
        warp = self.warp
        with grid.unrolled(warp.count) as i:
            total = grid.cast(warp.held[planes[0] * warp.count + i], "uint32")
            for plane in planes[1:]:
                wide = grid.cast(warp.held[plane * warp.count + i], "uint32")
                total = total + tirx.shift_left(wide, grid.const(self.gemm.bits * plane, "uint32"))
            row, column = warp.at(i)
            at = self.base + (row * self.pitch + column) * WORD
            intrinsics.store_shared(grid.cast(at, "uint32"), grid.cast(total, "int32"))

    def _put(self, plane: int) -> None:
        tiling, gemm = self.tiling, self.gemm
        with grid.serial(tiling.rows * tiling.columns // tiling.threads, "e") as e:
            item = e * tiling.threads + self.thread
            row = tirx.floordiv(item, tiling.columns)
            column = tirx.floormod(item, tiling.columns)
            m, n = self.row + row, self.column + column
            with grid.when(tirx.And(m < gemm.m, n < gemm.n)):
                at = self.base + (row * self.pitch + column) * WORD
                value = grid.keep(intrinsics.load_shared(grid.cast(at, "uint32")))
                self.results.put(self.z, m, n, value, plane)


def _warp(block: _Block) -> "_Warp":
    if not block.on.mma:
        return _DotWarp(block)
    return _MatrixWarp(block)


class _Warp(ABC):
    """The accumulators of a thread: of rows lane / 4 + 0, 8, 16, 24 and columns 2 * (lane % 4) +
    0, 1, + 0, 8, 16, 24 of the warp's tile, as matrix instructions have them."""

    count = 32
    """Of a plane."""

    def __init__(self, block: _Block) -> None:
        self.block, self.gemm = block, block.gemm
        self.held = intrinsics.local(self.count * self.gemm.planes)
        self.quarter = tirx.floordiv(block.lane, 4)
        self.column = tirx.floormod(block.lane, 4)

    def clear(self) -> None:
        """Zeros."""
        with grid.unrolled(self.count * self.gemm.planes) as i:
            self.held.store(i, grid.zero("int32"))

    def at(self, i: Expr) -> tuple[Expr, Expr]:
        """(row, column) of accumulator i of a plane, in the block's tile."""
        tile, inner = tirx.floordiv(i, 4), tirx.floormod(i, 4)
        row = tirx.floordiv(tile, 4) * 16 + tirx.floordiv(inner, 2) * 8
        column = tirx.floormod(tile, 4) * 8 + tirx.floormod(inner, 2)
        return (
            row + self.quarter + self.block.warp_row,
            column + self.column * 2 + self.block.warp_column,
        )

    @abstractmethod
    def multiply(self, stage: Expr) -> None:
        """Add the products of a tile of k."""


class _MatrixWarp(_Warp):
    """By matrix instructions, from fragments that ldmatrix reads."""

    def __init__(self, block: _Block) -> None:
        super().__init__(block)
        lane = block.lane
        row_a, chunk_a = tirx.floormod(lane, 16), tirx.floordiv(lane, 16)
        row_b = tirx.floordiv(lane, 16) * 8 + tirx.floormod(lane, 8)
        chunk_b = tirx.floormod(tirx.floordiv(lane, 8), 2)
        self.at_a, self.at_b = (
            [grid.keep(place(row + first, chunk + 2 * half)) for half in range(_HALVES)]
            for row, first, chunk in (
                (row_a, block.warp_row, chunk_a),
                (row_b, block.warp_column, chunk_b),
            )
        )
        self.a = [intrinsics.local(8) for _ in self.gemm.a]
        self.b = [intrinsics.local(8) for _ in self.gemm.b]

    def multiply(self, stage: Expr) -> None:
        """Halves of the tile, 32 steps each."""
        count = len(self.a)
        for half in range(_HALVES):
            for registers, at, offsets in (
                (self.a, self.at_a[half], self.block.offsets[:count]),
                (self.b, self.at_b[half], self.block.offsets[count:]),
            ):
                for one, offset in zip(registers, offsets, strict=True):
                    for pair in range(2):
                        address = stage + offset + at + pair * 16 * KS
                        intrinsics.matrices(one, 4 * pair, grid.cast(address, "uint32"))
            for plane in range(self.gemm.planes):
                self._products(plane)

    def _products(self, plane: int) -> None:
        kinds = self.gemm.kinds(plane)
        a, b = (side[min(plane, len(side) - 1)] for side in (self.a, self.b))
        best = self.block.on.best_mma(self.gemm.bits)
        assert best is not None
        with grid.unrolled(2, "row") as i, grid.unrolled(4, "column") as j:
            at = self.count * plane + 16 * i + 4 * j
            if best.m == 16:
                registers = (self.held, at), (a, 4 * i), (b, 2 * j)
                intrinsics.wide_product(best.name, kinds, *registers)
                return
            for quarter in range(4):
                row, step = quarter % 2, quarter // 2
                held = self.held, at + 2 * row
                words = a[4 * i + row + 2 * step], b[2 * j + step]
                intrinsics.small_product(best.name, kinds, held, *words)


class _DotWarp(_Warp):
    """By dp4a, from words."""

    def multiply(self, stage: Expr) -> None:
        """Word by word of k."""
        count = len(self.gemm.a)
        with grid.serial(KS // WORD, "word") as word:

            def read(lines: int, line: Callable[[Expr], Expr], offset: int) -> Array:
                found = grid.slots(lines, "int32")
                with grid.unrolled(lines) as i:
                    at = stage + offset + word_place(line(i), word)
                    found.store(i, intrinsics.load_shared(grid.cast(at, "uint32")))
                return found

            a = [read(4, self._row, offset) for offset in self.block.offsets[:count]]
            b = [read(8, self._column, offset) for offset in self.block.offsets[count:]]
            for plane in range(self.gemm.planes):
                kinds = self.gemm.kinds(plane)
                left, right = (side[min(plane, len(side) - 1)] for side in (a, b))
                with grid.unrolled(4, "row") as i, grid.unrolled(8, "column") as j:
                    tile = tirx.floordiv(i, 2) * 4 + tirx.floordiv(j, 2)
                    inner = tirx.floormod(i, 2) * 2 + tirx.floormod(j, 2)
                    at = self.count * plane + tile * 4 + inner
                    total = intrinsics.dp4a(kinds, left[i], right[j], self.held[at])
                    self.held.store(at, total)

    def _row(self, i: Expr) -> Expr:
        return self.quarter + 8 * i + self.block.warp_row

    def _column(self, i: Expr) -> Expr:
        inner = tirx.floordiv(i, 2) * 8 + tirx.floormod(i, 2)
        return self.column * 2 + inner + self.block.warp_column
