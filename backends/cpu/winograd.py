"""3x3 convolutions with stride 1 in 16 products a tile instead of 36: Winograd's F(2x2, 3x3).

Exact on integers: see winograd_ranges.py. fprop and dgrad, which is the same on the gradient with
the weights turned around; the group shifts of both are shared between inputs and weights.
Transformed inputs and weights are packed as bytes for vpdpbusd. With 16-bit operands there is no
Winograd.
"""

from dataclasses import dataclass

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.channel_sums import ChannelSums, sums_of
from sqcompile.backends.cpu.epilogue import Epilogue
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.winograd_input import Shifts, Strip
from sqcompile.backends.cpu.winograd_plan import TASKS, TILES, VECTORS, Plan, plan
from sqcompile.backends.cpu.winograd_products import Operands, Products
from sqcompile.backends.cpu.winograd_ranges import POSITIONS
from sqcompile.backends.cpu.winograd_weight import Packer
from sqcompile.backends.kernels import KernelSpec

OPAQUE = 256
"""Elements of the workspace that holds the number of steps over channels: LLVM must not know it,
or it unrolls short loops and moves their products into the branches that store (a third of the
speed at 16 channels)."""


def fits(spec: KernelSpec) -> bool:
    """Whether Winograd computes `spec` exactly, and faster than a direct convolution.

    It does from 32 channels on both sides: with 16, sums are so short that combining them takes
    longer than the products it saves (400 of a direct kernel's 460 billion operations a second).
    And from 16 tiles, which pay for the weights that each call transforms: 460 to 580 billion
    with 16 tiles of 64 to 512 channels, 700 to 800 with 64.
    """
    made = plan(spec)
    if made is None:
        return False
    many = made.tile_rows * made.image.tiles >= 16
    return min(made.image.channels, made.filters.columns) >= 32 and many


def _transform(
    made: Plan, strip: Strip, rows: tuple[Expr, Expr], inputs: Array, plane: int, first: Expr
) -> None:
    """Transform tile rows rows[0] ... rows[0] + rows[1] - 1 into `inputs`, from line first on."""
    image = made.image
    with nest.serial(rows[1], "row") as i:
        n, row = tirx.floordiv(rows[0] + i, image.rows), tirx.floormod(rows[0] + i, image.rows)
        strip.read(n, row, tirx.EQ(i, 0))
        strip.transform(row, inputs, (first + i) * image.line, plane, made.split)


@dataclass(frozen=True)
class _Call:
    """A kernel under construction."""

    plan: Plan
    source: Array
    weights: Array
    shifts: Shifts
    epilogue: Epilogue
    steps: Array
    sums: ChannelSums | None

    def packer(self) -> Packer:
        """Of the weights, for one task."""
        return Packer(self.plan.filters, self.weights, self.shifts, self.plan.split)

    def strip(self) -> Strip:
        """Of the inputs, for one task."""
        return Strip(self.plan.image, self.source, self.shifts)

    def products(self, rows: int) -> Products:
        """Of `rows` tile rows, for one task."""
        return Products(self.plan, self.epilogue, self.sums, nest.bound(self.steps[0]), rows)

    def clear(self, place: Expr, blocks: int) -> None:
        """Before the first results of some blocks, whose channel sums stand at `place`."""
        if self.sums is not None:
            self.sums.clear(place, blocks * VECTORS)

    def finish(self, tasks: int) -> None:
        """After the tasks."""
        self.epilogue.finish(tasks)
        if self.sums is not None:
            self.sums.finish(-(-self.plan.filters.columns // self.sums.lanes), self.channels)

    def channels(self, vector: Expr) -> tuple[Expr, Expr]:
        """(first channel, number of channels) of a vector of columns."""
        lanes, columns = self.plan.dot.lanes, self.plan.filters.columns
        return vector * lanes, tirx.min(lanes, columns - vector * lanes)


def _by_block(call: _Call) -> None:
    """Inputs first, then blocks of weights in parallel: each is read while it is in cache."""
    made, rows = call.plan, call.plan.tile_rows
    filters, plane = made.filters, call.plan.plane(rows)
    inputs = nest.workspace(plane * len(POSITIONS), "uint8")
    step = -(-rows // (2 * TASKS))
    work = made.image.line * rows * len(POSITIONS)
    with nest.parallel(-(-rows // step), work, "strip") as task:
        first, own = task * step, tirx.min(step, rows - task * step)
        _transform(made, call.strip(), (first, own), inputs, plane, first)
    call.epilogue.prepare(filters.blocks)
    with (
        nest.parallel(filters.blocks, work * filters.columns, "block") as block,
        call.epilogue.task(block),
    ):
        weights = nest.scratch(filters.block, "int8")
        corrections = nest.scratch(4 * filters.width, "int32")
        call.packer().pack(block, weights, 0, corrections, 0)
        products = call.products(rows)
        column = block * filters.width
        place = block * VECTORS
        call.clear(place, 1)
        operands = Operands(inputs, 0, rows, weights, 0, corrections, 0, column, place)
        with nest.serial(made.groups(rows), "group") as group:
            products.group(group, operands)
    call.finish(filters.blocks)


def _by_chunk(call: _Call) -> None:
    """Weights first, then chunks of tile rows in parallel: a task transforms its inputs, then
    every block of weights passes over them."""
    made, rows = call.plan, call.plan.chunk
    filters, plane = made.filters, call.plan.plane(rows)
    weights = nest.scratch(filters.blocks * filters.block, "int8")
    corrections = nest.scratch(filters.blocks * 4 * filters.width, "int32")
    with nest.parallel(filters.blocks, filters.blocks * filters.block, "block") as block:
        start = block * (4 * filters.width)
        call.packer().pack(block, weights, block * filters.block, corrections, start)
    work = made.image.line * made.tile_rows * len(POSITIONS) * filters.columns
    tasks = -(-made.tile_rows // rows)
    call.epilogue.prepare(tasks)
    with nest.parallel(tasks, work, "chunk") as chunk, call.epilogue.task(chunk):
        inputs = nest.workspace(plane * len(POSITIONS), "uint8")
        first = chunk * rows
        own = tirx.min(rows, made.tile_rows - first)
        _transform(made, call.strip(), (first, own), inputs, plane, 0)
        products = call.products(rows)
        sums = chunk * (filters.blocks * VECTORS)
        call.clear(sums, filters.blocks)
        groups = tirx.floordiv(own * made.image.tiles + TILES - 1, TILES)
        with nest.serial(filters.blocks, "block") as block, nest.serial(groups, "group") as group:
            start, column = block * filters.block, block * filters.width
            at = block * (4 * filters.width)
            place = sums + block * VECTORS
            operands = Operands(inputs, first, own, weights, start, corrections, at, column, place)
            products.group(group, operands)
    call.finish(tasks)


def generate(spec: KernelSpec) -> object:
    """The kernel of a spec that fits."""
    made = plan(spec)
    assert made is not None
    with nest.function(spec) as f:
        source = f["x"] if "x" in f.tensors else f["g"]
        groups = spec["shift_groups"]
        shifts = Shifts(f.get("exponent"), groups, made.image.channels, made.split)
        steps = nest.scratch(OPAQUE, "int32")
        steps.store(0, made.filters.steps)
        parts = 1 if made.shared else -(-made.tile_rows // made.chunk)
        sums = sums_of(spec, f, parts, made.filters.blocks * VECTORS, made.dot.lanes)
        call = _Call(made, source, f["w"], shifts, Epilogue(spec, f), steps, sums)
        (_by_block if made.shared else _by_chunk)(call)
    return f.result
