"""What is known of a step's programs without running them: cycles, use, traffic with DRAM."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqcompile.backends.lower import KernelRecord
from sqcompile.backends.vta import isa
from sqcompile.backends.vta.graph.timeline import picture
from sqcompile.backends.vta.hardware import Hardware
from sqcompile.backends.vta.isa import Module
from sqcompile.backends.vta.program import Program
from sqcompile.backends.vta.simulator import timing
from sqcompile.runtime.executable import Binary
from sqcompile.runtime.vta import index_of, programs

DRAM_LATENCY = 32
"""Cycles until DRAM answers, in a report's cycles: a board has tens to about 100."""


@dataclass(frozen=True)
class Figures:
    """One run of a program: cycles of the model in `simulator/timing.py`, those in which each
    module was at work, tile operations of GEMM, bytes between DRAM and the accelerator."""

    instructions: int
    cycles: int
    busy: dict[str, int]
    gemm_tiles: int
    bytes: dict[str, int] = field(default_factory=dict)


def figures(program: Program, latency: int = DRAM_LATENCY) -> Figures:
    """The figures of a program."""
    taken = program.cycles(latency)
    moved = {"instructions": len(program.instructions)}
    tiles = 0
    for one in program.decoded:
        if isinstance(one, isa.Transfer):
            name = one.memory.name.lower()
            size = program.hardware.element_bytes(one.memory) * one.x_size * one.y_size
            moved[name] = moved.get(name, 0) + size
        elif isinstance(one, isa.Gemm) and not one.reset:
            tiles += one.count
    busy = {module.name: taken.busy[module.name] for module in Module}
    return Figures(len(program.decoded), taken.total, busy, tiles, moved)


def accelerator(
    binary: Binary, records: Sequence[KernelRecord], macs: Mapping[str, int]
) -> dict[str, Any]:
    """The `accelerator` of a report; `macs` are those of every product, by node.

    utilisation: the share of cycles in which GEMM multiplies tiles; efficiency: the share of what
    it could multiply in all cycles that the product needs, without padding and digits.
    """
    index = index_of(binary)
    found = programs(binary)
    known = {name: figures(program) for name, program in found.items()}
    hardware = Hardware(**index["hardware"])
    rows = []
    for record in records:
        if record.name not in index["kernels"]:
            continue
        name = index["kernels"][record.name]
        for node in record.nodes:
            if node in macs:
                row = {"node": node, "program": name, "macs": macs[node], **asdict(known[name])}
                rows.append({**row, **_shares(hardware, macs[node], known[name])})
    order = {node: number for number, node in enumerate(macs)}
    rows.sort(key=lambda row: order[row["node"]])
    spans = {
        name: timing.timeline(program.hardware, program.decoded, DRAM_LATENCY)
        for name, program in found.items()
    }
    runs = [(row["node"], row["cycles"], spans[row["program"]]) for row in rows]
    return {
        "name": hardware.name,
        "hardware": hardware.parameters(),
        "dram_latency": DRAM_LATENCY,
        "products": rows,
        "left": left(binary, records),
        "timeline": picture(runs),
        "longest": picture(sorted(runs, key=lambda run: -run[1])[:1]),
        **_total(hardware, rows),
    }


def left(binary: Binary, records: Sequence[KernelRecord]) -> dict[str, str]:
    """The products that the CPU computes, and why, by node."""
    reasons = index_of(binary)["left"]
    return {
        node: reasons[record.name]
        for record in records
        if record.name in reasons
        for node in record.nodes
    }


def _shares(hardware: Hardware, macs: int, one: Figures) -> dict[str, float]:
    tile = hardware.batch * hardware.block**2
    cycles = max(1, one.cycles)
    return {"utilisation": one.gemm_tiles / cycles, "efficiency": macs / (cycles * tile)}


def _total(hardware: Hardware, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums of all products, one after the other."""
    moved: dict[str, int] = {}
    for row in rows:
        for name, size in row["bytes"].items():
            moved[name] = moved.get(name, 0) + size
    cycles, tiles, macs = (
        sum(row[name] for row in rows) for name in ("cycles", "gemm_tiles", "macs")
    )
    shares = _shares(hardware, macs, Figures(0, cycles, {}, tiles))
    milliseconds = cycles / (1000 * hardware.mhz)
    return {"cycles": cycles, "milliseconds": milliseconds, "bytes": moved, **shares}
