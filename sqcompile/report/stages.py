"""The stages of a page: every graph as text, as nodes and as pictures, what repeats stored once."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqcompile.passes.entries import OUTPUT, Entry
from sqcompile.report.embed import Pool
from sqcompile.report.graphs import PARTS, Graphs, port
from sqcompile.report.picture import pictures

COMPILED = "compiled"
"""The last stage of a page: forward and backward, as they are compiled."""
_CUT = "What is compiled: the rewritten graph, cut where gradients begin."


def embedded(
    graphs: Graphs, texts: Mapping[str, str], told: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """{"lines", "nodes", "pictures", "stages"}: a stage has its name, what it is `about`, its
    milliseconds, its `text` and its `nodes` as steps through the lines and the nodes (`Pool`), the
    number of its picture, and where backward `begins` among the nodes (null in a joint graph).
    told: the report's rows of stages."""
    lines, nodes = Pool(), Pool()
    drawn: dict[tuple[tuple[Entry, ...], int | None], int] = {}
    rows = {row["name"]: row for row in told}
    stages = []
    for name, entries, text, begins in _shown(graphs.stages, texts):
        row = rows.get(name, {})
        stages.append(
            {
                "name": name,
                "about": row.get("about", _CUT if name == COMPILED else ""),
                "milliseconds": row.get("milliseconds", 0),
                "text": lines.steps(text.splitlines()),
                "nodes": nodes.steps(map(_node, entries)),
                "picture": drawn.setdefault((entries, begins), len(drawn)),
                "begins": begins,
            }
        )
    return {
        "lines": lines.values(),
        "nodes": nodes.values(),
        "pictures": [pictures(stage, begins) for stage, begins in drawn],
        "stages": stages,
    }


def _node(entry: Entry) -> tuple[Any, ...]:
    """What the page knows of a node beside its line; the fields of `model.js`."""
    return (
        entry.name,
        entry.op,
        tuple(dict.fromkeys(entry.refs)),
        "" if entry.op == OUTPUT else entry.type,
        entry.bits or 0,
        entry.role,
        entry.module,
        entry.line,
        port(entry),
        entry.part == "backward",
    )


def _shown(
    stages: Mapping[str, Sequence[Entry]], texts: Mapping[str, str]
) -> list[tuple[str, tuple[Entry, ...], str, int | None]]:
    """Name, nodes, text of every stage, and where backward begins; forward and backward are one."""
    shown: list[tuple[str, tuple[Entry, ...], str, int | None]] = [
        (name, tuple(entries), texts.get(name, ""), None)
        for name, entries in stages.items()
        if name not in PARTS
    ]
    parts = [name for name in PARTS if name in stages]
    if parts:
        both = tuple(entry for name in parts for entry in stages[name])
        text = "\n".join(texts.get(name, "") for name in parts)
        shown.append((COMPILED, both, text, len(stages[parts[0]])))
    return shown
