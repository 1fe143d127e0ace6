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
from sqcompile.backends.cpu.winograd_input import WIDTH, Image, Shifts, Strip, pieces, span
from sqcompile.backends.cpu.winograd_ranges import POSITIONS, Split
from sqcompile.backends.cpu.winograd_wgrad_ranges import CENTRE, GRADIENT, Form

QUAD = 4
LANES = 16
"""Channels that are interleaved at a time."""
TASKS = 8


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
        """Bytes of a position of a block."""
        return self.quads * self.block * QUAD

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
        self, image: Image, form: Form, packed: Packed, source: Array, exponent: Array | None
    ) -> None:
        self.image, self.form, self.packed = image, form, packed
        self.source, self.exponent = source, exponent
        self.height, self.width = source.shape[1:3]

    def pack(self, groups: int) -> Array:
        """The packed operands."""
        packed, channels = self.packed, self.packed.channels
        out = nest.workspace(packed.size, "int8")
        plane = QUAD * channels
        step = -(-packed.quads // TASKS)
        with nest.parallel(-(-packed.quads // step), packed.size, "strip") as task:
            staged = nest.workspace(packed.planes * plane, "int8")
            with nest.serial(tirx.min(step, packed.quads - task * step), "quad") as number:
                quad = task * step + number
                with nest.serial(QUAD, "tile") as tile:
                    tokens = self._tokens(quad * QUAD + tile, groups)
                    for channel, lanes in pieces(channels):
                        values = [self._value(token, channel, lanes) for token in tokens]
                        for position, value in enumerate(self._transform(values, lanes)):
                            at = span(position * plane + tile * channels + channel, lanes)
                            out_value = tirx.reinterpret(f"int8x{lanes}", value)
                            staged.store(at, out_value)
                packed.quad(staged, plane, 0, out, quad)
        return out

    def _tokens(self, tile: Expr, groups: int) -> list[tuple[Expr, Expr, Expr]]:
        """(index, shift, bits that remain) of the four tokens of a tile, none of one that is not
        there. x86 shifts no bytes, so pairs of bytes are shifted and masked."""
        image = self.image
        row, x = held(tirx.floordiv(tile, image.tiles)), held(tirx.floormod(tile, image.tiles) * 2)
        n, y = held(tirx.floordiv(row, image.rows)), held(tirx.floormod(row, image.rows) * 2)
        found = []
        for r, s in ((0, 0), (0, 1), (1, 0), (1, 1)):
            inside = tirx.all(n < image.images, y + r < self.height, x + s < self.width)
            index = (n * self.height + y + r) * self.width + x + s
            index = held(nest.select(inside, index, 0))
            shift = nest.zero("int32")
            if self.exponent is not None:
                shift = shift_of(self.exponent, groups, index)
            shift = held(shift)
            mask = tirx.bitwise_and(tirx.shift_left(nest.const(255, "int32"), shift), 255) * 257
            found.append((index, shift, held(nest.select(inside, mask, 0))))
        return found

    def _value(self, token: tuple[Expr, Expr, Expr], channel: Expr, lanes: int) -> Expr:
        index, *bits = token
        half = lanes // 2
        shift, mask = (nest.splat(nest.cast(one, "uint16"), half) for one in bits)
        value = self.source[nest.ramp(index * self.packed.channels + channel, lanes)]
        pairs = tirx.reinterpret(f"uint16x{half}", value)
        pairs = tirx.bitwise_and(tirx.shift_left(pairs, shift), mask)
        return tirx.reinterpret(f"uint8x{lanes}", pairs)

    def _transform(self, values: list[Expr], lanes: int) -> list[Expr]:
        """The operands, bytes modulo 256."""
        values = nest.kept(values, "uint8", lanes)
        columns = [
            nest.kept([_sum(f, values[s], values[2 + s]) for f in GRADIENT], "uint8", lanes)
            for s in range(2)
        ]
        found, low = [], []
        for i, j in POSITIONS:
            left, right = columns[0][i], columns[1][i]
            if not (self.form.halved and i in CENTRE and j in CENTRE):
                found.append(_sum(GRADIENT[j], left, right))
                continue
            zero = nest.splat(nest.zero("uint8"), lanes)
            right = right if GRADIENT[j][1] > 0 else zero - right
            (high,) = nest.kept([_half(left, right, lanes)], "uint8", lanes)
            found.append(high)
            low.append(left + right - high - high)
        return found + low


def _sum(factors: tuple[int, ...], first: Expr, second: Expr) -> Expr:
    """factors are (1, 0), (1, 1), (1, -1) or (0, 1)."""
    if not factors[0]:
        return second
    return (first, first + second, first - second)[factors[1]]


def _half(first: Expr, second: Expr, lanes: int) -> Expr:
    """Half the sum of signed bytes, rounded up: x86 has it for unsigned ones."""
    sign = nest.splat(nest.const(128, "uint8"), lanes)
    wide = [nest.cast(one + sign, "uint16", lanes) for one in (first, second)]
    total = wide[0] + wide[1] + nest.splat(nest.const(1, "uint16"), lanes)
    total = tirx.shift_right(total, nest.splat(nest.const(1, "uint16"), lanes))
    return nest.cast(total, "uint8", lanes) + sign
