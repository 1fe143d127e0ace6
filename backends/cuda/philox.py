"""Philox4x32-10, a counter a thread: 32 x 32 -> 64 bit products are two instructions of a GPU."""

from collections.abc import Callable
from math import prod

from tvm import tirx

from sqcompile.backends.cuda import grid
from sqcompile.backends.cuda.grid import Array, Expr
from sqcompile.backends.cuda.pack import store_bits
from sqcompile.backends.cuda.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.ops.philox import DRAWS_PER_BLOCK, LANES, MULTIPLIERS, ROUNDS, WEYL, WORD


def _word(value: Expr) -> Expr:
    """The low 32 bits of an int64."""
    return grid.cast(tirx.bitwise_and(value, grid.const(WORD, "int64")), "uint32")


class Philox:
    """One stream: rng int64[4] = (seed, step, micro_step, rank) and the stream's number, read
    where they are used."""

    def __init__(self, rng: Array, stream: Expr) -> None:
        self.rng, self.stream = rng, stream

    def words(self, block: Expr) -> list[Expr]:
        """The four output words of a block, as uint32."""
        seed, *rest = (_word(self.rng[i]) for i in range(4))
        counter = [grid.keep(one) for one in (grid.cast(block, "uint32"), *rest)]
        keys = [grid.keep(seed), grid.keep(_word(self.stream))]
        for index in range(ROUNDS):
            products = [
                grid.keep(grid.cast(word, "uint64") * grid.const(multiplier, "uint64"))
                for word, multiplier in zip(counter[::2], MULTIPLIERS, strict=True)
            ]
            high = [
                grid.cast(tirx.shift_right(one, grid.const(32, "uint64")), "uint32")
                for one in products
            ]
            low = [grid.cast(one, "uint32") for one in products]
            key = [
                one + grid.const(index * weyl & WORD, "uint32")
                for one, weyl in zip(keys, WEYL, strict=True)
            ]
            counter = [
                grid.keep(tirx.bitwise_xor(tirx.bitwise_xor(high[1], counter[1]), key[0])),
                grid.keep(low[1]),
                grid.keep(tirx.bitwise_xor(tirx.bitwise_xor(high[0], counter[3]), key[1])),
                grid.keep(low[0]),
            ]
        return counter

    def draw(self, index: Expr) -> Expr:
        """Draw number `index` of the stream, as int32: 16 bits."""
        group = tirx.floordiv(index, LANES * DRAWS_PER_BLOCK)
        words = self.words(group * LANES + tirx.floormod(index, LANES))
        number = grid.keep(tirx.floormod(tirx.floordiv(index, LANES), DRAWS_PER_BLOCK))
        held = grid.slots(1, "uint32")
        held.store(0, words[0])
        for word in range(1, 4):
            with grid.when(tirx.EQ(tirx.floordiv(number, 2), word)):
                held.store(0, words[word])
        shift = grid.cast(tirx.floormod(number, 2) * 16, "uint32")
        half = tirx.bitwise_and(tirx.shift_right(held[0], shift), grid.const(0xFFFF, "uint32"))
        return grid.keep(grid.cast(half, "int32"))


def each_draw(philox: Philox, count: int, store: Callable[[Expr, Expr], None]) -> None:
    """A launch with a thread for each block, which gives eight of the first `count` draws:
    store(number, draw as int32)."""
    group = LANES * DRAWS_PER_BLOCK

    def emit(block: Expr) -> None:
        first = tirx.floordiv(block, LANES) * group + tirx.floormod(block, LANES)
        words = philox.words(block)
        for number in range(DRAWS_PER_BLOCK):
            half = tirx.shift_right(words[number // 2], grid.const(number % 2 * 16, "uint32"))
            draw = tirx.bitwise_and(half, grid.const(0xFFFF, "uint32"))
            at = first + number * LANES
            with grid.when(at < count):
                store(at, grid.cast(draw, "int32"))

    grid.each(-(-count // group) * LANES, emit)


@KERNELS.kernel("sq::draws", run_time=("stream",))
def draws(spec: KernelSpec) -> object:
    """A thread for eight draws."""
    with grid.function(spec, ("stream",)) as f:
        (out,) = f.outputs
        each_draw(Philox(f["rng"], f.scalars["stream"]), out.size, out.store)
    return f.result


@KERNELS.kernel("sq::dropout_mask", run_time=("stream",))
def dropout_mask(spec: KernelSpec) -> object:
    """What eight draws keep are bytes of a workspace; then a thread for each byte of the mask."""
    count, least = prod(spec["shape"]), grid.const(spec["least"], "int32")
    with grid.function(spec, ("stream",)) as f:
        (out,) = f.outputs
        kept = grid.workspace(count, "uint8")
        each_draw(
            Philox(f["rng"], f.scalars["stream"]),
            count,
            lambda at, draw: kept.store(at, grid.cast(draw >= least, "uint8")),
        )
        store_bits(out, count, lambda i: tirx.NE(kept[i], grid.zero("uint8")))
    return f.result
