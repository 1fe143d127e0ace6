"""A program of the accelerator: instructions, micro-ops, places in DRAM.

    program = product_program(hardware, GemmSpec(...))
    acc = run(program, [a, b])              # int32, what the op gives

Host arrays are packed into a DRAM image before and unpacked after; `image` and `result` are those
two steps for who brings a machine of their own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqcompile.backends.vta import isa, portable, tokens
from sqcompile.backends.vta.carry import ACC_BITS, befores, slices_of, taken_off
from sqcompile.backends.vta.elementwise import ElementwiseForm
from sqcompile.backends.vta.forms import Array, Form
from sqcompile.backends.vta.gathered import convolution_form
from sqcompile.backends.vta.gemm import GemmForm
from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.simulator import elements, machine
from sqcompile.backends.vta.simulator.core import NULL_PAGE, Profile
from sqcompile.backends.vta.simulator.timing import Cycles, cycles
from sqcompile.backends.vta.spec import ConvSpec, ElementwiseSpec, GemmSpec, Spec, Step, Values

SUMS = "sums"
"""The region of a second result."""


@dataclass(frozen=True)
class Region:
    """Bytes of DRAM."""

    start: int
    size: int

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.start + self.size


@dataclass(frozen=True)
class Program:
    """Everything that the accelerator needs but the operands. Regions are those of the form's
    grids, "out", "sums" and "uops"."""

    hardware: Hardware
    spec: Spec
    instructions: bytes
    uops: bytes
    regions: Mapping[str, Region]

    @cached_property
    def form(self) -> Form:
        """How host arrays and tiles belong together."""
        return form_of(self.hardware, self.spec)

    @cached_property
    def decoded(self) -> list[isa.Instruction]:
        """The instructions."""
        return isa.decode_program(self.hardware, self.instructions)

    @cached_property
    def _before(self) -> NDArray[np.int64]:
        """By tile of the result, the one whose accumulators it started from."""
        first = self.regions["out"].start // self.hardware.element_bytes(Memory.OUT)
        count = prod(self.form.result_shape)
        return befores(self.hardware, self.decoded, self._uop_image, first, count)

    @property
    def _uop_image(self) -> bytes:
        """DRAM up to the end of the micro-ops, of which only these are filled in."""
        return bytes(self.regions["uops"].start) + self.uops

    @property
    def data_end(self) -> int:
        """The first byte after operands and results; only micro-ops lie behind it."""
        return max(one.end for name, one in self.regions.items() if name != "uops" and one.size > 0)

    @property
    def macs(self) -> int:
        """Multiplications that the product asks for, without padding or digits."""
        return self.spec.macs

    def image(self, operands: Sequence[Array]) -> bytes:
        """DRAM from address 0 with operands and micro-ops."""
        dram = np.zeros(max(region.end for region in self.regions.values()), np.uint8)
        for grid, tiles in zip(self.form.grids, self.form.pack(operands), strict=True):
            rows = tiles.reshape(-1, tiles.shape[-1])
            region = self.regions[grid.name]
            data = elements.packed(rows, self.hardware.width(grid.memory))
            dram[region.start : region.end] = data.reshape(-1)
        return self.with_uops(dram.tobytes())

    def with_uops(self, dram: bytes) -> bytes:
        """DRAM with the micro-ops in their place, for which it need not have room."""
        start = self.regions["uops"].start
        return dram[:start].ljust(start, b"\0") + self.uops

    def result(self, dram: bytes, operands: Sequence[Array]) -> Array:
        """What the program left in DRAM, as the op gives it; the operands are those of `image`."""
        form = self.form
        total = self._stored(dram, "out", form.result_bits, form.signed)
        if form.carry is not None:
            tiles = total.reshape(prod(form.result_shape), -1)
            total = taken_off(tiles, self._before, form.carry)
        shape = (*form.result_shape, self.hardware.batch, self.hardware.block)
        return form.unpack(total.reshape(shape), operands)

    def sums(self, dram: bytes, operands: Sequence[Array]) -> Array:
        """The second result of a product with `sums`."""
        total = self._stored(dram, SUMS, ACC_BITS, signed=True)
        shape = (-1, self.hardware.batch, self.hardware.block)
        return self.form.unpack_sums(total.reshape(shape), operands)

    @property
    def has_sums(self) -> bool:
        """Is there a second result?"""
        return self.regions[SUMS].size > 0

    def _stored(self, dram: bytes, name: str, bits: int, signed: bool) -> Array:
        """int32 of so many bits, from their slices in a region."""
        region, width = self.regions[name], self.hardware.width(Memory.OUT)
        data = np.frombuffer(dram, np.uint8)[region.start : region.end]
        data = data.reshape(slices_of(bits, width), -1)
        mask = (1 << width) - 1
        total = elements.unpacked(data[-1], width)  # with the sign
        if not signed and width < ACC_BITS:
            total = total & mask
        for digits in data[-2::-1]:
            total = (total << width) + (elements.unpacked(digits, width) & mask)
        return total

    def cycles(self, dram_latency: int) -> Cycles:
        """About how long it takes."""
        return cycles(self.hardware, self.decoded, dram_latency)

    def check(self) -> tokens.Graph:
        """Prove that no interleaving gets stuck and that every implementation agrees; raises
        TokenError, PortabilityError."""
        portable.check(self.hardware, self.decoded, self._uop_image)
        graph = tokens.check(self.decoded)
        portable.check_stores(self.hardware, self.decoded, graph)
        return graph

    def to_bytes(self) -> bytes:
        """Everything, for an artifact."""
        header = {
            "hardware": asdict(self.hardware),
            "kind": type(self.spec).__name__,
            "spec": asdict(self.spec),
            "instructions": len(self.instructions),
            "regions": {name: asdict(region) for name, region in self.regions.items()},
        }
        return json.dumps(header).encode() + b"\n" + self.instructions + self.uops

    @classmethod
    def from_bytes(cls, data: bytes) -> "Program":
        """The inverse of `to_bytes`."""
        text, _, rest = data.partition(b"\n")
        header = json.loads(text)
        count = header["instructions"]
        return cls(
            Hardware(**header["hardware"]),
            _KINDS[header["kind"]](**{name: tuples(v) for name, v in header["spec"].items()}),
            rest[:count],
            rest[count:],
            {name: Region(**region) for name, region in header["regions"].items()},
        )


_FORMS: dict[type, Any] = {
    GemmSpec: GemmForm,
    ConvSpec: convolution_form,
    ElementwiseSpec: ElementwiseForm,
}
_KINDS: dict[str, Any] = {kind.__name__: kind for kind in _FORMS}


def tuples(value: Any) -> Any:
    """JSON's lists and objects as a spec's tuples, steps and values."""
    if isinstance(value, dict):
        return Values(**value)
    if isinstance(value, list):
        found = tuple(tuples(one) for one in value)
        return Step(*found) if found and isinstance(found[0], str) else found
    return value


def form_of(hardware: Hardware, spec: Spec) -> Form:
    """The form of a spec on this accelerator."""
    form: Form = _FORMS[type(spec)](hardware, spec)
    return form


def product_program(hardware: Hardware, spec: GemmSpec | ConvSpec, overlap: bool = True) -> Program:
    """The program of a product; without overlap, everything has one buffer."""
    return _program(hardware, spec, overlap)


def elementwise_program(hardware: Hardware, spec: ElementwiseSpec) -> Program:
    """The program of ALU steps."""
    return _program(hardware, spec, overlap=True)


def regions_of(hardware: Hardware, tiles: Sequence[tuple[str, Memory, int]]) -> dict[str, Region]:
    """Places in DRAM, one after the other, for so many tiles of memories, by name."""
    regions: dict[str, Region] = {}
    end = NULL_PAGE
    for name, memory, count in tiles:
        size = hardware.element_bytes(memory)
        unit = max(size, NULL_PAGE)
        regions[name] = Region(-(-end // unit) * unit, count * size)
        end = regions[name].end
    return regions


def _program(hardware: Hardware, spec: Spec, overlap: bool) -> Program:
    form = form_of(hardware, spec)
    count = prod(form.result_shape) * slices_of(form.result_bits, hardware.width(Memory.OUT))
    tiles = [(grid.name, grid.memory, prod(grid.shape)) for grid in form.grids]
    tiles += [("out", Memory.OUT, count), (SUMS, Memory.OUT, form.sum_tiles(overlap))]
    tiles += [("uops", Memory.UOP, 0)]
    regions = regions_of(hardware, tiles)
    addresses = {
        name: regions[name].start // hardware.element_bytes(memory) for name, memory, _ in tiles
    }
    instructions, uops = form.write(addresses, overlap)
    regions["uops"] = Region(regions["uops"].start, len(uops))
    return Program(hardware, spec, instructions, uops, regions)


@dataclass(frozen=True)
class Execution:
    """A run on the simulator: the result, upstream's counters, and the sums of channels where the
    program has them."""

    result: Array
    profile: Profile
    sums: Array | None = None


def execute(program: Program, operands: Sequence[Array], seed: int | None = None) -> Execution:
    """Run on the simulator; `seed` lets its modules run in a random order."""
    dram = program.image(operands)
    outcome = machine.run(program.hardware, program.decoded, dram, seed)
    sums = program.sums(outcome.dram, operands) if program.has_sums else None
    return Execution(program.result(outcome.dram, operands), outcome.profile, sums)


def run(program: Program, operands: Sequence[Array], seed: int | None = None) -> Array:
    """The result, from the simulator."""
    return execute(program, operands, seed).result
