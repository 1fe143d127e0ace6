"""A product as a program of the accelerator: instructions, micro-ops, places in DRAM.

    program = product_program(hardware, GemmSpec(...))
    acc = run(program, [a, b])              # int32, what the op gives

Host arrays are packed into a DRAM image before and unpacked after; `image` and `result` are those
two steps for who brings a machine of their own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqcompile.backends.vta import isa, portable, tokens
from sqcompile.backends.vta.conv import ConvForm
from sqcompile.backends.vta.cuts import Tiling
from sqcompile.backends.vta.emit import Addresses, Emitter
from sqcompile.backends.vta.forms import Form
from sqcompile.backends.vta.gemm import GemmForm
from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.simulator import elements, machine
from sqcompile.backends.vta.simulator.core import NULL_PAGE, Profile
from sqcompile.backends.vta.simulator.timing import Cycles, cycles
from sqcompile.backends.vta.spec import ConvSpec, GemmSpec, Spec, Values
from sqcompile.backends.vta.tiling import tiled
from sqcompile.backends.vta.uops import encode_uops

Array = NDArray[Any]


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
    """Everything that the accelerator needs but the operands. Regions are inp, wgt, out, uops."""

    hardware: Hardware
    spec: Spec
    tiling: Tiling
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

    @property
    def macs(self) -> int:
        """Multiplications that the product asks for, without padding or digits."""
        return _macs(self.spec)

    def image(self, operands: Sequence[Array]) -> bytes:
        """DRAM from address 0 with operands and micro-ops."""
        dram = np.zeros(max(region.end for region in self.regions.values()), np.uint8)
        tiles = zip((Memory.INP, Memory.WGT), self.form.pack(operands), strict=True)
        for memory, grid in tiles:
            data = elements.packed(grid.reshape(-1, grid.shape[-1]), self.hardware.width(memory))
            region = self.regions[memory.name.lower()]
            dram[region.start : region.end] = data.reshape(-1)
        region = self.regions["uops"]
        dram[region.start : region.end] = np.frombuffer(self.uops, np.uint8)
        return dram.tobytes()

    def result(self, dram: bytes, operands: Sequence[Array]) -> NDArray[np.int32]:
        """The product in DRAM after the program; the operands are those of `image`."""
        region = self.regions["out"]
        width = self.hardware.width(Memory.OUT)
        of = self.form.correlation
        data = np.frombuffer(dram, np.uint8)[region.start : region.end]
        data = data.reshape(of.slices(width), -1)
        total = elements.unpacked(data[-1], width)  # with the sign
        for digits in data[-2::-1]:
            total = (total << width) + (elements.unpacked(digits, width) & ((1 << width) - 1))
        shape = (*of.result_shape, self.hardware.batch, self.hardware.block)
        return self.form.unpack(total.reshape(shape), operands)

    def cycles(self, dram_latency: int) -> Cycles:
        """About how long it takes."""
        return cycles(self.hardware, self.decoded, dram_latency)

    def check(self) -> tokens.Graph:
        """Prove that no interleaving gets stuck and that every implementation agrees; raises
        TokenError, PortabilityError."""
        region = self.regions["uops"]
        portable.check(self.hardware, self.decoded, bytes(region.start) + self.uops)
        return tokens.check(self.decoded)

    def to_bytes(self) -> bytes:
        """Everything, for an artifact."""
        header = {
            "hardware": asdict(self.hardware),
            "kind": type(self.spec).__name__,
            "spec": asdict(self.spec),
            "tiling": asdict(self.tiling),
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
            _spec(header["kind"], header["spec"]),
            Tiling(**header["tiling"]),
            rest[:count],
            rest[count:],
            {name: Region(**region) for name, region in header["regions"].items()},
        )


_FORMS: dict[type, Any] = {GemmSpec: GemmForm, ConvSpec: ConvForm}


def form_of(hardware: Hardware, spec: Spec) -> Form:
    """The form of a spec on this accelerator."""
    form: Form = _FORMS[type(spec)](hardware, spec)
    return form


def product_program(hardware: Hardware, spec: Spec, overlap: bool = True) -> Program:
    """The program of a product; without overlap, everything has one buffer."""
    form = form_of(hardware, spec)
    of = form.correlation
    tiling = tiled(hardware, of, overlap)
    slices = of.slices(hardware.width(Memory.OUT))
    counts = {
        Memory.INP: int(np.prod(of.inp_shape)),
        Memory.WGT: int(np.prod(of.wgt_shape)),
        Memory.OUT: slices * int(np.prod(of.result_shape)),
    }
    regions, end = {}, NULL_PAGE
    for memory, count in counts.items():
        size = hardware.element_bytes(memory)
        start = -(-end // max(size, NULL_PAGE)) * max(size, NULL_PAGE)
        end = start + count * size
        regions[memory.name.lower()] = Region(start, count * size)
    start = -(-end // NULL_PAGE) * NULL_PAGE
    units = [hardware.element_bytes(memory) for memory in (*counts, Memory.UOP)]
    places = [*(region.start for region in regions.values()), start]
    addresses = Addresses(*(place // unit for place, unit in zip(places, units, strict=True)))
    emitter = Emitter(hardware, of, tiling, addresses)
    instructions = isa.encode_program(hardware, emitter.run())
    uops = encode_uops(hardware, emitter.uops.all())
    regions["uops"] = Region(start, len(uops))
    return Program(hardware, spec, tiling, instructions, uops, regions)


@dataclass(frozen=True)
class Execution:
    """A run on the simulator: the accumulators, and upstream's counters."""

    result: NDArray[np.int32]
    profile: Profile


def execute(program: Program, operands: Sequence[Array], seed: int | None = None) -> Execution:
    """Run on the simulator; `seed` lets its modules run in a random order."""
    dram = program.image(operands)
    outcome = machine.run(program.hardware, program.decoded, dram, seed)
    return Execution(program.result(outcome.dram, operands), outcome.profile)


def run(program: Program, operands: Sequence[Array], seed: int | None = None) -> NDArray[np.int32]:
    """The accumulators, from the simulator."""
    return execute(program, operands, seed).result


def _macs(spec: Spec) -> int:
    if isinstance(spec, GemmSpec):
        return (spec.batch or 1) * spec.m * spec.n * spec.k
    taps = spec.w[1] * spec.w[2] * spec.w[3]
    return int(np.prod(spec.y)) * taps


def _spec(kind: str, fields: dict[str, Any]) -> Spec:
    kinds: dict[str, Any] = {one.__name__: one for one in _FORMS}
    made = {
        name: Values(**value)
        if isinstance(value, dict)
        else tuple(value)
        if isinstance(value, list)
        else value
        for name, value in fields.items()
    }
    spec: Spec = kinds[kind](**made)
    return spec
