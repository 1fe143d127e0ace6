"""Packing for wgrad, which sums over tokens (pixels of the gradient): `depth` neighbouring tokens
of a channel lie beside each other, as a dot product reads them."""

from dataclasses import dataclass

from tvm import tirx

from sqcompile.backends.conv_geometry import Geometry
from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.conv_operands import BIAS, Stored
from sqcompile.backends.cpu.conv_vectors import (
    SLACK,
    at,
    filled,
    interleave,
    pieces,
    power_of_two,
    scaled,
    shift_of,
)
from sqcompile.backends.cpu.nest import Array, Expr

STRIP = 64
"""Output channels whose words of one step lie together, where they are so many: a tile then walks
memory in order."""


@dataclass(frozen=True)
class Gradient:
    """g as [strip][row n * OH + oh][step][channel of the strip][depth] with its shifts; tokens
    beyond the end of a row are zeros."""

    g: Geometry
    stored: Stored
    rows: int
    steps: int
    channels: int
    strip: int

    @classmethod
    def of(cls, g: Geometry, stored: Stored, tile: int) -> "Gradient":
        """Strips hold whole tiles of `tile` channels; what lies beyond the last channel of a
        strip that no tile divides is never used."""
        channels = g.groups * g.outputs
        strip = STRIP if channels % STRIP == 0 and STRIP % tile == 0 else channels
        rows = g.images * g.rows.out
        return cls(g, stored, rows, -(-g.columns.out // stored.dot.depth), channels, strip)

    def place(self, channel: Expr, row: Expr) -> Expr:
        """Where the words of a channel, of step 0 of a row, start."""
        if self.strip == self.channels:
            return (row * self.steps * self.strip + channel) * self.stored.dot.depth
        strip = tirx.floordiv(channel, self.strip)
        word = (strip * self.rows + row) * self.steps * self.strip
        return (word + tirx.floormod(channel, self.strip)) * self.stored.dot.depth

    def pack(self, gradient: Array, exponent: Array | None, groups: int) -> Array:
        """The packed gradient."""
        dot = self.stored.dot
        size = self.rows * self.steps * self.channels * dot.depth
        out = nest.scratch(size + SLACK * dot.depth, dot.right)
        whole, rest = divmod(self.g.columns.out, dot.depth)
        with nest.parallel(self.rows, size, "row") as row:
            if whole:
                with nest.serial(whole, "step") as step:
                    self._step(gradient, exponent, groups, out, row, step, dot.depth)
            if rest:
                self._step(gradient, exponent, groups, out, row, whole, rest)
        return out

    def _step(
        self,
        gradient: Array,
        exponent: Array | None,
        groups: int,
        out: Array,
        row: Expr,
        step: Expr,
        tokens: int,
    ) -> None:
        dot = self.stored.dot
        first = row * self.g.columns.out + step * dot.depth
        factors = None
        if exponent is not None and groups > 1:
            shifts = [shift_of(exponent, groups, first + q) for q in range(tokens)]
            shifts += [nest.zero("int32")] * (dot.depth - tokens)
            factors = [power_of_two(shift) for shift in shifts]
        strips = self.channels // self.strip
        with nest.serial(strips, "strip") as strip, pieces(self.strip, dot.lanes) as (piece, lanes):
            channel = strip * self.strip + piece
            vectors = []
            for q in range(dot.depth):
                if q >= tokens:
                    vectors.append(filled(nest.zero(dot.right), lanes))
                    continue
                value = gradient[at((first + q) * self.channels + channel, lanes)]
                vectors.append(nest.cast(value, dot.right, lanes))
            start = self.place(channel, row) + step * self.strip * dot.depth
            words = interleave(vectors, lanes)
            if factors is not None:
                words = scaled(words, factors, lanes, dot)
            out.store(nest.ramp(start, lanes * dot.depth), words)

    def offsets(self, packed: Array, kind: str) -> Array:
        """What the bias of x adds to a channel's sums: 128 times the sum of its tokens."""
        dot = self.stored.dot
        lanes = nest.ramp(0, dot.lanes)
        out = nest.scratch(self.channels + SLACK, kind)
        bias = nest.splat(nest.const(BIAS, dot.left), dot.lanes * dot.depth)
        vectors = -(-self.strip // dot.lanes)
        work = packed.size
        count = self.channels // self.strip * vectors
        with nest.parallel(count, work, "vector") as index:
            channel = tirx.floordiv(index, vectors) * self.strip
            within = tirx.floormod(index, vectors) * dot.lanes
            if self.strip % dot.lanes:
                within = tirx.max(tirx.min(within, self.strip - dot.lanes), 0)
            channel = channel + within
            total = nest.scratch(dot.lanes, kind)
            total.store(lanes, nest.splat(nest.zero(kind), dot.lanes))
            with nest.serial(self.rows, "row") as row:
                part = nest.scratch(dot.lanes, "int32")
                part.store(lanes, nest.splat(nest.zero("int32"), dot.lanes))
                with nest.serial(self.steps, "step") as step:
                    start = self.place(channel, row) + step * self.strip * dot.depth
                    value = dot.add(part[lanes], bias, dot.loaded(packed, start))
                    part.store(lanes, value)
                added = part[lanes]
                if kind != "int32":
                    added = nest.cast(added, kind, dot.lanes)
                total.store(lanes, total[lanes] + added)
            out.store(nest.ramp(channel, dot.lanes), total[lanes])
        return out
