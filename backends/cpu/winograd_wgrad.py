"""The gradient of 3x3 weights in 16 or 20 products a tile instead of 36: Winograd's F(3x3, 2x2).

Exact on integers: see winograd_wgrad_ranges.py. Both operands are transformed first. A task then
has a block of weights: for each of 16 positions it sums products over the tiles of all images,
x on the vector side and the gradient as broadcast words of four tiles, and turns the sums into
weights at the end.
"""

from dataclasses import dataclass

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.conv_sums import Rows
from sqcompile.backends.cpu.machine import Dot, machine
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.winograd_input import WIDTH, Image
from sqcompile.backends.cpu.winograd_ranges import POSITIONS, SIDE
from sqcompile.backends.cpu.winograd_wgrad_pack import QUAD, Gradients, Packed, held, pack_inputs
from sqcompile.backends.cpu.winograd_wgrad_ranges import OUTPUT, Form, form
from sqcompile.backends.kernels import KernelSpec

TILE, VECTORS = 8, 2
"""Output channels and vectors of input channels whose sums stand in registers."""
TASKS = 2
"""Blocks that a kernel should have at least: with twice as many, operands that only the L3 cache
holds are read more often (64 channels of 4096 tiles then take as long as the direct kernel)."""
FEWEST = 64
"""Tiles that pay for the 16 sums of a weight."""
BYTES = 10 << 20
"""Transformed operands that were measured to pay; they stand in memory as a whole."""
OPAQUE = 256
"""Elements of the workspace that holds the number of steps, which LLVM must not know: it unrolls
short loops."""


@dataclass(frozen=True)
class Plan:
    """A gradient as tiles and blocks."""

    image: Image
    form: Form
    x: Packed
    g: Packed
    dot: Dot

    @property
    def width(self) -> int:
        """Sums of one output channel of a block."""
        return VECTORS * self.dot.lanes


def _regular(spec: KernelSpec) -> bool:
    """Whether the geometry, and the scales, are those that the kernel has code for."""
    (out, *more), pad = spec.outputs, spec["padding"]
    unit = all(tuple(spec[name]) == (1, 1) for name in ("stride", "dilation"))
    taps = spec["groups"] == 1 and out.shape[2:] == (3, 3)
    found = unit and taps and pad[0] == pad[1] <= 2 and not more and out.dtype != "int64"
    exponent, g = spec.tensor("exponent"), spec.tensor("g")
    if exponent is not None and exponent.size != g.size // max(g.shape[3], 1):
        return False
    plain = Rows.fits(out.shape, spec.tensors())
    return bool(found and plain and g.size and spec.tensor("x").size)


