"""What happens to a block's accumulators before they are stored, besides nothing: ReLU, or sums.

ReLU is a MAX with 0 in place. Sums are added up in ACC, in tiles of their own, and stored when the
chunk's last block is done: `LANES` tiles for every tile of channels, which take turns, and whose
values the host adds. An ALU operation with a register takes two cycles a tile, and there is no
faster way to add tiles: halving a block takes as many, and destroys it.

Where accumulators keep whole sums (a result is one slice of 32 bits), blocks of the same channels
are added up by not clearing them, which costs nothing: what has been added up in a place is added
to the sums once, when other channels come or the chunk ends. Everywhere else a block is cleared
when it begins, and added to the sums when it ends.

Everything is modulo 2^32. A chunk has no more results than int32 can add up.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from sqcompile.backends.vta import isa
from sqcompile.backends.vta.correlation import LANES, Correlation
from sqcompile.backends.vta.cuts import Sizes, Tiling, parts
from sqcompile.backends.vta.hardware import Memory
from sqcompile.backends.vta.isa import AluOp
from sqcompile.backends.vta.nests import MOST_ITERATIONS, Loop, Nest
from sqcompile.backends.vta.places import Place, sum_chunks
from sqcompile.backends.vta.stream import Tiles
from sqcompile.backends.vta.writer import Slots, Writer


class Setting(NamedTuple):
    """What an epilogue is written into: the program so far, what it computes, how it is cut, and
    the addresses of its grids."""

    writer: Writer
    of: Correlation
    tiling: Tiling
    sizes: Sizes
    blocks: Sequence[Place]
    addresses: Mapping[str, int]


class Epilogue(Protocol):
    """Calls around every block, in order."""

    def begin(self, number: int, results: Tiles) -> None:
        """Block `number` will be added to these accumulators: let them hold what it is added to."""

    def end(self, number: int, results: Tiles) -> None:
        """It was."""

    def finish(self) -> None:
        """All were."""


def epilogue(setting: Setting) -> Epilogue:
    """That of a correlation."""
    of = setting.of
    kind: Callable[[Setting], Epilogue] = Plain
    if of.relu:
        kind = Relu
    elif of.most_summed:
        kind = RunningSums if of.totals.carry is not None else Sums
    return kind(setting)


class Plain:
    """Accumulators are cleared, all when the program begins where they are carried, else one block
    after the other."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.writer = setting, setting.writer
        self.carried = setting.of.totals.carry is not None
        if self.carried:
            used = min(len(setting.blocks), setting.tiling.acc_buffers)
            self.writer.clear(Tiles(Memory.OUT, 0, used * setting.sizes.acc))

    def begin(self, number: int, results: Tiles) -> None:
        """Clear them, where they are not carried."""
        if not self.carried:
            self.writer.clear(results)

    def end(self, number: int, results: Tiles) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


class Relu(Plain):
    """max(accumulator, 0)."""

    def end(self, number: int, results: Tiles) -> None:
        """Negative sums become 0."""
        self.writer.alu([results], AluOp.MAX, 0)


class _Chunk(NamedTuple):
    """Blocks whose sums lie in the same tiles."""

    group: int
    outputs: tuple[int, int]
    number: int


class Sums(Plain):
    """Sums of channels, over blocks that are cleared."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        of, tiling = setting.of, setting.tiling
        self.chunks = [
            _Chunk(*block[:2], number)
            for block, number in zip(
                setting.blocks, sum_chunks(of, list(setting.blocks)), strict=True
            )
        ]
        self.first = tiling.acc_buffers * setting.sizes.acc
        self.slots = Slots(tiling.outputs * LANES, tiling.buffers)
        self.open: tuple[_Chunk, Tiles] | None = None
        self.lanes = 0

    def begin(self, number: int, results: Tiles) -> None:
        """Open the chunk's sums, and clear the block."""
        chunk = self.chunks[number]
        if self.open is None or self.open[0] != chunk:
            self.close()
            base, _ = self.slots.take(chunk)
            first, last = chunk.outputs
            sums = Tiles(Memory.OUT, self.first + base, (last - first) * LANES)
            self.writer.settle(sums)
            self.writer.clear(sums)
            self.open, self.lanes = (chunk, sums), 0
        super().begin(number, results)

    def end(self, number: int, results: Tiles) -> None:
        """Add the block."""
        self.add(results)

    def finish(self) -> None:
        """Store the last chunk."""
        self.close()

    def close(self) -> None:
        """Store the sums of a chunk."""
        if self.open is None:
            return
        (group, outputs, number), sums = self.open
        if self.lanes < LANES:
            self.writer.alu([sums], AluOp.ADD, 0)  # OUT gets what clearing does not give it
        count = self.setting.of.sum_slices(self.writer.hardware.width(Memory.OUT))
        grid = (count, *self.setting.of.sums_shape(max(one.number for one in self.chunks) + 1))

        def store(which: int) -> None:
            starts = (which, group, outputs[0], number, 0)
            sizes = (1, 1, outputs[1] - outputs[0], 1, LANES)
            self.writer.store(sums.first, self.setting.addresses["sums"], grid, starts, sizes)

        self.writer.end_block(sums, count, store, self.setting.tiling.acc_buffers - 1)
        self.open = None

    def add(self, results: Tiles) -> None:
        """Accumulators (outputs, results), dense, to the sums. Two operations on one tile lie
        `LANES` apart: the Chisel core reads a tile before the last write to it is there."""
        assert self.open is not None
        _, sums = self.open
        outputs = sums.count // LANES
        length = results.count // outputs
        self.lanes = max(self.lanes, min(length, LANES))
        rounds, rest = divmod(length, LANES)
        pieces = [(begin, LANES, end - begin) for begin, end in parts(rounds, MOST_ITERATIONS)]
        for begin, lanes, count in [*pieces, *([(rounds, rest, 1)] if rest else [])]:
            lane = np.arange(lanes)
            source = results.first + begin * LANES + lane
            uops = np.stack([sums.first + lane, source, np.zeros_like(lane)], axis=-1)
            loops = Nest(uops, Loop(count, src=LANES), Loop(outputs, dst=LANES, src=length))
            fields = {"alu_opcode": AluOp.ADD, "use_imm": False, "imm": 0}
            self.writer.compute(isa.Alu, loops, fields, [sums])


class RunningSums(Sums):
    """Sums of channels, over blocks that go on where the one before them in their place ended."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.held: dict[int, Tiles] = {}
        self.used: dict[int, Tiles] = {}

    def begin(self, number: int, results: Tiles) -> None:
        """Collect what the place holds of other channels."""
        first, last = self.chunks[number].outputs
        held = self.held.get(results.first)
        if held is not None and last - first > 1 and held.count != results.count:
            self.collect(results.first)  # another layout: other channels
        super().begin(number, results)
        if results.first not in self.held and results.first in self.used:
            self.writer.clear(self.used.pop(results.first))

    def end(self, number: int, results: Tiles) -> None:
        """Leave the block where it is."""
        held = self.held.get(results.first, results)
        self.held[results.first] = max(held, results, key=lambda one: one.count)

    def close(self) -> None:
        """Collect all places, and store the chunk."""
        for place in list(self.held):
            self.collect(place)
        super().close()

    def collect(self, place: int) -> None:
        """What has been added up in a place, to the sums."""
        self.used[place] = self.held.pop(place)
        self.add(self.used[place])
