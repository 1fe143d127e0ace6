"""The graphs of a run folder as a page shows them: every stage's records, and who runs a node."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqcompile.errors import UsageError
from sqcompile.passes.entries import PLACEHOLDER, Entry
from sqcompile.runtime import stages

PARTS = ("forward", "backward")
"""The stages that are compiled, cut from the joint graph."""
_PORTS = {"p_": "parameter", "b_": "buffer", "x_": "input", "g_": "gradient of output"}
"""How names of placeholders begin, and what those are."""


class Graphs(NamedTuple):
    """The records of every stage by name, in order, and the nodes ("forward/mm_1", or several with
    a plus) that every kernel computes, a text for each call."""

    stages: Mapping[str, Sequence[Entry]]
    calls: Mapping[str, Sequence[str]]

    def compiled(self) -> dict[str, Entry]:
        """The nodes of the compiled graphs, by "forward/mm_1"."""
        return {
            f"{part}/{entry.name}": entry for part in PARTS for entry in self.stages.get(part, ())
        }


def read(folder: str | Path, report: Mapping[str, Any]) -> Graphs | None:
    """The graphs of a run folder with this report; None when it holds none of this version."""
    try:
        return Graphs(stages.read(folder), report["calls"])
    except UsageError:
        return None


def texts(folder: Path) -> dict[str, str]:
    """The texts of the first variant's stages, by name, in order."""
    files = sorted(folder.glob("[0-9][0-9]_*.txt"))
    return {file.stem[3:]: file.read_text(encoding="utf-8") for file in files}


def port(entry: Entry) -> str:
    """`parameter stem_weight` of an input of the step; "" for other nodes."""
    kind = _PORTS.get(entry.name[:2]) if entry.op == PLACEHOLDER else None
    return f"{kind} {entry.name[2:]}" if kind else ""
