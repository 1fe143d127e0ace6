"""What is known of a step's programs without running them: cycles, use, traffic with DRAM."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqcompile.backends.lower import KernelRecord
from sqcompile.backends.vta import isa
from sqcompile.backends.vta.graph import norms
from sqcompile.backends.vta.graph.placed import Placed
from sqcompile.backends.vta.graph.timeline import lanes_of, picture
from sqcompile.backends.vta.hardware import Hardware
from sqcompile.backends.vta.isa import Module
from sqcompile.backends.vta.program import Program
from sqcompile.backends.vta.simulator.timing import Span, timeline
from sqcompile.runtime.executable import Binary
from sqcompile.runtime.vta import index_of, stated

DRAM_LATENCY = 32
"""Cycles until DRAM answers, in a report's cycles: a board has tens to about 100."""


@dataclass(frozen=True)
class Figures:
    """Programs one after the other: cycles of the model in `simulator/timing.py`, those in which
    each module was at work, tile operations of GEMM, bytes between DRAM and the accelerator."""

    instructions: int
    cycles: int
    busy: dict[str, int]
    gemm_tiles: int
    bytes: dict[str, int]

    def __add__(self, other: "Figures") -> "Figures":
        return Figures(
            self.instructions + other.instructions,
            self.cycles + other.cycles,
            dict(Counter(self.busy) + Counter(other.busy)),
            self.gemm_tiles + other.gemm_tiles,
            dict(Counter(self.bytes) + Counter(other.bytes)),
        )


_NOTHING = Figures(0, 0, {}, 0, {})


def figures(program: Program, spans: Sequence[Span]) -> Figures:
    """The figures of a program, whose instructions are at work when `spans` say."""
    moved = Counter({"instructions": len(program.instructions)})
    tiles = 0
    for one in program.decoded:
        if isinstance(one, isa.Transfer):
            size = program.hardware.element_bytes(one.memory) * one.x_size * one.y_size
            moved[one.memory.name.lower()] += size
        elif isinstance(one, isa.Gemm) and not one.reset:
            tiles += one.count
    busy = Counter({module.name: 0 for module in Module})
    for span in spans:
        busy[span.module.name] += span.end - span.start
    end = max(span.end for span in spans)
    return Figures(len(program.decoded), end, dict(busy), tiles, dict(moved))


def accelerator(
    binary: Binary, records: Sequence[KernelRecord], macs: Mapping[str, int]
) -> dict[str, Any]:
    """The `accelerator` of a report; `macs` are those of every product, by node.

    programs: what runs there, a row a product, `with` "sums" or "relu" where that is in its
    program; sums of channels in a program of their own have a row behind it. utilisation: the share
    of cycles in which GEMM multiplies tiles; efficiency: the share of what it could multiply in all
    cycles that the product needs, without padding and digits; shifts: how each program shifts
    groups and what that was chosen from, None where it has none; host: how often a step calls the
    CPU's kernels, by op; norms: the sums that norms take (`norms.counted`). The figures of programs
    that are written in the run are those of the one with the most planes.
    """
    index, found = index_of(binary), stated(binary)
    hardware = Hardware(**index["hardware"])
    spans = {
        name: timeline(program.hardware, program.decoded, DRAM_LATENCY)
        for name, program in found.items()
    }
    known = {name: figures(program, spans[name]) for name, program in found.items()}
    lanes = {name: lanes_of(program, spans[name]) for name, program in found.items()}
    placed = Placed.of(index["kernels"], records, macs)
    rows, runs = [], []
    whole, multiplied = _NOTHING, 0
    for run in placed.runs:
        number = macs.get(run.node, 0)
        total = sum((known[name] for name in run.programs), _NOTHING)
        row = run.as_json() | {"macs": number}
        row["shifts"] = [index["shifts"].get(name) for name in run.programs]
        rows.append(row | asdict(total) | _shares(hardware, number, total))
        runs += [(run.node, known[name].cycles, lanes[name]) for name in run.programs]
        whole, multiplied = whole + total, multiplied + number
    return {
        "name": hardware.name,
        "hardware": hardware.parameters(),
        "dram_latency": DRAM_LATENCY,
        "cycles": whole.cycles,
        "milliseconds": whole.cycles / (1000 * hardware.mhz),
        "bytes": whole.bytes,
        **_shares(hardware, multiplied, whole),
        "programs": rows,
        "left": _left(index, records),
        "host": placed.host(records),
        "norms": norms.counted(records, placed.nodes),
        "timeline": picture(runs),
        "longest": picture(sorted(runs, key=lambda run: -run[1])[:1]),
    }


def _shares(hardware: Hardware, macs: int, one: Figures) -> dict[str, float]:
    tile, cycles = hardware.batch * hardware.block**2, max(1, one.cycles)
    return {"utilisation": one.gemm_tiles / cycles, "efficiency": macs / (cycles * tile)}


def _left(index: Mapping[str, Any], records: Sequence[KernelRecord]) -> dict[str, str]:
    """The products that the CPU computes, and why, by node."""
    reasons = index["left"]
    named = [record for record in records if record.name in reasons]
    return {node: reasons[record.name] for record in named for node in record.nodes}
