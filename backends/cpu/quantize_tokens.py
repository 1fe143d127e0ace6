"""Round a gradient for dgrad and wgrad, 16 tokens at a time: rows of whole vectors.

wgrad's group of a token needs all channels of the token, but by then everything else is known: so
the 16 tokens of a run are computed, measured and, out of the L1 cache, rounded twice from the same
first carries. Their 16 maxima come out of a tree of shuffles as one vector.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.carry import Starts
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.philox import Philox
from sqcompile.backends.cpu.rounding import bits_of, cast, magnitude, power
from sqcompile.backends.cpu.scaled import Factor
from sqcompile.backends.cpu.shift_quantize import Scales
from sqcompile.backends.cpu.stochastic import STRIP, TASK, store_bytes
from sqcompile.ops.carried import ROWS

UNROLLED = 4
"""Vectors of a token that are computed together."""
TOKENS = ROWS
"""Tokens that are measured together, one lane of a vector for each: a run."""


@dataclass(frozen=True)
class Tokens:
    """x of (samples, tokens of a sample, channels), in whole vectors of channels.

    load(at, column): 16 elements of x from the flat index `at` on; folded: the weight's scales,
    for dgrad; inverses: 1 / wgrad's outer scale, powers: dgrad's (qmax / r) * 2^exponent, both of
    every channel; computed: load is more than a read, so that what it gives is held.
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
    computed: bool = True

    def run(self, philox: Philox) -> None:
        """Write both q, and wgrad's exponents."""
        samples, tokens, channels = self.shape
        whole, left = divmod(samples * tokens, TOKENS)
        together = min(whole, max(1, TASK // (TOKENS * channels)))
        if whole:
            tasks = -(-whole // together)
            with nest.parallel(tasks, whole * TOKENS * channels * 8, "task") as task:
                first = task * together
                count = tirx.min(together, whole - first) if whole % together else together
                starts = Starts(philox, together * channels)
                starts.fill(first * channels, count * channels)
                held = _Held(channels, self.groups > 1, self.computed)
                with nest.serial(count, "run") as run:
                    self._measure(held, (first + run) * TOKENS, TOKENS)
                    self._round(held, starts, first + run, run * channels, TOKENS)
        if left:
            starts = Starts(philox, channels)
            starts.fill(whole * channels, channels)
            held = _Held(channels, self.groups > 1, self.computed)
            self._measure(held, whole * TOKENS, left)
            self._round(held, starts, whole, 0, left)

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
            x = self.load(start + column, column)
            if self.computed:
                held.x.store(place, x)
                x = held.x[place]
            return magnitude(x * self.inverses.vector(column))

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

    def _scaled(self, held: "_Held", run: Expr, token: Expr, column: Expr) -> tuple[Expr, Expr]:
        """16 elements of a token of the run, in steps of the grid, for dgrad and for wgrad."""
        channels = self.shape[2]
        if self.computed:
            x = held.x[nest.ramp(token * channels + column)]
        else:
            x = self.load((run * TOKENS + token) * channels + column, column)
        folded = x if self.folded is None else x * self.folded.vector(column)
        divided = folded * nest.splat(held.rows[token])
        first = nest.fence(divided * self.powers.vector(column), LANES)
        divided = x * self.inverses.vector(column)
        return first, nest.fence(divided * nest.splat(held.steps[token]), LANES)

    def _round(self, held: "_Held", starts: Starts, run: Expr, place: Expr, count: int) -> None:
        """Round `count` tokens, whose first carries begin at `place`: strips of columns."""
        whole, rest = divmod(self.shape[2], STRIP)
        if whole:
            with nest.serial(whole, "strip") as strip:
                self._strip(held, starts, run, place, count, strip * STRIP, STRIP)
        if rest:
            self._strip(held, starts, run, place, count, whole * STRIP, rest)

    def _strip(
        self,
        held: "_Held",
        starts: Starts,
        run: Expr,
        place: Expr,
        count: int,
        column: Expr,
        width: int,
    ) -> None:
        """`width` columns from `column` on, down all tokens; as many tokens at a time as fill a
        vector of bytes, where a token is no longer."""
        channels, offsets = self.shape[2], range(0, width, LANES)
        carries = [[starts.carry(place + column + o) for _ in range(2)] for o in offsets]

        def take(token: Expr, tokens: int) -> None:
            moved: list[tuple[Expr, Expr]] = []
            for one in range(tokens):
                for pair, o in zip(carries, offsets, strict=True):
                    scaled = self._scaled(held, run, token + one, column + o)
                    first, second = (c.step(t) for c, t in zip(pair, scaled, strict=True))
                    moved.append((first, second))
            at = (run * TOKENS + token) * channels + column
            for scales, values in zip(
                (self.dgrad, self.wgrad), zip(*moved, strict=True), strict=True
            ):
                store_bytes(scales.q, at, values, self.bits)

        together = STRIP // channels if STRIP % channels == 0 else 1
        with nest.serial(count // together, "tokens") as tokens:
            take(tokens * together, together)
        for token in range(count - count % together, count):
            take(token, 1)


class _Held:
    """What is known of the tokens at hand: x, the maxima of wgrad's values in every lane, 1 /
    dgrad's outer scale, and wgrad's steps per unit."""

    def __init__(self, channels: int, grouped: bool, computed: bool) -> None:
        if computed:
            self.x: Array = nest.workspace(TOKENS * channels, "float32")
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
