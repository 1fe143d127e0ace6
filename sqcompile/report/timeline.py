"""A timeline as SVG: what each module of an accelerator does, column by column."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from sqcompile.report.format import big

WIDTH, LABEL = 900, 90
"""Units of the picture, and of the names on its left."""
LANE, GAP, TOP = 26, 6, 18
COLOURS = ("#3b7dd8", "#7aa6e0", "#2e9d6a", "#c58a1b", "#c2543d")
STEPS = 5
"""Shades: a column is drawn in the one above its share of work."""


def svg(picture: dict[str, Any]) -> str:
    """A picture of the lanes in `picture` (see `backends.vta.graph.timeline`), the darker the
    busier; a line marks where a program begins, and tells which."""
    lanes: dict[str, list[int]] = picture["lanes"]
    height = TOP + len(lanes) * (LANE + GAP) + 18
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" class="timeline" '
        f'aria-label="{escape(", ".join(lanes))} over {picture["cycles"]} cycles">'
    ]
    for number, (name, columns) in enumerate(lanes.items()):
        y = TOP + number * (LANE + GAP)
        parts.append(f'<text x="0" y="{y + LANE - 8}">{escape(name)}</text>')
        parts += [f'<g fill="{COLOURS[number % len(COLOURS)]}">', *_lane(columns, y), "</g>"]
    parts += _marks(picture, height - 18)
    end = f"{big(picture['cycles'])} cycles"
    parts.append(f'<text x="{LABEL}" y="{height - 2}">0</text>')
    parts.append(f'<text x="{WIDTH}" y="{height - 2}" text-anchor="end">{end}</text>')
    return "".join([*parts, "</svg>"])


def _lane(columns: Sequence[int], y: int) -> Iterator[str]:
    """A rectangle for each run of columns of one shade."""
    step = (WIDTH - LABEL) / len(columns)
    yield (
        f'<rect x="{LABEL}" y="{y}" width="{WIDTH - LABEL}" height="{LANE}" opacity="0.06"></rect>'
    )
    for first, count, shade in _runs([-(-STEPS * one // 100) for one in columns]):
        if shade:
            yield (
                f'<rect x="{LABEL + first * step:.1f}" y="{y}" width="{count * step:.1f}" '
                f'height="{LANE}" opacity="{shade / STEPS:.1f}"></rect>'
            )


def _runs(values: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(first, count, value) of equal values in a row."""
    first = 0
    for place in range(1, len(values) + 1):
        if place == len(values) or values[place] != values[first]:
            yield first, place - first, values[first]
            first = place


def _marks(picture: dict[str, Any], bottom: int) -> Iterator[str]:
    scale = (WIDTH - LABEL) / max(1, picture["cycles"])
    for mark in picture["marks"]:
        x = LABEL + mark["start"] * scale
        yield (
            f'<line x1="{x:.1f}" y1="4" x2="{x:.1f}" y2="{bottom}">'
            f"<title>{escape(mark['name'])}</title></line>"
        )
