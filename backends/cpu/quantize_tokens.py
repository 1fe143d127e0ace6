"""Round a gradient for dgrad and wgrad, 16 tokens at a time: rows of whole vectors.

wgrad's group of a token needs all channels of the token, but by then everything else is known: so
16 tokens are computed, measured and, out of the L1 cache, rounded twice by the same draws. Their
16 maxima come out of a tree of shuffles as one vector.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.philox import BLOCK, Philox
from sqcompile.backends.cpu.rounding import bits_of, cast, magnitude, power
from sqcompile.backends.cpu.scaled import Factor
from sqcompile.backends.cpu.shift_quantize import Scales
from sqcompile.backends.cpu.stochastic import TASK, Draws, store_bytes, uniform

UNROLLED = 4
"""Vectors of a token that are computed together."""
TOKENS = LANES
"""Tokens that are measured together: one lane of a vector for each."""


@dataclass(frozen=True)
class Tokens:
    """x of (samples, tokens of a sample, channels), in whole vectors of channels.

    load(at, column): 16 elements of x from the flat index `at` on; folded: the weight's scales,
    for dgrad; inverses: 1 / wgrad's outer scale, powers: dgrad's (qmax / r) * 2^exponent, both of
    every channel.
    """

    shape: tuple[int, int, int]
    load: Callable[[Expr, Expr], Expr]
    folded: Factor | None
    dgrad: Scales
    wgrad: Scales
    inverses: Factor
    powers: Factor
    bits: int
    groups: int

    def run(self, philox: Philox) -> None:
        """Write both q, and wgrad's exponents."""
        samples, tokens, channels = self.shape
        whole, left = divmod(samples * tokens, TOKENS)
        together = max(1, TASK * BLOCK // (TOKENS * channels))
        blocks = TOKENS * channels // BLOCK
        if whole:
            tasks = -(-whole // together)
            with nest.parallel(tasks, whole * blocks * BLOCK * 8, "task") as task:
                first = task * together
                draws = Draws(philox, first * blocks)
                held = _Held(channels, self.groups > 1)
                with nest.serial(tirx.min(together, whole - first), "chunk") as i:
                    chunk = first + i
                    self._measure(held, chunk * TOKENS, TOKENS)
                    with nest.serial(blocks, "block") as b:
                        self._block(draws, held, chunk, chunk * blocks + b, b)
        if left:
            held = _Held(channels, self.groups > 1)
            self._measure(held, whole * TOKENS, left)
            self._left(philox, held, whole * TOKENS, left)

    def _measure(self, held: "_Held", token: Expr, count: int) -> None:
        """Compute `count` tokens, their groups, and what multiplies each."""
        channels, lanes = self.shape[2], nest.ramp(0)
        with nest.serial(count, "token") as i:
            self._token(held, i, (token + i) * channels)
        self._rows(held, token, count)
        if self.groups == 1:
            held.steps.store(lanes, nest.splat(self.wgrad.units[0]))
            return
        largest = nest.scratch(LANES, "float32")
        rows = [held.best[nest.ramp(index * LANES)] for index in range(TOKENS)]
        largest.store(lanes, bits_of(_across(rows), "float32"))
        group = nest.splat(nest.zero("int32"))
        for j in range(1, self.groups):
            limit = nest.splat(self.wgrad.r[0] * nest.const(2.0**-j, "float32"))
            group = group + cast(largest[lanes] <= limit, "int32")
        groups = nest.scratch(LANES, "int32")
        groups.store(lanes, group)
        held.steps.store(lanes, nest.splat(self.wgrad.units[0]) * power(groups[lanes]))
        exponent = self.wgrad.exponent
        if count == TOKENS:
            exponent.store(nest.ramp(token), cast(groups[lanes], "int8"))
        else:
            with nest.serial(count, "token") as i:
                exponent.store(token + i, nest.cast(groups[i], "int8"))

    def _token(self, held: "_Held", index: Expr, start: Expr) -> None:
        """Compute a token, which begins at element `start`, and its maxima in each lane."""
        channels, best = self.shape[2], nest.ramp(index * LANES)

        def take(column: Expr) -> Expr:
            place = nest.ramp(index * channels + column)
            held.x.store(place, self.load(start + column, column))
            return magnitude(held.x[place] * self.inverses.vector(column))

        vectors = channels // LANES
        together = max(n for n in range(1, UNROLLED + 1) if vectors % n == 0)
        with nest.serial(vectors // together, "v") as v:
            found = [take((v * together + n) * LANES) for n in range(together)]
            if self.groups == 1:
                return
            largest = found[0]
            for one in found[1:]:
                largest = tirx.max(largest, one)
            if together < vectors:
                before = nest.select(v > 0, held.best[best], nest.splat(nest.zero("int32")))
                largest = tirx.max(largest, before)
            held.best.store(best, largest)

    def _rows(self, held: "_Held", token: Expr, count: int) -> None:
        """1 / dgrad's outer scale of every token: that of its sample."""
        tokens, inverses = self.shape[1], self.dgrad.inverses
        if inverses.size == 1:
            held.rows.store(nest.ramp(0), nest.splat(inverses[0]))
        elif tokens % TOKENS == 0:
            held.rows.store(nest.ramp(0), nest.splat(inverses[tirx.floordiv(token, tokens)]))
        elif tokens == 1 and count == TOKENS:
            held.rows.store(nest.ramp(0), inverses.vector(token))
        else:
            with nest.serial(count, "token") as i:
                held.rows.store(i, inverses[tirx.floordiv(token + i, tokens)])

    def _moved(self, held: "_Held", offset: Expr, u: Expr) -> tuple[Expr, Expr]:
        """16 elements of what is held, scaled and plus u, for dgrad and for wgrad."""
        channels = self.shape[2]
        token, column = tirx.floordiv(offset, channels), tirx.floormod(offset, channels)
        x = held.x[nest.ramp(offset)]
        folded = x if self.folded is None else x * self.folded.vector(column)
        divided = folded * nest.splat(held.rows[token])
        first = nest.fence(divided * self.powers.vector(column), LANES) + u
        divided = x * self.inverses.vector(column)
        return first, nest.fence(divided * nest.splat(held.steps[token]), LANES) + u

    def _block(self, draws: Draws, held: "_Held", chunk: Expr, block: Expr, index: Expr) -> None:
        moved: list[tuple[Expr, Expr]] = []

        def vector(part: int, u: Expr) -> None:
            moved.append(self._moved(held, index * BLOCK + part * LANES, u))
            if part % 4 == 3:
                self._store(block * BLOCK + (part - 3) * LANES, moved)
                moved.clear()

        draws.block(block, vector)

    def _store(self, at: Expr, moved: Sequence[tuple[Expr, Expr]]) -> None:
        for one, values in zip((self.dgrad, self.wgrad), zip(*moved, strict=True), strict=True):
            store_bytes(one.q, at, values, self.bits, bounded=True)

    def _left(self, philox: Philox, held: "_Held", token: int, count: int) -> None:
        """The last tokens, which may end within a block."""
        channels = self.shape[2]
        first, vectors = token * channels, count * channels // LANES
        with nest.serial(-(-vectors * LANES // BLOCK), "block") as b:
            words = nest.scratch(BLOCK, "uint32")
            for part, draw in enumerate(philox.draws(b + first // BLOCK)):
                words.store(nest.ramp(part * LANES), draw)
            with nest.serial(tirx.min(BLOCK // LANES, vectors - b * (BLOCK // LANES)), "v") as v:
                offset = b * BLOCK + v * LANES
                moved = self._moved(held, offset, uniform(words[nest.ramp(v * LANES)]))
                self._store(first + offset, [moved])


class _Held:
    """What is known of the tokens at hand: x, the maxima of wgrad's values in every lane, 1 /
    dgrad's outer scale, and wgrad's steps per unit."""

    def __init__(self, channels: int, grouped: bool) -> None:
        size = TOKENS * channels
        self.x: Array = nest.workspace(size, "float32")
        if grouped:
            self.best: Array = nest.workspace(TOKENS * LANES, "int32")
        self.rows, self.steps = (nest.scratch(TOKENS, "float32") for _ in range(2))


def _across(values: Sequence[Expr]) -> Expr:
    """Sixteen vectors -> a vector of the maximum of each, by halves: two vectors become one with
    half as many lanes of each."""
    width = LANES
    level = list(values)
    while width > 1:
        half = width // 2
        starts = range(0, 2 * LANES, width)
        low, high = ([s + first + i for s in starts for i in range(half)] for first in (0, half))
        joined = []
        for a, b in zip(level[::2], level[1::2], strict=True):
            parts = (
                tirx.Shuffle([a, b], [nest.const(p, "int32") for p in places])
                for places in (low, high)
            )
            joined.append(tirx.max(*parts))
        level = nest.kept(joined, "int32", LANES)
        width = half
    return level[0]
