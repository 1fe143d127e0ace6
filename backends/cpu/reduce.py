"""Float sums in the one order of `sqcompile.ops.reduce`."""

from collections.abc import Callable
from math import prod

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.machine import machine
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.sweep import contiguous, in_vectors, merge
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.ops.reduce import CHUNK

COLUMNS = 128
"""Results that one task of a column sum takes: rows of x are read in pieces of eight lines."""
TILE = 32
"""Rows that a column sum takes for one vector of results before it goes to the next."""


@KERNELS.kernel("sq::ordered_sum")
def ordered_sum(spec: KernelSpec) -> object:
    """Chunks of CHUNK reduced elements in parallel, their sums then added in order.

    A chunk's 16 lanes are registers. When what is kept is innermost, neighbouring results are
    summed side by side: few of them (C) as C vectors that hold 16 rows, more in blocks of
    COLUMNS, a vector of results for each lane. When what is reduced is innermost, one vector
    holds the lanes of one result.
    """
    axes = sorted(spec["axes"])
    with nest.function(spec) as f:
        x, (out,) = f["x"], f.outputs
        own = contiguous(x.shape)
        others = [axis for axis in range(len(x.shape)) if axis not in axes]
        reduced, (read,) = merge([x.shape[a] for a in axes], [[own[a] for a in axes]])
        kept, (keep,) = merge([x.shape[a] for a in others], [[own[a] for a in others]])
        if x.size:
            _Sum(x, out, (reduced, read), (kept, keep)).run()
        else:
            in_vectors(out.size, lambda at, lanes: _clear(out, at, lanes))
    return f.result


def _clear(array: Array, at: Expr, lanes: int) -> None:
    with nest.lanes(count=lanes) as lane:
        array.store(at + lane, nest.zero("float32"))


def _add(array: Array, at: Expr, value: Callable[[Expr], Expr], lanes: int) -> None:
    with nest.lanes(count=lanes) as lane:
        array.store(at + lane, array[at + lane] + value(lane))


