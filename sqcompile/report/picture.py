"""A stage as a picture at several depths: places of modules, nodes and edges, as plain data."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from sqcompile.passes.entries import Entry
from sqcompile.report.drawing import Drawing, drawing
from sqcompile.report.layout import Box, Closed, beside, flipped, laid_out

FEWEST = 4
"""Modules that the coarsest picture shows at least, if there are as many."""


def pictures(stage: Sequence[Entry], first_of_backward: int | None = None) -> dict[str, Any]:
    """{"modules", "layers", "ops"} -> picture (see `_picture`); only those that differ."""
    drawn = drawing(stage, first_of_backward)
    depth = _coarse_depth(drawn)
    deepest = max((len(node.path) for node in drawn.nodes), default=0)
    found = {}
    if deepest > depth:
        found["modules"] = _picture(drawn.with_model(), lambda nodes, at: at >= depth)
    if deepest:
        found["layers"] = _picture(drawn, partial(_leaf, drawn))
    return {**found, "ops": _picture(drawn, lambda nodes, at: False)}


def _leaf(drawn: Drawing, numbers: Sequence[int], depth: int) -> bool:
    """Whether no module stands inside theirs."""
    return all(len(drawn.nodes[number].path) <= depth for number in numbers)


def _coarse_depth(drawn: Drawing) -> int:
    """The depth at which there are FEWEST modules or more, or the deepest."""
    deepest = max((len(node.path) for node in drawn.nodes), default=0)
    for depth in range(1, deepest):
        if len({node.path[:depth] for node in drawn.nodes if node.path}) >= FEWEST:
            return depth
    return max(deepest, 1)


def _picture(drawn: Drawing, closed: Closed) -> dict[str, Any]:
    """One depth: width, height; boxes of open modules: [x, y, width, height, path, backward];
    shapes: [x, y, width, height, what, backward], where `what` is the place of a node in its stage,
    or [path, places of its nodes] of a closed module; edges: [shape, shape, saved, x, y, ...] with
    the bends between."""
    halves = [_half(drawn, closed, side) for side in (False, True)]
    flipped(halves[1])
    width, height = beside(*halves)
    boxes: list[list[Any]] = []
    shapes: list[list[Any]] = []
    shape_of: dict[int, int] = {}
    bends: dict[tuple[int, int], list[int]] = {}
    for side, box in enumerate(halves):
        for found, x, y, path in _walk(box, box.x, box.y, ()):
            place = [round(x), round(y), round(found.width), round(found.height)]
            if found.open:
                bends |= _bends(found, x, y, drawn)
                if path:
                    boxes.append([*place, ".".join(path), side])
                continue
            shape_of |= {number: len(shapes) for number in found.members}
            places = [drawn.nodes[number].place for number in found.members]
            what = places[0] if found.number is not None else [".".join(path), places]
            shapes.append([*place, what, side])
    edges = _edges(drawn, shape_of, bends)
    return {"width": round(width), "height": round(height), "boxes": boxes, "shapes": shapes,
            "edges": edges}  # fmt: skip


def _half(drawn: Drawing, closed: Closed, backward: bool) -> Box:
    numbers = [n for n, node in enumerate(drawn.nodes) if node.backward == backward]
    return laid_out(drawn, numbers, closed)


def _walk(
    box: Box, x: float, y: float, path: tuple[str, ...]
) -> Iterator[tuple[Box, float, float, tuple[str, ...]]]:
    """A box and those in it, outer ones first, with their places in the picture and their paths."""
    path = (*path, box.name) if box.name else path
    yield box, x, y, path
    for child in box.children:
        yield from _walk(child, x + child.x, y + child.y, path)


def _bends(box: Box, x: float, y: float, drawn: Drawing) -> dict[tuple[int, int], list[int]]:
    """The bends of the edges between nodes of two boxes in a box."""
    if not box.routes:
        return {}
    home = {number: n for n, child in enumerate(box.children) for number in child.members}
    found = {}
    for target, place in home.items():
        for source in drawn.sources[target]:
            way = box.routes.get((home.get(source, -1), place))
            if way:
                found[source, target] = [round(v) for p in way for v in (x + p.x, y + p.y)]
    return found


def _edges(
    drawn: Drawing, shape_of: dict[int, int], bends: dict[tuple[int, int], list[int]]
) -> list[list[int]]:
    found: dict[tuple[int, int], list[int]] = {}
    for edge in drawn.edges:
        source, target = shape_of[edge[0]], shape_of[edge[1]]
        if source != target:
            sides = [drawn.nodes[number].backward for number in edge]
            crosses = int(sides[0] != sides[1])
            found.setdefault((source, target), [source, target, crosses, *bends.get(edge, ())])
    return list(found.values())
