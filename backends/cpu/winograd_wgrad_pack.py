"""Transformed operands of a weight's gradient, interleaved by four tiles for a dot product.

Tiles of all images are numbered row by row; a quad is four of them. Operands are
[block of channels][position][quad][channel of the block][4 tiles].
"""

from dataclasses import dataclass
from math import gcd

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.conv_vectors import interleave, shift_of
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.winograd_input import WIDTH, Image, Shifts, Strip, repeated
from sqcompile.backends.cpu.winograd_ranges import POSITIONS, Split
from sqcompile.backends.cpu.winograd_wgrad_ranges import CENTRE, GRADIENT, Form

QUAD = 4
LANES = 16
"""Channels that are interleaved at a time."""
TASKS = 8
TOKENS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Of a tile of the gradient, row and column."""


def held(value: Expr) -> Expr:
    """An int32 in a register: TVM takes long over large indices."""
    slot = nest.scratch(1, "int32")
    slot.store(0, value)
    return slot[0]


@dataclass(frozen=True)
class Packed:
    """Where operands of `planes` positions stand, `block` channels in a block."""

    channels: int
    block: int
    planes: int
    quads: int

    @property
    def plane(self) -> int:
        """Bytes of a position of a block, a line more: positions that are written side by side
        would share their cache sets if they were a power of two apart."""
        return self.quads * self.block * QUAD + WIDTH

    @property
    def blocks(self) -> int:
        """Blocks of all channels."""
        return self.channels // self.block

    @property
    def size(self) -> int:
        """Bytes of all."""
        return self.blocks * self.planes * self.plane

    def start(self, block: Expr) -> Expr:
        """Where a block starts."""
        return block * (self.planes * self.plane)

    def quad(self, staged: Array, plane: int, tile: Expr, out: Array, quad: Expr) -> None:
        """Interleave four tiles of staged[position * plane ...][tile][channel], from `tile` on."""
        with (
            nest.serial(self.blocks, "block") as block,
            nest.serial(self.block // LANES, "piece") as piece,
            nest.serial(self.planes, "position") as position,
        ):
            within = piece * LANES
            first = position * plane + tile * self.channels + block * self.block + within
            tiles = [staged[nest.ramp(first + u * self.channels, LANES)] for u in range(QUAD)]
            at = self.start(block) + position * self.plane + (quad * self.block + within) * QUAD
            out.store(nest.ramp(at, WIDTH), interleave(tiles, LANES))


def pack_inputs(image: Image, form: Form, packed: Packed, source: Array) -> Array:
    """B^T x B of all tiles. Tiles that fill the last quad hold any value: their gradients are 0."""
    rows = image.images * image.rows
    batch = QUAD // gcd(image.tiles, QUAD)
    plane = batch * image.line + WIDTH
    out = nest.workspace(packed.size, "uint8")
    split = Split(0, 0, form.biases)
    step = batch * -(-rows // (TASKS * batch))
    with nest.parallel(-(-rows // step), packed.size, "strip") as task:
        strip = Strip(image, source, Shifts(None, 1, image.channels, split))
        staged = nest.workspace(len(POSITIONS) * plane, "uint8")
        first, own = task * step, held(tirx.min(step, rows - task * step))
        with nest.serial(tirx.floordiv(own + batch - 1, batch), "batch") as number:
            with nest.serial(batch, "row") as r:
                row = number * batch + r
                n, y = (held(f(first + row, image.rows)) for f in (tirx.floordiv, tirx.floormod))
                with nest.when(row < own):
                    strip.read(n, y, tirx.EQ(row, 0))
                    strip.transform(y, staged, r * image.line, plane, split)
            quads = batch * image.tiles // QUAD
            before = held(tirx.floordiv(first + number * batch, batch) * quads)
            with nest.serial(tirx.min(quads, packed.quads - before), "quad") as quad:
                packed.quad(staged, plane, quad * QUAD, out, before + quad)
    return out


class Gradients:
    """G g G^T of tiles (images, height, width, channels) of the gradient with its shifts."""

    def __init__(
        self,
        image: Image,
        form: Form,
        packed: Packed,
        source: Array,
        exponent: Array | None,
        groups: int,
    ) -> None:
        self.image, self.form, self.packed = image, form, packed
        self.source, self.exponent = source, exponent
        self.groups = 1 if exponent is None else groups
        self.height, self.width = source.shape[1:3]

    def pack(self) -> Array:
        """The packed operands."""
        packed, out = self.packed, nest.workspace(self.packed.size, "int8")
        step = -(-packed.quads // TASKS)
        with (
            nest.parallel(-(-packed.quads // step), packed.size, "strip") as task,
            nest.serial(tirx.min(step, packed.quads - task * step), "quad") as number,
        ):
            quad = held(task * step + number)
            indices = nest.scratch(len(TOKENS) * QUAD, "int32")
            masks = nest.scratch(len(TOKENS) * self.groups * QUAD, "uint8")
            with nest.serial(QUAD, "tile") as tile:
                self._find(held(quad * QUAD + tile), tile, indices, masks)
            with (
                nest.serial(packed.blocks, "block") as block,
                nest.serial(packed.block // LANES, "piece") as piece,
            ):
                within = piece * LANES
                first = held(block * packed.block + within)
                at = held(packed.start(block) + (quad * packed.block + within) * QUAD)
                values = [self._value(k, first, indices, masks) for k in range(len(TOKENS))]
                for position, value in enumerate(self._transform(values)):
                    value = tirx.reinterpret(f"int8x{WIDTH}", value)
                    out.store(nest.ramp(at + position * packed.plane, WIDTH), value)
        return out

    def _find(self, tile: Expr, place: Expr, indices: Array, masks: Array) -> None:
        """Indices of the tokens of a tile, and their shifts as masks: for each bit 255 where a
        value is doubled once more, then 255 where there is a token at all."""
        image = self.image
        row, x = held(tirx.floordiv(tile, image.tiles)), held(tirx.floormod(tile, image.tiles) * 2)
        n, y = held(tirx.floordiv(row, image.rows)), held(tirx.floormod(row, image.rows) * 2)
        for k, (r, s) in enumerate(TOKENS):
            inside = tirx.all(n < image.images, y + r < self.height, x + s < self.width)
            index = held(nest.select(inside, (n * self.height + y + r) * self.width + x + s, 0))
            indices.store(k * QUAD + place, index)
            yes = [inside]
            if self.exponent is not None and self.groups > 1:
                shift = held(shift_of(self.exponent, self.groups, index))
                yes = [*(shift > bit for bit in range(self.groups - 1)), inside]
            for bit, one in enumerate(yes):
                mask = nest.cast(nest.select(one, nest.const(255, "int32"), 0), "uint8")
                masks.store((k * self.groups + bit) * QUAD + place, mask)

    def _value(self, token: int, channel: Expr, indices: Array, masks: Array) -> Expr:
        """LANES channels of a token of four tiles, interleaved, with their shifts."""
        rows = []
        for tile in range(QUAD):
            start = indices[token * QUAD + tile] * self.packed.channels + channel
            rows.append(nest.cast(self.source[nest.ramp(start, LANES)], "uint8", LANES))
        value = interleave(rows, LANES)
        for bit in range(self.groups):
            (value,) = nest.kept([value], "uint8", WIDTH)
            word = masks[nest.ramp((token * self.groups + bit) * QUAD, QUAD)]
            kept = tirx.bitwise_and(value, repeated(tirx.reinterpret("uint32", word), LANES))
            value = value + kept if bit < self.groups - 1 else kept
        return value

    def _transform(self, values: list[Expr]) -> list[Expr]:
        """The operands, bytes modulo 256."""
        values = nest.kept(values, "uint8", WIDTH)
        columns = [
            nest.kept([_sum(f, values[s], values[2 + s]) for f in GRADIENT], "uint8", WIDTH)
            for s in range(2)
        ]
        found, low = [], []
        for i, j in POSITIONS:
            left, right = columns[0][i], columns[1][i]
            if not (self.form.halved and i in CENTRE and j in CENTRE):
                found.append(_sum(GRADIENT[j], left, right))
                continue
            zero = nest.splat(nest.zero("uint8"), WIDTH)
            right = right if GRADIENT[j][1] > 0 else zero - right
            (high,) = nest.kept([_half(left, right)], "uint8", WIDTH)
            found.append(high)
            low.append(left + right - high - high)
        return found + low


def _sum(factors: tuple[int, ...], first: Expr, second: Expr) -> Expr:
    """factors are (1, 0), (1, 1), (1, -1) or (0, 1)."""
    if not factors[0]:
        return second
    return (first, first + second, first - second)[factors[1]]


def _half(first: Expr, second: Expr) -> Expr:
    """Half the sum of signed bytes, rounded up: x86 has it for unsigned ones."""
    sign = nest.splat(nest.const(128, "uint8"), WIDTH)
    wide = [nest.cast(one + sign, "uint16", WIDTH) for one in (first, second)]
    total = wide[0] + wide[1] + nest.splat(nest.const(1, "uint16"), WIDTH)
    total = tirx.shift_right(total, nest.splat(nest.const(1, "uint16"), WIDTH))
    return nest.cast(total, "uint8", WIDTH) + sign
