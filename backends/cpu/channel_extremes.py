"""The absmax of a batch norm's gradient for every sample and channel, from extremes of integers.

dx = (g - (above | below by the sign of xhat)) * factor is monotone in the integer g among the
elements of one channel and sign, its roundings included. So four extremes of int8 for each sample
and channel give the absmax of dx, and of dx times positive factors, exactly: a pass over bytes,
before which no float exists.
"""

from collections.abc import Sequence
from math import gcd

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.rounding import magnitude
from sqcompile.backends.cpu.saved_xhat import Saved

BYTES = 64
"""Elements of a vector of extremes."""
_EXTREMES = (
    (True, tirx.max, -128),
    (True, tirx.min, 127),
    (False, tirx.max, -128),
    (False, tirx.min, 127),
)
"""(where xhat is not negative, or where it is; how two are joined; what an empty one is)."""


class Extremes:
    """The extremes of one sample at a time, (tokens, channels) int8; a vector of bytes may hold
    several rows, of which there must be as many."""

    def __init__(self, g: Array, saved: Saved, tokens: int, channels: int) -> None:
        self.g, self.saved, self.tokens, self.channels = g, saved, tokens, channels
        self.fold = BYTES // gcd(channels, BYTES)
        self.width = self.fold * channels

    @property
    def fits(self) -> bool:
        """Whether a sample has the rows."""
        return self.tokens >= self.fold

    def measure(self, sample: Expr) -> list[Array]:
        """Arrays of `width` bytes for the four extremes of a sample."""
        found = [nest.workspace(max(self.width, nest.STACK), "int8") for _ in _EXTREMES]
        first = sample * (self.tokens * self.channels)
        steps, left = divmod(self.tokens, self.fold)
        lanes = nest.ramp(0, BYTES)
        with nest.serial(self.width // BYTES, "v") as v:
            slots = [nest.scratch(BYTES, "int8") for _ in _EXTREMES]
            for slot, (_, _, empty) in zip(slots, _EXTREMES, strict=True):
                slot.store(lanes, nest.splat(nest.const(empty, "int8"), BYTES))
            with nest.serial(steps, "step") as s:
                self._take(slots, first + s * self.width + v * BYTES)
            if left:  # the last rows, some of them once more
                last = (self.tokens - self.fold) * self.channels
                self._take(slots, first + last + v * BYTES)
            for slot, array in zip(slots, found, strict=True):
                array.store(nest.ramp(v * BYTES, BYTES), slot[lanes])
        return found

    def _take(self, slots: Sequence[Array], at: Expr) -> None:
        value, lanes = self.g[nest.ramp(at, BYTES)], nest.ramp(0, BYTES)
        positive = self.saved.positive(at, BYTES)
        for slot, (wanted, join, _) in zip(slots, _EXTREMES, strict=True):
            old = slot[lanes]
            both = join(old, value)
            slot.store(lanes, nest.select(positive, *((both, old) if wanted else (old, both))))

    def absmax(self, found: Sequence[Array], column: Expr, constants: Sequence[Array]) -> Expr:
        """The absmax of dx (bits) of 16 channels from `column` on."""
        *parts, factor = (array[nest.ramp(column)] for array in constants)
        zero = nest.splat(nest.zero("int32"))
        largest = zero
        for part, (high, low) in zip(parts, (found[:2], found[2:]), strict=True):
            most, least = (
                self._folded(a, column, j) for a, j in ((high, tirx.max), (low, tirx.min))
            )
            there = least <= most
            for extreme in (most, least):
                value = (nest.cast(extreme, "float32", LANES) - part) * factor
                largest = tirx.max(largest, nest.select(there, magnitude(value), zero))
        return largest

    def _folded(self, array: Array, column: Expr, join: object) -> Expr:
        rows = [array[nest.ramp(column + j * self.channels)] for j in range(self.fold)]
        value = rows[0]
        for row in rows[1:]:
            value = join(value, row)  # type: ignore[operator]
        return nest.kept([nest.cast(value, "int32", LANES)], "int32", LANES)[0]
