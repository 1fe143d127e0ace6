"""Where every node and module of a graph is drawn: boxes in boxes, each laid out by igraph.

Forward runs down on the left, backward up on the right, and a module's two boxes stand side by
side. Coordinates are whole numbers of about a pixel.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import igraph

from sqcompile.report.drawing import Drawing, groups

OP, SMALL, MODULE = (170, 34), (124, 18), (236, 56)
"""Width and height of an op, of one that only renames or holds, and of a closed module."""
GAP_X, GAP_Y, PAD, TITLE = 16, 26, 12, 20
BETWEEN = 220
"""Between forward and backward: what is saved crosses there."""
_ROUNDS = 60
"""Of igraph's search for few crossings."""
_DUMMY = 8
"""Width that is kept free for an edge on its way past others."""


class Point(NamedTuple):
    """A place."""

    x: float
    y: float


@dataclass
class Box:
    """A node (`number`), or a module (`name`) with boxes inside when it is open; x and y are those
    of its upper left corner in the box around it."""

    width: float
    height: float
    number: int | None = None
    name: str = ""
    members: tuple[int, ...] = ()
    children: "list[Box]" = field(default_factory=list)
    routes: "dict[tuple[int, int], list[Point]]" = field(default_factory=dict)
    rows: "list[Row]" = field(default_factory=list)
    x: float = 0
    y: float = 0
    open: bool = False


class Row(NamedTuple):
    """Boxes of one layer: the names of its modules, where it begins, its height."""

    names: frozenset[str]
    y: float
    height: float


Closed = Callable[[Sequence[int], int], bool]
"""Whether the module of these nodes, a part at a depth of their paths, is drawn closed."""


def laid_out(drawn: Drawing, numbers: Sequence[int], closed: Closed) -> Box:
    """All of `numbers` in one box without a title, edges downwards."""
    return _open(drawn, numbers, 0, closed, "")


def _open(drawn: Drawing, numbers: Sequence[int], depth: int, closed: Closed, name: str) -> Box:
    found, edges = groups(numbers, drawn, depth)
    children = []
    for group in found:
        if group.name is None:
            number = group.nodes[0]
            width, height = SMALL if drawn.nodes[number].small else OP
            children.append(Box(width, height, number=number, members=group.nodes))
        elif closed(group.nodes, depth + 1):
            children.append(Box(*MODULE, name=group.name, members=group.nodes))
        else:
            children.append(_open(drawn, group.nodes, depth + 1, closed, group.name))
    box = _arranged(children, edges)
    box.name, box.members, box.open = name, tuple(numbers), True
    return box


def _arranged(children: list[Box], edges: Sequence[tuple[int, int]]) -> Box:
    """Boxes in layers, as igraph orders them: each is as high as its highest box."""
    entries, dummies = _layered([child.width for child in children], edges)
    count = 1 + max((entry.layer for entry in entries), default=0)
    layers: list[list[_Entry]] = [[] for _ in range(count)]
    for entry in [*entries, *(one for edge in dummies for one in edge)]:
        layers[entry.layer].append(entry)
    everything = [entry for layer in layers for entry in layer]
    unit = GAP_X + sum(entry.width for entry in everything) / max(1, len(everything))
    for layer in layers:
        _spread(layer, unit)
    left = min((e.x - e.width / 2 for layer in layers for e in layer), default=0) - PAD
    right = max((e.x + e.width / 2 for layer in layers for e in layer), default=0) + PAD
    rows, y = [], float(TITLE + PAD)
    for number in range(count):
        members = [c for c, e in zip(children, entries, strict=True) if e.layer == number]
        height = max((child.height for child in members), default=0)
        rows.append(Row(frozenset(c.name for c in members if c.name), y, height))
        y += height + GAP_Y
    for child, entry in zip(children, entries, strict=True):
        row = rows[entry.layer]
        child.x = entry.x - child.width / 2 - left
        child.y = row.y + (row.height - child.height) / 2
    routes = {
        edge: [Point(e.x - left, rows[e.layer].y + rows[e.layer].height / 2) for e in way]
        for edge, way in zip(edges, dummies, strict=True)
        if way
    }
    return Box(right - left, y - GAP_Y + PAD, children=children, routes=routes, rows=rows)


@dataclass
class _Entry:
    """A box or a bend of an edge in a layer: igraph's x, then the middle in pixels."""

    x: float
    layer: int
    width: float


def _layered(
    widths: Sequence[float], edges: Sequence[tuple[int, int]]
) -> tuple[list[_Entry], list[list[_Entry]]]:
    """Vertices and, for every edge, its bends in the layers that it passes, in igraph's order."""
    layers = _layers(len(widths), edges)
    ways: list[list[int]] = []
    parts: list[tuple[int, int]] = []
    for source, target in edges:
        passed = range(layers[source] + 1, layers[target])
        ways.append(list(range(len(layers), len(layers) + len(passed))))
        layers += passed
        parts += pairwise([source, *ways[-1], target])
    places = _sugiyama(layers, parts)
    sizes = [*widths, *([_DUMMY] * (len(layers) - len(widths)))]
    found = [_Entry(x, n, size) for x, n, size in zip(places, layers, sizes, strict=True)]
    return found[: len(widths)], [[found[number] for number in way] for way in ways]


