"""What becomes of a product's sums: accumulators in memory, or float32 through the epilogue.

A product in one part hands its sums over in registers. Sums that come in several parts, slices of
a long reduction or planes of 64-bit sums, are added in memory, which is exact in any order, and a
launch of its own makes the results of them.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from tvm import tirx

from sqcompile.backends.cuda import grid, intrinsics
from sqcompile.backends.cuda.dequantize import Epilogue
from sqcompile.backends.cuda.gemm import Gemm
from sqcompile.backends.cuda.gemm_stage import KS
from sqcompile.backends.cuda.grid import WARP, Array, Expr, Team
from sqcompile.backends.cuda.reduce import TOTAL, folded
from sqcompile.backends.kernels import INTO, KernelSpec, TensorSpec
from sqcompile.backends.rounding import magnitude

Index = Callable[[Expr, Expr, Expr], Expr]
"""index(z, m, n) of a result, row-major."""
_MOST_TILES = (2**31 - 1) // (255 * 255 * KS)
"""Tiles along k whose products of bytes add up in int32."""


class Finish:
    """Results of an op, element by element."""

    def __init__(self, spec: KernelSpec, f: grid.Function, shape: Sequence[int]) -> None:
        self.out, *more = f.outputs
        self.shape, self.size = list(shape), prod(shape)
        self.place = _placement(spec, shape)
        self.epilogue: Epilogue | None = None
        if self.out.dtype == "float32":
            self.epilogue = Epilogue(spec, f, shape)
        self.absmax: Array | None = None
        if spec.short_name.endswith("_absmax"):
            self.absmax = grid.viewed(more[0], TensorSpec((1,), "int32"))
        self.sums: Array | None = more[0] if spec.short_name.endswith("_sums") else None
        self.summing = False

    def prepare(self) -> None:
        """Before all launches that finish elements."""
        if self.absmax is not None:
            absmax = self.absmax
            grid.each(1, lambda _: absmax.store(0, grid.zero("int32")))
        if self.sums is not None:
            sums = self.sums
            grid.each(sums.size, lambda i: sums.store(i, grid.zero("int64")))

    def start(self) -> None:
        """In every thread, before its elements."""
        if self.absmax is not None:
            self.peak = grid.slots(1, "int32")
            self.peak.store(0, grid.zero("int32"))
        if self.summing:
            self.total, self.channel = grid.slots(1, "int64"), grid.slots(1, "int32")
            self.total.store(0, grid.zero("int64"))
            self.channel.store(0, grid.const(-1, "int32"))

    def element(self, index: Expr, acc: Expr) -> None:
        """The result of a whole sum."""
        if self.epilogue is None:
            self.out.store(self.place(index), grid.cast(acc, self.out.dtype))
            if self.summing:
                self.total.store(0, self.total[0] + grid.cast(acc, "int64"))
                self.channel.store(0, tirx.floormod(index, self.shape[-1]))
            return
        y = self.epilogue.of(acc, index)
        self.out.store(self.place(index), y)
        if self.absmax is not None:
            self.peak.store(0, tirx.max(self.peak[0], magnitude(y)))

    def leave(self, lane: Expr) -> None:
        """In every thread of all warps, after its elements."""
        if self.summing and self.sums is not None:
            with grid.when(self.channel[0] >= 0):
                intrinsics.add(self.sums, self.channel[0], self.total[0])
        if self.absmax is None:
            return
        peak = Team(lane, WARP, None).joined(self.peak[0], tirx.max)
        with grid.when(tirx.EQ(lane, 0)):
            intrinsics.largest(self.absmax, 0, peak)


class _Direct:
    """Sums are whole."""

    apart = False

    def __init__(self, finish: Finish, index: Index) -> None:
        self.finish, self.index = finish, index
        self.start, self.leave = finish.start, finish.leave

    def put(self, z: Expr, m: Expr, n: Expr, value: Expr, plane: int) -> None:
        """An element."""
        self.finish.element(self.index(z, m, n), value)


class _Added:
    """Sums are added in memory."""

    def __init__(self, memory: Array, place: Index, bits: int) -> None:
        self.memory, self.place, self.bits = memory, place, bits
        self.apart = memory.dtype == "int64"

    def start(self) -> None:
        """Nothing."""

    def put(self, z: Expr, m: Expr, n: Expr, value: Expr, plane: int) -> None:
        """Add a plane's sum, or all of them."""
        value = grid.cast(value, self.memory.dtype)
        if plane:
            value = value * grid.const(1 << (self.bits * plane), self.memory.dtype)
        intrinsics.add(self.memory, self.place(z, m, n), value)

    def leave(self, lane: Expr) -> None:
        """Nothing."""


