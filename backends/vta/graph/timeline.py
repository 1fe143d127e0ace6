"""When the accelerator's modules are at work during a step, as columns of a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqcompile.backends.vta.isa import Module
from sqcompile.backends.vta.simulator.timing import Span

COLUMNS = 600
"""Of a picture; a column holds as many cycles as it takes."""


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


def picture(
    programs: Sequence[tuple[str, int, Sequence[Span]]], columns: int = COLUMNS
) -> dict[str, Any]:
    """Programs (name, cycles, spans) one after the other: `lanes`, how busy each module is in every
    column, in percent, and `marks`, the cycle in which each program begins."""
    marks: list[dict[str, Any]] = []
    placed: Mapping[Module, list[tuple[float, float]]] = {module: [] for module in Module}
    begin = 0
    for name, cycles, spans in programs:
        marks.append({"name": name, "start": begin})
        for span in spans:
            placed[span.module].append((begin + span.start, begin + span.end))
        begin += cycles
    total = max(1, begin)
    return {
        "cycles": begin,
        "marks": marks,
        "lanes": {
            module.name: [round(100 * one) for one in busy(found, total, columns)]
            for module, found in placed.items()
        },
    }
