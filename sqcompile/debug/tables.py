"""Comparisons and bisections as tables and lines."""

from collections.abc import Mapping, Sequence
from math import inf

from rich.table import Table

from sqcompile.debug.bisect import Cost, Stage
from sqcompile.debug.difference import Apart, NodeApart
from sqcompile.debug.layers import Point
from sqcompile.report.text import table


def layers_table(found: Sequence[tuple[Point, Apart]]) -> Table:
    """Every value of every layer: how far the second run is from the first."""
    right = ("relative error", "cosine", "SQNR")
    result = table("layer or parameter", "value", "relative error", "cosine", "SQNR", right=right)
    for point, one in found:
        turn = f" ({point.turn + 1})" if point.turn else ""
        noise = "equal" if one.sqnr_db == inf else f"{one.sqnr_db:.1f} dB"
        result.add_row(
            f"{point.name or '(model)'}{turn}",
            point.kind,
            f"{one.relative:.3g}",
            f"{one.cosine:.5f}",
            noise,
        )
    return result


def point_line(point: Point, one: Apart, line: str) -> str:
    """`output of first, element (0, 3): 0.5 and 0.4375; 31 elements differ  net.py:9  x = ...`."""
    place = f"  {line}" if line else ""
    return f"{point}, {_element(one)}{place}"


def node_lines(one: NodeApart) -> list[str]:
    """Where the first differing node is and what it gives."""
    output = "" if one.output is None else f", output {one.output}"
    whose = " ".join(part for part in (one.role, one.module) if part)
    return [
        f"{one.pass_} node {one.name}{output}: {one.op} {list(one.shape)} ({whose or 'no module'})",
        f"  {one.line or 'no source line'}",
        f"  {_element(one.apart)} (reference and kernel)",
    ]


def _element(one: Apart) -> str:
    return (
        f"element {one.index}: {one.a:.9g} and {one.b:.9g}; "
        f"{one.differing} element{'s' if one.differing != 1 else ''} differ"
    )


def stages_table(stages: Sequence[Stage], fp32: Mapping[str, float]) -> Table:
    """The error behind every part of the pipeline."""
    right = ("gradients", "results")
    result = table("quantised", "gradients", "results", right=right)
    result.add_row("nothing, beside fp32 PyTorch", *(f"{fp32[name]:.3g}" for name in right))
    for stage in stages:
        result.add_row(stage.name, f"{stage.gradients:.3g}", f"{stage.results:.3g}")
    return result


def costs_table(costs: Sequence[Cost], before: float) -> Table:
    """Every place with the step's error when it is raised, the largest gain first."""
    right = ("error with 8 bits here", "gain", "error of this alone")
    result = table("layer", "role", *right, right=right)
    for cost in costs:
        gain = 1 - cost.raised / before if before else 0.0
        result.add_row(
            cost.layer or "(all)",
            cost.role,
            f"{cost.raised:.3g}",
            f"{gain:+.1%}",
            f"{cost.alone:.3g}",
        )
    return result