def _layers(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """A layer for every vertex, below all that it reads; close to its readers where these are as
    many."""
    graph = igraph.Graph(count, list(edges), directed=True)
    order = graph.topological_sorting()
    layers = [0] * count
    for vertex in order:
        layers[vertex] = max((layers[one] + 1 for one in graph.predecessors(vertex)), default=0)
    for vertex in reversed(order):
        after = graph.successors(vertex)
        if after and len(after) >= graph.degree(vertex, mode="in"):
            layers[vertex] = min(layers[one] for one in after) - 1
    return layers


def _sugiyama(layers: Sequence[int], edges: Sequence[tuple[int, int]]) -> list[float]:
    """x of vertices whose edges go to the next layer each, its parts side by side.

    igraph gets connected graphs with edges of one layer alone: with longer ones, or with several
    parts, its own bends are uninitialised memory, and it may crash.
    """
    whole = igraph.Graph(len(layers), list(edges), directed=True)
    places = [0.0] * len(layers)
    begin = 0.0
    for members in whole.connected_components(mode="weak"):
        part = whole.induced_subgraph(members)
        first = min(layers[one] for one in members)
        levels = [layers[one] - first for one in members]
        xs = [x for x, _ in part.layout_sugiyama(layers=levels, maxiter=_ROUNDS)]
        for one, x in zip(members, xs, strict=True):
            places[one] = begin + x - min(xs)
        begin += max(xs) - min(xs) + 1
    return places


def _spread(layer: list[_Entry], unit: float) -> None:
    """Put entries in igraph's order beside each other, as near to igraph's places, in `unit`s, as
    widths allow: neighbours that would overlap share the mean of what they want."""
    layer.sort(key=lambda entry: entry.x)
    offset, before = 0.0, None
    blocks: list[list[float]] = []  # [sum of wishes, count]
    offsets = []
    for entry in layer:
        if before is not None:
            offset += (before.width + entry.width) / 2 + GAP_X
        offsets.append(offset)
        blocks.append([entry.x * unit - offset, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
        before = entry
    places = [total / count for total, count in blocks for _ in range(int(count))]
    for entry, place, shift in zip(layer, places, offsets, strict=True):
        entry.x = place + shift


def flipped(box: Box) -> Box:
    """The box upside down, titles on top: edges go upwards."""
    for child in box.children:
        child.y = TITLE + box.height - child.y - child.height
        flipped(child)
    for way in box.routes.values():
        way[:] = [Point(x, TITLE + box.height - y) for x, y in way]
    box.rows = [
        Row(row.names, TITLE + box.height - row.y - row.height, row.height)
        for row in reversed(box.rows)
    ]
    return box


def beside(forward: Box, backward: Box) -> tuple[float, float]:
    """Move both boxes' rows down so that rows with the same module stand at one height, and
    backward to the right of forward -> width and height of both."""
    starts = _aligned(forward.rows, backward.rows)
    for box, shifts in zip((forward, backward), starts, strict=True):
        _shift(box, shifts)
    backward.x = forward.width + BETWEEN
    height = max(forward.height, backward.height)
    return backward.x + backward.width, height


def _aligned(left: Sequence[Row], right: Sequence[Row]) -> tuple[list[float], list[float]]:
    """The new beginning of every row of both."""
    starts: tuple[list[float], list[float]] = ([], [])
    y = float(TITLE + PAD)
    for one, other in _segments(left, right):
        heights = [sum(row.height + GAP_Y for row in rows) for rows in (one, other)]
        pair = len(one) == len(other) == 1
        for rows, height, found in zip((one, other), heights, starts, strict=True):
            at = y + (max(heights) - height) / 2 if pair else y
            for row in rows:
                found.append(at)
                at += row.height + GAP_Y
        y += max(heights)
    return starts


def _segments(
    left: Sequence[Row], right: Sequence[Row]
) -> Iterator[tuple[Sequence[Row], Sequence[Row]]]:
    """Rows in pairs that share a module, in the order that gives most of these, and what lies
    between."""
    best = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i in range(len(left) - 1, -1, -1):
        for j in range(len(right) - 1, -1, -1):
            shared = len(left[i].names & right[j].names)
            together = shared + best[i + 1][j + 1] if shared else 0
            best[i][j] = max(together, best[i + 1][j], best[i][j + 1])
    i = j = begin_i = begin_j = 0
    while i < len(left) and j < len(right):
        shared = len(left[i].names & right[j].names)
        if shared and best[i][j] == shared + best[i + 1][j + 1]:
            yield left[begin_i:i], right[begin_j:j]
            yield left[i : i + 1], right[j : j + 1]
            i, j = i + 1, j + 1
            begin_i, begin_j = i, j
        elif best[i + 1][j] >= best[i][j + 1]:
            i += 1
        else:
            j += 1
    yield left[begin_i:], right[begin_j:]


def _shift(box: Box, starts: Sequence[float]) -> None:
    def moved(y: float) -> float:
        row = max((n for n, one in enumerate(box.rows) if one.y <= y), default=0)
        return y + starts[row] - box.rows[row].y if box.rows else y

    for child in box.children:
        child.y = moved(child.y)
    for way in box.routes.values():
        way[:] = [Point(x, moved(y)) for x, y in way]
    if box.rows:
        box.height = starts[-1] + box.rows[-1].height + PAD
