"""Measurements as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from sqcompile.bench.products import OURS, SAME_JOB
from sqcompile.bench.saved import KERNEL
from sqcompile.bench.verdict import FASTER, SAME, SLOWER, Held, Verdict
from sqcompile.report.format import big, duration
from sqcompile.report.text import table

_COLOURS = {FASTER: "green", SLOWER: "red", SAME: None}


def products_table(run: Mapping[str, Any]) -> Table:
    """Every measured product beside its peers: how many times ours is as fast."""
    right = ("in step", "MACs", "median", "p10", "p90", "ours is")
    result = table(
        "threads", "product", "in step", "MACs", "who", "job", "median", "p10", "p90", "ours is",
        right=right,
    )  # fmt: skip
    for one in run["runs"]:
        for product in one["products"]:
            first = [product["product"], f"{product['calls']}x", big(product["macs"])]
            for who, row in product["rows"].items():
                ratio = row["median_ms"] / product["rows"][OURS]["median_ms"]
                times = [duration(row[name]) for name in ("median_ms", "p10_ms", "p90_ms")]
                job = "int32" if who in SAME_JOB else "float"
                shown = "" if who == OURS else f"{ratio:.2f}x"
                result.add_row(str(one["threads"]), *first, who, job, *times, shown)
                first = ["", "", ""]
    return result


def skipped_lines(run: Mapping[str, Any]) -> list[str]:
    """Why peers have no row, each reason once."""
    found: dict[str, None] = {}
    for one in run["runs"]:
        for who, reason in one["skipped"].items():
            found[f"{who} left out of the step: {reason}"] = None
        for product in one["products"]:
            for who, reason in product["skipped"].items():
                found[f"{who} left out of products: {reason}"] = None
    return list(found)


def verdicts_table(verdicts: Sequence[Verdict]) -> Table:
    """A and B, with what changed."""
    right = ("A", "B", "change", "ratio A", "ratio B")
    result = table(
        "threads", "kind", "what", "who", "A", "B", "change", "verdict", "ratio A", "ratio B",
        right=right,
    )  # fmt: skip
    for one in verdicts:
        if one.a.kind == KERNEL and one.verdict == SAME:
            continue
        ratios = ["" if row.ratio is None else f"{row.ratio:.2f}x" for row in (one.a, one.b)]
        result.add_row(
            str(one.a.threads),
            one.a.kind,
            one.a.part,
            "ours" if one.a.ours else one.a.who,
            duration(one.a.median_ms),
            duration(one.b.median_ms),
            f"{one.change:+.1%}",
            one.verdict,
            *ratios,
            style=_COLOURS[one.verdict] if one.a.ours else "dim",
        )
    return result


def gate_table(held: Sequence[Held]) -> Table:
    """Every bound with what was measured, those that fail first."""
    result = table(
        "ratio", "bound", "measured", "at best", "", right=("bound", "measured", "at best")
    )
    for one in sorted(held, key=lambda row: row.passed):
        shown = ["not measured" if v is None else f"{v:.2f}x" for v in (one.ratio, one.best)]
        style = None if one.passed else "red"
        word = "ok" if one.passed else "FAILED"
        result.add_row(one.name, f"{one.bound:.2f}x", *shown, word, style=style)
    return result
