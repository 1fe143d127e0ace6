"""The stages of a page: every graph as text, as nodes and as pictures, what repeats stored once."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqcompile.passes.outline import Outline
from sqcompile.report.embed import Pool
from sqcompile.report.graphs import Graphs, StageGraph
from sqcompile.report.picture import pictures

COMPILED = "compiled"
"""The last stage of a page: forward and backward, as they are compiled."""


def embedded(
    graphs: Graphs, texts: Mapping[str, str], timed: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """{"lines", "nodes", "pictures", "stages"}: a stage has its name, what it is `about`, its
    milliseconds, its `text` and its `nodes` as steps through the lines and the nodes (`Pool`), the
    number of its picture, and where backward `begins` among the nodes (null in a joint graph)."""
    lines, nodes = Pool(), Pool()
    drawn: dict[tuple[tuple[Outline, ...], int | None], int] = {}
    milliseconds = {row["name"]: row["milliseconds"] for row in timed}
    stages = []
    for stage, text, begins in _shown(graphs.stages, texts):
        picture = drawn.setdefault((stage.nodes, begins), len(drawn))
        stages.append(
            {
                "name": stage.name,
                "about": stage.about,
                "milliseconds": milliseconds.get(stage.name, 0),
                "text": lines.steps(text.splitlines()),
                "nodes": nodes.steps(stage.nodes),
                "picture": picture,
                "begins": begins,
            }
        )
    return {
        "lines": lines.values(),
        "nodes": [list(node) for node in nodes.values()],
        "pictures": [pictures(stage, begins) for stage, begins in drawn],
        "stages": stages,
    }


def _shown(
    stages: Sequence[StageGraph], texts: Mapping[str, str]
) -> list[tuple[StageGraph, str, int | None]]:
    """The stages with their texts; forward and backward are one."""
    named = {stage.name: stage for stage in stages}
    shown: list[tuple[StageGraph, str, int | None]] = [
        (stage, texts.get(stage.name, ""), None)
        for stage in stages
        if stage.name not in ("forward", "backward")
    ]
    if "forward" in named:
        parts = [named[name] for name in ("forward", "backward") if name in named]
        both = StageGraph(
            COMPILED,
            "What is compiled: the rewritten graph, cut where gradients begin.",
            tuple(node for part in parts for node in part.nodes),
        )
        text = "\n".join(texts.get(part.name, "") for part in parts)
        shown.append((both, text, len(parts[0].nodes)))
    return shown
