"""Which nodes of which stages are looked at, and what the stage before had in their place."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from sqcompile.errors import UsageError
from sqcompile.passes.entries import OUTPUT, Entry, to_json
from sqcompile.report.graphdiff import REMOVED, SAME, Difference, Line, difference

PARTS = ("forward", "backward")
"""The stages that are compiled: they come from the last joint graph, each from its part."""


@dataclass(frozen=True)
class Selection:
    """Filters that are combined: patterns of ops ("sq.quantize*", "quantize"), of modules
    ("blocks.0", all in it included, or "blocks.*.conv1"), and a pass. Empty ones let all through.
    """

    ops: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    part: str = ""

    def __bool__(self) -> bool:
        return bool(self.ops or self.layers or self.part)

    def __contains__(self, entry: Entry) -> bool:
        return (
            (not self.ops or any(is_op(entry, pattern) for pattern in self.ops))
            and (not self.layers or any(in_layer(entry, pattern) for pattern in self.layers))
            and (not self.part or entry.part == self.part)
        )

    def check(self, entries: Iterable[Entry]) -> None:
        """Raise UsageError for a pattern that matches none of `entries`."""
        known = list(entries)
        ops = {entry.op for entry in known}
        names = sorted(ops | {name.rpartition(".")[2] for name in ops})
        for pattern in self.ops:
            if not any(is_op(entry, pattern) for entry in known):
                hint = _hint(pattern, names)
                raise UsageError(f"no node of the run has the op '{pattern}'{hint}")
        modules = sorted({entry.module for entry in known} - {""})
        for pattern in self.layers:
            if not any(in_layer(entry, pattern) for entry in known):
                raise UsageError(
                    f"no node of the run is in the layer '{pattern}'{_hint(pattern, modules)}"
                )


def is_op(entry: Entry, pattern: str) -> bool:
    """Whether an entry's op, with or without its namespace, matches a pattern."""
    return fnmatchcase(entry.op, pattern) or fnmatchcase(entry.op.rpartition(".")[2], pattern)


def in_layer(entry: Entry, pattern: str) -> bool:
    """Whether an entry stands in a module that matches a pattern, or in one inside it."""
    path = entry.module
    return fnmatchcase(path, pattern) or bool(path) and fnmatchcase(path, f"{pattern}.*")


def _hint(pattern: str, names: Sequence[str]) -> str:
    close = get_close_matches(pattern, names, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


@dataclass(frozen=True)
class View:
    """One stage as it is looked at: the stage before, or another that was asked for, is
    `against`, "" for the first."""

    name: str
    entries: Sequence[Entry]
    against: str
    before: Sequence[Entry]
    selection: Selection

    @cached_property
    def shown(self) -> list[Entry]:
        """The nodes that the selection lets through."""
        return [entry for entry in self.entries if entry in self.selection]

    @cached_property
    def difference(self) -> Difference:
        """What changed since `against`."""
        return difference(self.before, self.entries)

    @property
    def changes(self) -> list[Line]:
        """The changed lines that the selection lets through, as they are or as they were."""
        return [
            line
            for line in self.difference.lines
            if line.kind != SAME
            and any(one in self.selection for one in (line.before, line.after) if one)
        ]

    def to_json(self, changes_only: bool) -> dict[str, Any]:
        """The stage as data: every node with what happened to it, and the nodes that are gone."""
        found = self.difference
        kinds = {line.entry.name: line for line in found.lines if line.after}
        nodes = [_node(kinds[entry.name]) for entry in self.shown]
        gone = [line.entry for line in self.changes if line.kind == REMOVED]
        return {
            "stage": self.name,
            "against": self.against,
            "nodes": [node for node in nodes if node["change"] or not changes_only],
            "removed": [to_json(entry) for entry in gone],
            "replaced": dict(found.replaced),
            "renamed": dict(found.renamed),
            "moved": list(found.moved),
        }


def _node(line: Line) -> dict[str, Any]:
    assert line.after is not None
    changed = {"change": line.kind, "in_place_of": list(line.stands_for)}
    before = {} if line.kind == SAME or line.before is None else {"before": to_json(line.before)}
    return {**to_json(line.after), **changed, **before}


def views(
    stages: Mapping[str, Sequence[Entry]],
    names: Sequence[str],
    selection: Selection,
    against: str | None = None,
) -> Iterator[View]:
    """The stages called `names`, each beside the one before it, or beside the stage `against`."""
    order = list(stages)
    for name in names:
        base = against if against is not None else _base(order, name)
        before = stages.get(base, stages[name])
        if name in PARTS and base not in PARTS:
            before = [entry for entry in before if entry.part == name or entry.op == OUTPUT]
        yield View(name, stages[name], base, before, selection)


def _base(order: Sequence[str], name: str) -> str:
    """The stage that a stage was made from; "" for the first."""
    joint = [one for one in order if one not in PARTS]
    if name in PARTS:
        return joint[-1] if joint else ""
    place = joint.index(name)
    return joint[place - 1] if place else ""


def chosen(stages: Mapping[str, Any], patterns: Sequence[str], where: str) -> list[str]:
    """The stages that match any of the patterns ("all" is every one), in their order. Raises
    UsageError for a pattern that matches none."""
    for pattern in patterns:
        if pattern != "all" and not any(fnmatchcase(name, pattern) for name in stages):
            raise no_stage(stages, pattern, where)
    return [
        name
        for name in stages
        if any(pattern == "all" or fnmatchcase(name, pattern) for pattern in patterns)
    ]


def no_stage(stages: Mapping[str, Any], name: str, where: str) -> UsageError:
    """What to raise for a stage that is not there."""
    return UsageError(
        f"{where} has no stage '{name}'{_hint(name, list(stages))}\n"
        f"  it has {', '.join(stages) or 'none'}"
    )
