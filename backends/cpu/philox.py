"""Philox4x32-10 in vectors: 16 counters at a time give the draws of 128 elements.

A counter word of 16 lanes is two vectors of eight 64-bit lanes, those of the even and of the odd
counters, of which the low 32 bits count: a 32 x 32 -> 64 bit product is then one instruction and
its high half one shift, where a 32-bit layout would widen and narrow every round (twice as slow,
measured). Joining even | odd << 32 gives the words in counter order.
"""

from dataclasses import dataclass

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.ops.philox import DRAWS_PER_BLOCK, LANES, MULTIPLIERS, ROUNDS, WEYL, WORD

BLOCK = LANES * DRAWS_PER_BLOCK
"""Elements that one round of 16 counters serves."""
_HALF = LANES // 2


def _word(value: Expr) -> Expr:
    """The low 32 bits of an int64 scalar as uint64."""
    return tirx.bitwise_and(nest.cast(value, "uint64"), nest.const(WORD, "uint64"))


@dataclass
class Philox:
    """The key and the fixed counter words of one stream, read once per kernel call."""

    key: tuple[Expr, Expr]
    counter: tuple[Expr, Expr, Expr]

    @classmethod
    def of(cls, rng: Array, stream: Expr) -> "Philox":
        """rng int64[4] = (seed, step, micro_step, rank)."""
        seed, *rest = (_word(rng[i]) for i in range(4))
        return cls((seed, _word(stream)), (rest[0], rest[1], rest[2]))

    def start(self, block: Expr) -> "State":
        """The counters of block `block`, before the first round."""
        return State(self, block)

    def draws(self, block: Expr) -> list[Expr]:
        """The eight 16-lane uint32 draws (16 bits each) of elements 128 * block ...: draw d of
        lane l belongs to element 128 * block + 16 * d + l. Emits statements into the open loop."""
        state = self.start(block)
        for index in range(ROUNDS):
            state.round(index)
        return [draw for word in state.words() for draw in (low_half(word), high_half(word))]


class State:
    """Sixteen counters on their way through the rounds, in registers."""

    def __init__(self, philox: Philox, block: Expr) -> None:
        self.key = philox.key
        self.halves = [[nest.scratch(_HALF, "uint64") for _ in range(4)] for _ in range(2)]
        self.products = [nest.scratch(_HALF, "uint64") for _ in range(2)]
        self.lane = nest.ramp(0, _HALF)
        first = nest.splat(nest.cast(block, "uint64") * nest.const(LANES, "uint64"), _HALF)
        for half, words in enumerate(self.halves):
            step = tirx.Ramp(nest.const(half, "uint64"), nest.const(2, "uint64"), _HALF)
            words[0].store(self.lane, tirx.bitwise_or(first, step))
            for word, value in zip(words[1:], philox.counter, strict=True):
                word.store(self.lane, nest.splat(value, _HALF))

    def round(self, index: int) -> None:
        """Round `index` of ROUNDS, as statements in the open loop."""
        for words in self.halves:
            self._round(words, index)

    def words(self) -> list[Expr]:
        """The four output words, each uint32x16 in the order of the counters."""
        return [self._joined(word) for word in range(4)]

    def _joined(self, word: int) -> Expr:
        even, odd = (words[word][self.lane] for words in self.halves)
        low = tirx.bitwise_and(even, _splat_word(_HALF))
        high = tirx.shift_left(odd, nest.splat(nest.const(32, "uint64"), _HALF))
        return tirx.reinterpret(f"uint32x{LANES}", tirx.bitwise_or(low, high))

    def _round(self, words: list[Array], index: int) -> None:
        keys = [
            tirx.bitwise_and(key + nest.const(index * weyl & WORD, "uint64"), _splat_word(1))
            for key, weyl in zip(self.key, WEYL, strict=True)
        ]
        lane, products = self.lane, self.products
        for product, word, multiplier in zip(products, words[::2], MULTIPLIERS, strict=True):
            low = tirx.bitwise_and(word[lane], _splat_word(_HALF))
            product.store(lane, low * nest.splat(nest.const(multiplier, "uint64"), _HALF))
        shift = nest.splat(nest.const(32, "uint64"), _HALF)
        for target, source, key in ((0, 1, keys[0]), (2, 0, keys[1])):
            high = tirx.shift_right(products[source][lane], shift)
            mixed = tirx.bitwise_xor(
                tirx.bitwise_xor(high, words[target + 1][lane]), nest.splat(key, _HALF)
            )
            words[target].store(lane, mixed)
        words[1].store(lane, products[1][lane])
        words[3].store(lane, products[0][lane])


def _splat_word(lanes: int) -> Expr:
    mask = nest.const(WORD, "uint64")
    return mask if lanes == 1 else nest.splat(mask, lanes)


def low_half(word: Expr) -> Expr:
    """The low 16 bits of an output word: an even draw."""
    return tirx.bitwise_and(word, nest.splat(nest.const(0xFFFF, "uint32")))


def high_half(word: Expr) -> Expr:
    """The high 16 bits of an output word: the odd draw after it."""
    return tirx.shift_right(word, nest.splat(nest.const(16, "uint32")))


@KERNELS.kernel("sq::draws", run_time=("stream",))
def draws(spec: KernelSpec) -> object:
    """Parallel over blocks of 128 draws."""
    with nest.function(spec, ("stream",)) as f:
        (out,) = f.outputs
        philox = Philox.of(f["rng"], f.scalars["stream"])
        blocks = -(-out.size // BLOCK)
        with nest.parallel(blocks, out.size * 8, "block") as block:
            held = nest.scratch(BLOCK, "int32")
            for index, draw in enumerate(philox.draws(block)):
                held.store(nest.ramp(index * LANES), nest.cast(draw, "int32", LANES))
            count = tirx.min(BLOCK, out.size - block * BLOCK)
            with nest.serial(count, "e") as e:
                out.store(block * BLOCK + e, held[e])
    return f.result
