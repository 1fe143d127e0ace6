"""How two rows of docs/accuracy.md differ, paired by seed.

    python tools/accuracy_compare.py resnet8-16px:w4a4g4-limited resnet8-16px:w4a4g4
    python tools/accuracy_compare.py resnet8-16px@lr=0.2:fp32 resnet8-16px:fp32

A row is ENTRY:RECIPE with an entry of docs/accuracy.json. Prints what the first has more than the
second: accuracy in percentage points, and the training loss of the last epoch in nats where both
rows have it and no run diverged. Means over the seeds that both have, and their standard errors.
"""

import json
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import mean
from typing import Any

import click
from protocols.summary import spread

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "accuracy.json"


def row(figures: Mapping[str, Any], told: str) -> Mapping[str, Any]:
    """The figures of ENTRY:RECIPE.

    Raises:
        click.UsageError: there is no such row; the message has those there are.
    """
    entry, _, recipe = told.partition(":")
    if entry not in figures:
        raise click.UsageError(f"{told}: no entry {entry}; there are {', '.join(figures)}")
    runs = figures[entry]["runs"]
    if recipe not in runs:
        raise click.UsageError(f"{told}: {entry} has no {recipe or 'recipe'}; {', '.join(runs)}")
    found: Mapping[str, Any] = runs[recipe]
    return found


def line(name: str, first: Sequence[float], second: Sequence[float], digits: int) -> str:
    """How two lists by seed differ; the longer one ends where the other does."""
    found = [a - b for a, b in zip(first, second, strict=False)]
    error = spread(found) / sqrt(len(found))
    return f"  {name:21}{mean(found):+.{digits}f} +- {error:.{digits}f}, {len(found)} seeds"


@click.command(help=__doc__)
@click.argument("first")
@click.argument("second")
@click.option("--seeds", type=click.IntRange(1), help="The first so many; all that both have.")
def main(first: str, second: str, seeds: int | None) -> None:
    """Print a line for every split, and one for the training loss."""
    figures = json.loads(FIGURES.read_text())
    rows = [row(figures, first), row(figures, second)]
    if seeds and (least := min(found["seeds"] for found in rows)) < seeds:
        raise click.UsageError(f"--seeds {seeds}: the shorter row has {least}")
    print(f"{first} - {second}")
    for split in ("validation", "test"):
        one, other = ([100 * value for value in found[split]["accuracy"]] for found in rows)
        print(line(f"{split}, points", one[:seeds], other[:seeds], 2))
    if all(None not in found.get("training_loss", [None]) for found in rows):
        one, other = (found["training_loss"] for found in rows)
        print(line("training loss, nats", one[:seeds], other[:seeds], 4))


if __name__ == "__main__":
    main()
