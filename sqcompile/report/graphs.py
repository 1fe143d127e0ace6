"""graphs.json: the graph after every pass as data, each distinct node once, and who runs a node."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sqcompile.passes.outline import Outline

if TYPE_CHECKING:
    from sqcompile.runtime.variant import Variant

GRAPHS = "graphs.json"
FORMAT = 1


class StageGraph(NamedTuple):
    """A stage with its nodes, in order."""

    name: str
    about: str
    nodes: tuple[Outline, ...]


class Graphs(NamedTuple):
    """The stages of a variant's step, the number of its code's folder, and the nodes
    ("forward/mm_1") that every kernel computes."""

    stages: tuple[StageGraph, ...]
    variant: int
    kernels: dict[str, list[str]]


def graphs_of(variant: "Variant", number: int = 0) -> Graphs:
    """What is known of variant `number` of a step that was compiled here."""
    return Graphs(
        tuple(StageGraph(one.name, one.about, one.outline) for one in variant.stages),
        number,
        {kernel.name: list(kernel.nodes) for kernel in variant.kernels},
    )


def to_json(graphs: Graphs) -> dict[str, Any]:
    """Plain data: a node that a pass left as it was is stored once."""
    places: dict[Outline, int] = {}
    stages = [
        {
            "name": stage.name,
            "about": stage.about,
            "nodes": [places.setdefault(node, len(places)) for node in stage.nodes],
        }
        for stage in graphs.stages
    ]
    return {
        "format": FORMAT,
        "variant": graphs.variant,
        "nodes": [list(node) for node in places],
        "stages": stages,
        "kernels": graphs.kernels,
    }


def from_json(data: dict[str, Any]) -> Graphs:
    """The inverse of `to_json`; raises KeyError, TypeError or ValueError for other data."""
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']}")
    nodes = [_outline(fields) for fields in data["nodes"]]
    stages = tuple(
        StageGraph(one["name"], one["about"], tuple(nodes[place] for place in one["nodes"]))
        for one in data["stages"]
    )
    return Graphs(stages, data["variant"], data["kernels"])


def _outline(fields: list[Any]) -> Outline:
    name, op, inputs, *rest = fields
    return Outline(name, op, tuple(inputs), *rest)


def write(graphs: Graphs, folder: str | Path) -> Path:
    """Write graphs.json into a run folder, whole or not at all; returns its path."""
    from sqcompile.report.data import write_text

    return write_text(Path(folder) / GRAPHS, json.dumps(to_json(graphs)) + "\n")


def read(folder: str | Path) -> Graphs | None:
    """graphs.json of a run folder; None when there is none of this version."""
    try:
        return from_json(json.loads((Path(folder) / GRAPHS).read_text(encoding="utf-8")))
    except (OSError, KeyError, TypeError, ValueError):
        return None
