"""When the accelerator's modules are at work during a step, as columns of a picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqcompile.backends.vta import isa
from sqcompile.backends.vta.program import Program
from sqcompile.backends.vta.simulator.timing import Span

COLUMNS = 600
"""Of a picture; a column holds as many cycles as it takes."""
LANES = ("LOAD", "LOAD ACC", "GEMM", "ALU", "STORE")
"""What is drawn; LOAD ACC (micro-ops too), GEMM and ALU are the module COMPUTE."""


def busy(spans: Sequence[tuple[float, float]], total: float, columns: int) -> NDArray[np.float64]:
    """The share of every column of 0..total in which one of the spans, which do not overlap, is."""
    edges = np.linspace(0, total, columns + 1)
    starts, ends = np.array(spans, np.float64).reshape(-1, 2).T
    order = np.argsort(starts)
    starts, ends = starts[order], ends[order]
    done = np.concatenate([[0.0], np.cumsum(ends - starts)])
    place = np.searchsorted(starts, edges)
    partly = np.zeros_like(edges)
    open_ = place > 0
    last = place[open_] - 1
    partly[open_] = np.maximum(ends[last] - edges[open_], 0)
    return np.diff(done[place] - partly) / (total / columns)


def lanes_of(program: Program, spans: Sequence[Span]) -> list[tuple[str, int, int]]:
    """(lane, start, end) of every instruction: COMPUTE is three lanes, of which one is at work."""
    return [(_lane(program.decoded[one.number]), one.start, one.end) for one in spans]


def _lane(instruction: isa.Instruction) -> str:
    if isinstance(instruction, isa.Load) and instruction.module is isa.Module.COMPUTE:
        return "LOAD ACC"
    return instruction.opcode.name


def picture(
    programs: Sequence[tuple[str, int, Sequence[tuple[str, int, int]]]], columns: int = COLUMNS
) -> dict[str, Any]:
    """Programs (name, cycles, what `lanes_of` gives) one after the other: `lanes`, how busy each is
    in every column, in percent, and `marks`, the cycle in which each program begins."""
    marks: list[dict[str, Any]] = []
    placed: dict[str, list[tuple[float, float]]] = {lane: [] for lane in LANES}
    begin = 0
    for name, cycles, spans in programs:
        marks.append({"name": name, "start": begin})
        for lane, start, end in spans:
            if lane in placed:
                placed[lane].append((begin + start, begin + end))
        begin += cycles
    total = max(1, begin)
    return {
        "cycles": begin,
        "marks": marks,
        "lanes": {
            lane: [round(100 * one) for one in busy(found, total, columns)]
            for lane, found in placed.items()
        },
    }