def plan(spec: KernelSpec) -> Plan | None:
    """The plan of a gradient that Winograd computes exactly, None for others."""
    dot = machine().dot
    if not (dot.bytes and dot.lanes * dot.depth == WIDTH and _regular(spec)):
        return None
    n, height, width, channels = spec.tensor("x").shape
    _, rows, columns, outputs = spec.tensor("g").shape
    if channels % (VECTORS * dot.lanes) or outputs % 16:
        return None
    pad = spec["padding"][0]
    image = Image(n, height, width, channels, pad, -(-rows // 2), -(-columns // 2))
    groups = 1 if spec.tensor("exponent") is None else spec["shift_groups"]
    tiles = n * image.rows * image.tiles
    found = form(*spec.ranges("g", "x"), groups, tiles)
    if found is None:
        return None
    quads = -(-tiles // QUAD)
    x = Packed(channels, VECTORS * dot.lanes, len(POSITIONS), quads)
    sizes = [size for size in (64, 32, 16) if outputs % size == 0]
    block = next((s for s in sizes if outputs // s * x.blocks >= TASKS), sizes[-1])
    return Plan(image, found, x, Packed(outputs, block, found.planes, quads), dot)


def fits(spec: KernelSpec) -> bool:
    """Whether Winograd computes `spec` exactly, and faster than the direct kernel.

    With 64 to 8192 tiles of 512 to 32 channels, four groups of 4 bits, it takes 0.7 to 0.9 of the
    time of the direct kernel.
    """
    made = plan(spec)
    if made is None or made.image.images * made.image.rows * made.image.tiles < FEWEST:
        return False
    return made.x.size + made.g.size <= BYTES


class _Block:
    """The sums of a block of weights, for one task."""

    def __init__(self, made: Plan, x: Array, g: Array, biases: Array, steps: Expr) -> None:
        self.plan, self.x, self.g, self.biases, self.steps = made, x, g, biases, steps
        self.block, self.lanes = made.g.block, made.dot.lanes
        self.own = nest.ramp(0, self.lanes)
        self.sums = nest.workspace(len(POSITIONS) * self.block * made.width, "int32")
        self.offsets = nest.scratch(self.block, "int32")

    def multiply(self, column: Expr, row: Expr) -> None:
        """All positions of input channels of block `column`, output channels of block `row`."""
        made = self.plan
        with nest.serial(len(POSITIONS), "position") as position:
            i, j = tirx.floordiv(position, SIDE), tirx.floormod(position, SIDE)
            left = held(made.x.start(column) + position * made.x.plane)
            right = held(made.g.start(row) + position * made.g.plane)
            central, low = nest.zero("int32"), right
            if made.form.halved:
                central = held(nest.cast(tirx.all(i > 0, i < 3, j > 0, j < 3), "int32"))
                plane = len(POSITIONS) + 2 * (i - 1) + j - 1
                low = held(made.g.start(row) + plane * made.g.plane)
            self._correct(position, right, low, central)
            with nest.serial(self.block // TILE, "tile") as tile:
                self._tile(position, tile * TILE, (left, right, low), central)

    def _correct(self, position: Expr, right: Expr, low: Expr, central: Expr) -> None:
        """offsets: what the bias of the position adds to the sums of each output channel."""
        dot = self.plan.dot
        ones = nest.splat(nest.const(1, dot.left), WIDTH)
        total = nest.scratch(self.lanes, "int32")
        with nest.serial(self.block // self.lanes, "vector") as v:
            total.store(self.own, nest.splat(nest.zero("int32"), self.lanes))

            def add(start: Expr, steps: Expr) -> None:
                with nest.serial(steps, "step") as k:
                    at = start + (k * self.block + v * self.lanes) * QUAD
                    total.store(self.own, dot.add(total[self.own], ones, dot.loaded(self.g, at)))

            add(right, self.steps)
            if self.plan.form.halved:
                self._double(total, central)
                add(low, self.steps * central)
            bias = nest.splat(self.biases[position], self.lanes)
            self.offsets.store(nest.ramp(v * self.lanes, self.lanes), total[self.own] * bias)

    def _double(self, total: Array, central: Expr) -> None:
        shift = nest.splat(central, self.lanes)
        total.store(self.own, tirx.shift_left(total[self.own], shift))

    def _tile(
        self, position: Expr, channel: Expr, starts: tuple[Expr, Expr, Expr], central: Expr
    ) -> None:
        dot, lanes = self.plan.dot, self.lanes
        sums = [[nest.scratch(lanes, "int32") for _ in range(VECTORS)] for _ in range(TILE)]
        every = [one for row in sums for one in row]
        for one in every:
            one.store(self.own, nest.splat(nest.zero("int32"), lanes))

        def add(start: Expr, steps: Expr) -> None:
            with nest.serial(steps, "step") as k:
                at = starts[0] + k * (VECTORS * WIDTH)
                left = [nest.bound(dot.loaded(self.x, at + v * WIDTH)) for v in range(VECTORS)]
                for c, row in enumerate(sums):
                    word = start + (k * self.block + channel + c) * QUAD
                    right = nest.bound(dot.repeated(self.g, word))
                    for one, value in zip(row, left, strict=True):
                        one.store(self.own, dot.add(one[self.own], value, right))

        add(starts[1], self.steps)
        if self.plan.form.halved:
            for one in every:
                self._double(one, central)
            add(starts[2], self.steps * central)
        for c, row in enumerate(sums):
            offset = nest.splat(self.offsets[channel + c], lanes)
            for v, one in enumerate(row):
                at = self._place(position, channel + c, v)
                self.sums.store(nest.ramp(at, lanes), one[self.own] - offset)

    def _place(self, position: Expr, channel: Expr, vector: Expr) -> Expr:
        return (position * self.block + channel) * self.plan.width + vector * self.lanes

    def write(self, column: Expr, row: Expr, rows: Rows) -> None:
        """The weights of the block."""
        lanes, taps = self.lanes, 9
        with (
            nest.serial(self.block, "channel") as channel,
            nest.serial(VECTORS, "vector") as vector,
        ):
            held = [
                nest.bound(self.sums[nest.ramp(self._place(p, channel, vector), lanes)])
                for p in range(len(POSITIONS))
            ]
            mixed = [_sum(factors, held[j::SIDE]) for factors in OUTPUT for j in range(SIDE)]
            mixed = nest.kept(mixed, "int32", lanes)
            two = nest.splat(nest.const(2, "int32"), lanes)
            results = [
                tirx.shift_right(_sum(factors, mixed[SIDE * a : SIDE * a + SIDE]), two)
                for a in range(3)
                for factors in OUTPUT
            ]
            results = nest.kept(results, "int32", lanes)
            first = (column * self.plan.width + vector * lanes) * taps
            for k in range(taps):
                order = [(i % taps) * lanes + i // taps for i in range(k * lanes, (k + 1) * lanes)]
                turned = tirx.Shuffle(results, [tirx.const(i, "int32") for i in order])
                rows.vector(turned, [row * self.block + channel, first + k * lanes], lanes)


def _sum(factors: tuple[int, ...], values: list[Expr]) -> Expr:
    """The sum of factor * value, factors up to 2; the first is positive."""
    total = None
    for factor, value in zip(factors, values, strict=True):
        for _ in range(abs(factor)):
            total = value if total is None else total + value if factor > 0 else total - value
    return total


def generate(spec: KernelSpec) -> object:
    """The kernel of a spec that fits."""
    made = plan(spec)
    assert made is not None
    with nest.function(spec) as kernel:
        rows = Rows(spec, kernel)
        steps, biases = nest.scratch(OPAQUE, "int32"), nest.scratch(len(POSITIONS), "int32")
        steps.store(0, made.x.quads)
        for position, bias in enumerate(made.form.biases):
            biases.store(position, nest.const(bias, "int32"))
        x = pack_inputs(made.image, made.form, made.x, kernel["x"])
        given = (kernel["g"], kernel.get("exponent"), spec["shift_groups"])
        g = Gradients(made.image, made.form, made.g, *given).pack()
        work = made.x.size * made.g.channels
        with nest.parallel(made.x.blocks * made.g.blocks, work, "block") as task:
            column, row = (held(f(task, made.g.blocks)) for f in (tirx.floordiv, tirx.floormod))
            block = _Block(made, x, g, biases, nest.bound(steps[0]))
            block.multiply(column, row)
            block.write(column, row, rows)
    return kernel.result