def emit(gemms: Sequence[tuple[Gemm, Index]], wide: bool, finish: Finish) -> None:
    """The launches of products that together have all results; `wide`: sums may need 64 bits."""
    most = _MOST_TILES if wide else 1 << 30
    slices = [gemm.slices(most) for gemm, _ in gemms]
    finish.prepare()
    if max(slices) == 1 and not (wide and any(gemm.planes > 1 for gemm, _ in gemms)):
        # A thread of a block finishes one column, so that it adds a channel's sums in a register.
        finish.summing = finish.sums is not None
        for gemm, index in gemms:
            gemm.launch(_Direct(finish, index))
        return
    if not finish.size:
        return
    memory: Any = finish.out
    if finish.epilogue is not None:
        memory = grid.workspace(finish.size, "int64" if wide else "int32")
    place = finish.place if finish.epilogue is None else lambda index: index
    grid.each(finish.size, lambda i: memory.store(place(i), grid.zero(memory.dtype)))
    for (gemm, index), count in zip(gemms, slices, strict=True):

        def at(z: Expr, m: Expr, n: Expr, index: Index = index) -> Expr:
            return place(index(z, m, n))

        gemm.launch(_Added(memory, at, gemm.bits), count)
    if finish.epilogue is not None:
        elements(finish, lambda i: memory[i])
    channel_sums(finish)


def channel_sums(finish: Finish) -> None:
    """The sum of every channel of accumulators in memory, for ops that give it."""
    if finish.sums is None:
        return
    acc, sums = finish.out, finish.sums
    channels = sums.size
    count = acc.size // max(channels, 1)

    def element(result: Expr, k: Expr) -> list[Expr]:
        return [grid.cast(acc[k * channels + result], "int64")]

    folded(channels, count, True, [TOTAL], element, lambda c, v: sums.store(c, v[0]))


def elements(finish: Finish, acc: Callable[[Expr], Expr]) -> None:
    """A launch with a thread for every result: acc(index) is its sum."""
    threads = grid.THREADS
    if not finish.size:
        return
    with grid.launch(-(-finish.size // threads), threads) as (block, thread):
        finish.start()
        index = block * threads + thread
        with grid.when(index < finish.size):
            finish.element(index, acc(index))
        finish.leave(tirx.floormod(thread, WARP))


def _placement(spec: KernelSpec, shape: Sequence[int]) -> Callable[[Expr], Expr]:
    """Where the result with a row-major index stands: split into `sizes`, permuted, a part."""
    sizes, order, into = spec.get("sizes"), spec.get("order"), spec.get(INTO)

    def place(index: Expr) -> Expr:
        if sizes is not None:
            placed = [sizes[axis] for axis in order]
            steps = [prod(placed[i + 1 :]) for i in range(len(placed))]
            strides = [steps[order.index(axis)] for axis in range(len(sizes))]
            index = grid.linear(grid.unravel(index, sizes), strides)
        if into is not None:
            inner, length, start = into
            index = tirx.floordiv(index, inner) * length + tirx.floormod(index, inner) + start
        return index

    return place
