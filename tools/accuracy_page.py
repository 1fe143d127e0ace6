"""docs/accuracy.md from the figures that tools/accuracy.py has measured.

    python tools/accuracy_page.py runs/accuracy/*.summary.json

Takes summaries over into docs/accuracy.json, an entry each by the file's name, and writes the page
anew from all entries. Without arguments the page is written from docs/accuracy.json as it is.
PROTOCOL@CHANGES.summary.json is a protocol under another schedule: a few lines of one table.
"""

import json
from collections.abc import Iterator, Mapping
from math import isnan, sqrt
from pathlib import Path
from statistics import mean
from typing import Any

import click
import jinja2
from protocols.summary import spread

DOCS = Path(__file__).resolve().parent.parent / "docs"
FIGURES = DOCS / "accuracy.json"
PAGE = DOCS / "accuracy.md"
TEMPLATE = Path(__file__).resolve().parent / "protocols" / "accuracy.md.j2"
FP32 = "fp32"


def rows(runs: Mapping[str, Any]) -> Iterator[str]:
    """The rows of a protocol's table."""
    for name, run in runs.items():
        test = run["test"]
        gap = "" if name == FP32 else f"{test['gap']:+.2f} ± {test['gap_se']:.2f}"
        spread = "" if name == FP32 else f"{test['gap_sd']:.2f}"
        validation = "" if name == FP32 else f"{run['validation']['gap']:+.2f}"
        cells = [
            f"`{name}`" if name != FP32 else "fp32",
            f"{100 * test['mean']:.2f} % ({100 * test['sd']:.2f})",
            gap,
            spread,
            validation,
            "diverged" if test["loss"] is None else f"{test['loss']:.3f}",
            str(run["seeds"]),
            f"{run['seconds']:.0f} s",
            f"{run['saved_bytes'] / 1e6:.2f} MB",
        ]
        yield f"| {' | '.join(cells)} |"


def schedule_rows(figures: Mapping[str, Any]) -> Iterator[str]:
    """The rows of protocols under other schedules: gaps to fp32 under the same one, and to fp32
    under the usual one."""
    for entry, told in figures.items():
        name, changed, changes = entry.partition("@")
        for recipe, run in told["runs"].items() if changed else ():
            if recipe == FP32:
                continue
            cells = [f"`{name}`", changes.replace("=", " "), f"`{recipe}`"]
            for split in ("validation", "test"):
                base = figures[name]["runs"][FP32][split]["accuracy"]
                usual = [
                    100 * (reference - found)
                    for reference, found in zip(base, run[split]["accuracy"], strict=False)
                ]
                same = run[split]
                cells.append(f"{same['gap']:+.2f} ± {same['gap_se']:.2f}")
                cells.append(f"{mean(usual):+.2f} ± {spread(usual) / sqrt(len(usual)):.2f}")
            fp32 = told["runs"][FP32]["validation"]["mean"]
            cells += [f"{100 * fp32:.2f} %", str(run["seeds"])]
            yield f"| {' | '.join(cells)} |"


def finite(figures: Any) -> Any:
    """The same without NaN, which JSON has not: the loss of a run that diverged is null."""
    if isinstance(figures, dict):
        return {name: finite(value) for name, value in figures.items()}
    if isinstance(figures, list):
        return [finite(value) for value in figures]
    return None if isinstance(figures, float) and isnan(figures) else figures


def page(figures: Mapping[str, Any]) -> str:
    """The whole page."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    template = environment.from_string(TEMPLATE.read_text())
    protocols = {name: told for name, told in figures.items() if "@" not in name}
    schedules = list(schedule_rows(figures))
    return template.render(protocols=protocols, rows=rows, schedules=schedules) + "\n"


@click.command(help=__doc__)
@click.argument("summaries", nargs=-1, type=click.Path(exists=True, dir_okay=False))
def main(summaries: tuple[str, ...]) -> None:
    """Merge summaries and write the page."""
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    for path in summaries:
        name = Path(path).name.removesuffix(".summary.json")
        figures[name] = finite(json.loads(Path(path).read_text()))
    FIGURES.write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n")
    PAGE.write_text(page(figures))


if __name__ == "__main__":
    main()
