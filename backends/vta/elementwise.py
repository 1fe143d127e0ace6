"""Elementwise programs: steps of ALU operations on int32, and sums over rows.

A tile of ACC has BATCH rows by BLOCK channels; the grid is (channel tile, row tile). A block is a
run of row tiles of one channel tile: all tensors' tiles side by side, then one tile a vector. LOAD
of ACC runs in COMPUTE, so that only stores overlap with anything.

Sums add the halves of a block to each other until one tile is left, whose rows, and whose blocks,
the host adds in int64; a block has no more rows than int32 can add up.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from sqcompile.backends.vta.boxes import Rectangle
from sqcompile.backends.vta.carry import ACC_BITS, slices_of
from sqcompile.backends.vta.cuts import parts
from sqcompile.backends.vta.forms import Array, Grid, chunks, joined
from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.isa import AluOp
from sqcompile.backends.vta.nests import MOST_RIGHT
from sqcompile.backends.vta.spec import ElementwiseSpec, Step, Values
from sqcompile.backends.vta.stream import Tiles
from sqcompile.backends.vta.writer import Slots, Writer, blocks_at_once
from sqcompile.errors import UsageError

_LIMIT = 1 << ACC_BITS - 1

_RANGES: dict[str, Callable[[Values, Values], Values]] = {
    "add": lambda x, y: Values(x.low + y.low, x.high + y.high),
    "min": lambda x, y: Values(min(x.low, y.low), min(x.high, y.high)),
    "max": lambda x, y: Values(max(x.low, y.low), max(x.high, y.high)),
    "shr": lambda x, y: Values(x.low >> y.low, x.high >> y.high),
}
"""What a step makes of the ranges of x and y; shr is by an immediate."""


class ElementwiseForm:
    """Steps on one accelerator."""

    def __init__(self, hardware: Hardware, spec: ElementwiseSpec) -> None:
        self.hardware, self.spec = hardware, spec
        width = hardware.width(Memory.OUT)
        self.range = _range(spec)
        rows = -(-spec.rows // hardware.batch)
        self.columns = -(-spec.channels // hardware.block)
        self.rows = rows
        self.result_bits, self.carry, self.signed = _bits(self.range), None, True
        slices = slices_of(ACC_BITS if spec.sums else self.result_bits, width)
        room = hardware.depth(Memory.ACC) // blocks_at_once(slices) - len(spec.vectors)
        self.size = min(rows, room // len(spec.tensors))
        if spec.sums:
            self.size = min(self.size, _most_rows(self.range))
            self.result_bits = _bits(
                Values(self.range.low * self.size, self.range.high * self.size)
            )
        if self.size < 1:
            raise UsageError(f"{hardware.name}: ACC cannot hold a tile of each operand")
        blocks = -(-rows // self.size)
        self.result_shape = (self.columns, blocks if spec.sums else rows)
        self.grids = tuple(
            Grid(f"{kind}{number}", Memory.ACC, (self.columns, length))
            for kind, operands, length in (
                ("tensor", spec.tensors, rows),
                ("vector", spec.vectors, 1),
            )
            for number in range(len(operands))
        )

    def script(self) -> None:
        """No TIR: steps of the ALU, one after the other."""

    def write(self, addresses: Mapping[str, int], overlap: bool) -> tuple[bytes, bytes]:
        """Instructions and micro-ops."""
        spec, size = self.spec, self.size
        writer = Writer(self.hardware, addresses["uops"])
        count = slices_of(self.result_bits, self.hardware.width(Memory.OUT))
        tiles = len(spec.tensors) * size + len(spec.vectors)
        blocks = blocks_at_once(count) if overlap else 1
        slots = Slots(tiles, blocks)
        for column in range(self.columns):
            for number, (begin, end) in enumerate(parts(self.rows, size)):
                base, _ = slots.take((column, begin))
                for grid, first, place, length in self._sources(column, begin, end):
                    one = Rectangle(first, 1, length, length, 0)
                    writer.load(Memory.ACC, base + place, addresses[grid], one)
                results = Tiles(Memory.OUT, base, end - begin)
                self._compute(writer, results, base)
                at = number if spec.sums else begin
                results = Tiles(Memory.OUT, base, 1 if spec.sums else end - begin)
                store = partial(self._store, writer, addresses["out"], results, (column, at))
                writer.end_block(results, count, store, blocks - 1)
        return writer.finished()

    def pack(self, operands: Sequence[Array]) -> list[Array]:
        """int32 (rows, channels) and (channels,) -> tiles."""
        spec = self.spec
        ranges = (*spec.tensors, *spec.vectors)
        found = []
        for values, allowed in zip(operands, ranges, strict=True):
            if values.size and not allowed.low <= values.min() <= values.max() <= allowed.high:
                raise ValueError("an operand holds an integer outside the range of its spec")
            wide = np.atleast_2d(values).astype(np.int32)
            if values.ndim == 1:
                wide = np.broadcast_to(wide, (self.hardware.batch, wide.shape[1]))
            tiles = chunks(chunks(wide, 1, self.hardware.block), 0, self.hardware.batch)
            found.append(tiles.transpose(2, 0, 1, 3))
        return found

    def unpack(self, tiles: Array, operands: Sequence[Array]) -> Array:
        """Tiles -> int32 (rows, channels), or int64 (channels,)."""
        spec = self.spec
        if spec.sums:
            total = tiles.sum((1, 2), dtype=np.int64).reshape(-1)[: spec.channels]
            return total - self._missing(operands)
        rows = joined(tiles.transpose(1, 2, 0, 3), 0, spec.rows)
        return np.ascontiguousarray(joined(rows, 1, spec.channels))

    def sum_tiles(self, overlap: bool) -> int:
        """None: sums are its only result."""
        return 0

    def unpack_sums(self, tiles: Array, operands: Sequence[Array]) -> Array:
        """Raises UsageError."""
        raise UsageError("an elementwise program has one result")

    def _missing(self, operands: Sequence[Array]) -> Array:
        """What rows of zeros after the last one add to the sums."""
        spec = self.spec
        count = self.rows * self.hardware.batch - spec.rows
        vectors = operands[len(spec.tensors) :]
        x = np.zeros(spec.channels, np.int64)
        for step in spec.steps:
            y = vectors[step.value] if step.by == "vector" else 0
            y = step.value if step.by == "immediate" else y
            x = _VALUES[step.op](x, y)
        return x * count

    def _sources(self, column: int, begin: int, end: int) -> Iterator[tuple[str, int, int, int]]:
        """(grid, first tile there, place in the block, tiles) of what a block loads."""
        tensors, vectors = len(self.spec.tensors), len(self.spec.vectors)
        for number in range(tensors):
            yield f"tensor{number}", column * self.rows + begin, number * self.size, end - begin
        for number in range(vectors):
            yield f"vector{number}", column, tensors * self.size + number, 1

    def _compute(self, writer: Writer, results: Tiles, base: int) -> None:
        spec = self.spec
        vectors = base + len(spec.tensors) * self.size
        for step in spec.steps:
            opcode = AluOp[step.op.upper()]
            if step.by == "immediate":
                writer.alu([results], opcode, step.value)
            elif step.by == "tensor":
                writer.combine(results, opcode, base + step.value * self.size, 1)
            else:
                writer.combine(results, opcode, vectors + step.value, 0)
        count = results.count
        if not spec.steps and (count == 1 or not spec.sums):
            writer.alu([results], AluOp.ADD, 0)  # OUT gets what a LOAD of ACC does not give it
        while spec.sums and count > 1:
            half = -(-count // 2)
            some = Tiles(Memory.OUT, base, count - half)
            writer.combine(some, AluOp.ADD, base + half, 1)
            count = half

    def _store(
        self, writer: Writer, dram: int, results: Tiles, at: tuple[int, int], number: int
    ) -> None:
        count = slices_of(self.result_bits, self.hardware.width(Memory.OUT))
        grid = (count, *self.result_shape)
        writer.store(results.first, dram, grid, (number, *at), (1, 1, results.count))


_VALUES: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "shr": np.right_shift,
}


def _range(spec: ElementwiseSpec) -> Values:
    """Of the result; raises UsageError for a step that may leave int32 or that has no
    instruction."""
    x = spec.tensors[0]
    operands = {"tensor": spec.tensors, "vector": spec.vectors}
    for step in spec.steps:
        y = Values(step.value, step.value)
        if step.by != "immediate":
            y = operands[step.by][step.value]
        _check_step(step)
        # Rows and channels of zeros pad the operands.
        x = Values(min(x.low, 0), max(x.high, 0))
        y = Values(min(y.low, 0), max(y.high, 0)) if step.by != "immediate" else y
        x = _RANGES[step.op](x, y)
        if not -_LIMIT <= x.low <= x.high < _LIMIT:
            raise UsageError(f"the step {step} may leave 32 bits: {x.low} to {x.high}")
    return Values(min(x.low, 0), max(x.high, 0))


def _check_step(step: Step) -> None:
    if step.by == "immediate":
        low, high = (0, MOST_RIGHT) if step.op == "shr" else (-(1 << 15), (1 << 15) - 1)
        if not low <= step.value <= high:
            raise UsageError(f"the step {step} has an immediate outside {low}..{high}")
    elif step.op == "shr":
        raise UsageError("shifts are by immediates: implementations differ in others")


def _bits(values: Values) -> int:
    """Of a signed integer in this range."""
    return max(values.high, -values.low - 1).bit_length() + 1


def _most_rows(values: Values) -> int:
    """Tiles of this range that add up without leaving 32 bits."""
    return (_LIMIT - 1) // max(1, values.high, -values.low)
