"""Which nodes of a stage are drawn, what connects them, and the module that each is drawn in.

Items of tuples are drawn as the op that gives them, what backward is handed as the op that made it,
so that forward, backward and the joint graph before them make the same picture.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from sqcompile.passes.entries import CONSTANT, ITEM, OUTPUT, PLACEHOLDER, Entry
from sqcompile.report.graphs import port

_HELD = ("parameter", "buffer")
MODEL = "(model)"


class Drawn(NamedTuple):
    """A drawn node: its place in the stage's list, whether it is in backward, the modules around
    it from the outermost inwards, whether it only renames, holds or passes on (drawn small), and
    whether it comes from outside."""

    place: int
    backward: bool
    path: tuple[str, ...]
    small: bool
    port: bool


@dataclass(frozen=True)
class Drawing:
    """nodes: in the order of the stage; edges: numbers of nodes, from -> to, each pair once."""

    nodes: tuple[Drawn, ...]
    edges: tuple[tuple[int, int], ...]

    @cached_property
    def sources(self) -> list[list[int]]:
        """What every node reads."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for source, target in self.edges:
            found[target].append(source)
        return found

    def with_model(self) -> "Drawing":
        """The same with the model's own ops in modules of their own, MODEL."""
        nodes = [
            node if node.path or node.port else node._replace(path=(MODEL,)) for node in self.nodes
        ]
        return Drawing(tuple(nodes), self.edges)


def drawing(stage: Sequence[Entry], first_of_backward: int | None = None) -> Drawing:
    """The drawing of a joint graph, or of forward and backward one behind the other, where backward
    begins at `first_of_backward`."""
    begins = len(stage) if first_of_backward is None else first_of_backward
    paths = _paths(stage)
    nodes: list[Drawn] = []
    edges: dict[tuple[int, int], None] = {}
    number: dict[str, int] = {}
    for place, node in enumerate(stage):
        handed_over = place >= begins and node.name in number
        if handed_over or node.op == OUTPUT or node.name == "rng":
            continue
        sources = [number[name] for name in node.refs if name in number]
        if node.op == ITEM and sources:
            number[node.name] = sources[0]
            continue
        number[node.name] = len(nodes)
        edges |= {(source, len(nodes)): None for source in sources}
        small = not node.op.startswith("sq.") and (node.op in _SMALL or "." not in node.op)
        backward = node.part == "backward"
        nodes.append(Drawn(place, backward, paths[place], small, bool(port(node))))
    return Drawing(tuple(nodes), tuple(edges))


_SMALL = {
    f"aten.{name}"
    for name in ("view", "permute", "expand", "unsqueeze", "squeeze", "clone", "reshape", "t")
}


def components(module: str) -> tuple[str, ...]:
    """The parts of a module's path, numbers with what they count: blocks.0, conv."""
    parts: list[str] = []
    for part in module.split(".") if module else ():
        if part.isdigit() and parts:
            parts[-1] += f".{part}"
        else:
            parts.append(part)
    return tuple(parts)


def _paths(stage: Sequence[Entry]) -> list[tuple[str, ...]]:
    """The path of every node, that of a parameter or a constant by who reads it first; without the
    part that all have in common."""
    reader: dict[str, Entry] = {}
    for node in stage:
        for name in node.refs:
            reader.setdefault(name, node)
    found = [components(_module(node, reader.get(node.name))) for node in stage]
    deep = [path for path in found if path]
    while deep and len(deep[0]) > 1 and all(p[:1] == deep[0][:1] and len(p) > 1 for p in deep):
        found = [path[1:] for path in found]
        deep = [path for path in found if path]
    return found


def _module(node: Entry, reader: Entry | None) -> str:
    held = node.op == CONSTANT or (node.op == PLACEHOLDER and port(node).startswith(_HELD))
    return reader.module if held and reader is not None else node.module


class Group(NamedTuple):
    """Nodes of one module that are drawn in one box (`name`), or a single node (None)."""

    name: str | None
    nodes: tuple[int, ...]


def groups(
    numbers: Sequence[int], drawn: Drawing, depth: int
) -> tuple[list[Group], list[tuple[int, int]]]:
    """Nodes by their module at `depth`, and the edges between groups, without a cycle: a module
    whose values go out and come back is several groups. In an order in which edges go on."""
    inside = set(numbers)
    sources = {number: [s for s in drawn.sources[number] if s in inside] for number in numbers}
    members: list[list[int]] = []
    names: list[str | None] = []
    of: dict[int, int] = {}
    following: list[set[int]] = []
    for number in _ordered(numbers, sources):
        path = drawn.nodes[number].path
        name = path[depth] if len(path) > depth else None
        before = {of[source] for source in sources[number]}
        place = _place(name, names, before, following)
        if place == len(members):
            members.append([])
            names.append(name)
            following.append(set())
        members[place].append(number)
        of[number] = place
        for one in before - {place}:
            following[one].add(place)
    found = [Group(name, tuple(one)) for name, one in zip(names, members, strict=True)]
    return found, [(a, b) for a, after in enumerate(following) for b in sorted(after)]


def _ordered(numbers: Sequence[int], sources: dict[int, list[int]]) -> Iterator[int]:
    """Sources first: an order that the numbers have already, but for values handed over."""
    done: set[int] = set()
    waiting = sorted(numbers)
    while waiting:
        late = []
        for number in waiting:
            if done.issuperset(sources[number]):
                done.add(number)
                yield number
            else:
                late.append(number)
        waiting = late


def _place(
    name: str | None, names: Sequence[str | None], before: set[int], following: list[set[int]]
) -> int:
    """The group that a node joins: the latest of its module from which no way leads to what the
    node reads elsewhere; a new one if there is none."""
    if name is not None:
        for place in range(len(names) - 1, -1, -1):
            if names[place] == name and not _reaches(place, before - {place}, following):
                return place
    return len(names)


def _reaches(start: int, goals: set[int], following: list[set[int]]) -> bool:
    seen, waiting = {start}, [start]
    while waiting and goals:
        for one in following[waiting.pop()]:
            if one in goals:
                return True
            if one not in seen:
                seen.add(one)
                waiting.append(one)
    return False