class _Sum:
    """`width` neighbouring results at a time, of `inner`; `extents` and `read` walk what is
    reduced, `outer` and `keep` the other results."""

    def __init__(
        self,
        x: Array,
        out: Array,
        reduced: tuple[list[int], list[int]],
        kept: tuple[list[int], list[int]],
    ) -> None:
        self.x, self.out = x, out
        self.extents, self.read = reduced
        self.count = prod(self.extents)
        self.outer, self.keep = kept
        self.inner = 1
        if self.keep[-1] == 1 and self.outer[-1] > 1:
            self.inner, self.outer, self.keep = self.outer[-1], self.outer[:-1], self.keep[:-1]
        rows = self.extents == [self.count] and self.read == [self.inner]
        # A vector of 16 elements is one register of AVX-512 and several smaller ones elsewhere.
        registers = machine().registers * machine().lanes // nest.LANES
        self.flat = rows and self.inner <= registers // 2
        self.width = self.inner if self.flat else min(COLUMNS, self.inner)

    def run(self) -> None:
        """Sums of chunks, then sums of those."""
        whole, rest = divmod(self.count, CHUNK)
        chunks, blocks = whole + (rest > 0), -(-self.inner // self.width)
        sums = self.out if chunks == 1 else nest.scratch(chunks * self.out.size, "float32")
        with nest.parallel(prod(self.outer) * blocks * chunks, self.x.size, "task") as task:
            chunk = tirx.floormod(task, chunks) if chunks > 1 else 0
            place = tirx.floordiv(task, chunks)
            row, first = tirx.floordiv(place, blocks), tirx.floormod(place, blocks) * self.width
            if self.inner % self.width:
                first = tirx.min(first, self.inner - self.width)
            start = nest.linear(nest.unravel(row, self.outer), self.keep, first)
            at = chunk * self.out.size + row * self.inner + first
            if whole and rest:
                with nest.when(chunk < whole):
                    self._chunk(sums, at, start, chunk * CHUNK, CHUNK)
                with nest.when(tirx.EQ(chunk, whole)):
                    self._chunk(sums, at, start, whole * CHUNK, rest)
            else:
                self._chunk(sums, at, start, chunk * CHUNK, rest or CHUNK)
        if chunks > 1:
            in_vectors(self.out.size, lambda at, lanes: self._total(sums, at, lanes, chunks))

    def _total(self, sums: Array, at: Expr, lanes: int, chunks: int) -> None:
        total = nest.scratch(lanes, "float32")
        _clear(total, 0, lanes)
        with nest.serial(chunks, "chunk") as chunk:
            _add(total, 0, lambda lane: sums[chunk * self.out.size + at + lane], lanes)
        with nest.lanes(count=lanes) as lane:
            self.out.store(at + lane, total[lane])

    def _chunk(self, sums: Array, at: Expr, start: Expr, first: Expr, size: int) -> None:
        """sums[at ...] = the sums of reduced elements first ... first + size - 1."""
        if self.inner > 1 and not self.flat:
            self._columns(sums, at, start, first, size)
            return
        held = nest.scratch(nest.LANES * self.width, "float32")
        self._lanes(held, start, first, size)
        half = nest.LANES // 2 * self.width
        while half >= self.width:
            with nest.serial(half, "i") as i:
                held.store(i, held[i] + held[half + i])
            half //= 2
        with nest.serial(self.width, "c") as c:
            sums.store(at + c, held[c])

    def _lanes(self, held: Array, start: Expr, first: Expr, size: int) -> None:
        """held[lane, result] = the sums of the lanes of one chunk: 16 rows follow each other."""
        lanes, width = nest.LANES, self.width
        registers = [nest.scratch(lanes, "float32") for _ in range(width)]
        for register in registers:
            _clear(register, 0, lanes)
        runs = self.flat or (self.extents[-1] % lanes == 0 and self.read[-1] == 1)

        def place(k: Expr) -> Expr:
            if self.flat:
                return start + k * width
            return nest.linear(nest.unravel(k, self.extents), self.read, start)

        if size // lanes:
            with nest.serial(size // lanes, "step") as step:
                k = first + step * lanes
                for number, register in enumerate(registers):
                    begin = place(k) + number * lanes if runs else 0

                    def element(lane: Expr) -> Expr:
                        return self.x[begin + lane if runs else place(k + lane)]  # noqa: B023

                    _add(register, 0, element, lanes)
        for number, register in enumerate(registers):
            with nest.lanes() as lane:
                held.store(number * lanes + lane, register[lane])
        if size % lanes:
            last = first + (size - size % lanes)
            with nest.serial(size % lanes, "row") as row, nest.serial(width, "c") as c:
                i = row * width + c
                held.store(i, held[i] + self.x[place(last + row) + c])

    def _columns(self, sums: Array, at: Expr, start: Expr, first: Expr, size: int) -> None:
        """Vectors of results: TILE rows for one, then for the next, so that a row's neighbouring
        results are read while they are near; each keeps its lanes between the tiles."""
        lanes = min(machine().lanes, 1 << (self.width.bit_length() - 1))
        blocks, size_of = -(-self.width // lanes), nest.LANES * lanes
        held = nest.scratch(blocks * size_of, "float32")
        with nest.serial(blocks * nest.LANES, "clear") as i:
            _clear(held, i * lanes, lanes)

        def column(block: Expr) -> Expr:
            step = block * lanes
            return tirx.min(step, self.width - lanes) if self.width % lanes else step

        def row(k: Expr) -> Expr:
            return nest.linear(nest.unravel(first + k, self.extents), self.read, start)

        def add(block: Expr, array: Array, slot: Expr, k: Expr) -> None:
            begin = row(k) + column(block)
            _add(array, slot, lambda lane: self.x[begin + lane], lanes)

        def tile(block: Expr, begin: Expr, rows: int) -> None:
            registers = [nest.scratch(lanes, "float32") for _ in range(nest.LANES)]
            for number, register in enumerate(registers):
                with nest.lanes(count=lanes) as lane:
                    value = held[block * size_of + number * lanes + lane]
                    register.store(lane, value)
            with nest.serial(rows // nest.LANES, "step") as step:
                for number, register in enumerate(registers):
                    add(block, register, 0, begin + step * nest.LANES + number)
            for number, register in enumerate(registers):
                with nest.lanes(count=lanes) as lane:
                    held.store(block * size_of + number * lanes + lane, register[lane])

        whole = size // TILE
        if whole:
            with nest.serial(whole, "tile") as t, nest.serial(blocks, "block") as block:
                tile(block, t * TILE, TILE)
        if size % TILE:
            with nest.serial(blocks, "block") as block, nest.serial(size % TILE, "k") as k:
                number = tirx.floormod(k, nest.LANES)
                add(block, held, block * size_of + number * lanes, whole * TILE + k)
        with nest.serial(blocks, "block") as block:
            half = nest.LANES // 2
            while half:
                for number in range(half):
                    base = block * size_of + number * lanes
                    other = base + half * lanes
                    _add(held, base, lambda lane: held[other + lane], lanes)  # noqa: B023
                half //= 2
            with nest.lanes(count=lanes) as lane:
                sums.store(at + column(block) + lane, held[block * size_of + lane])
