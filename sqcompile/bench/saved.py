"""A measurement as a file: rows of who took how long for what."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqcompile.errors import UsageError

FORMAT = 1
KIND = "sqcompile bench"
STEP, PRODUCT, KERNEL = "step", "product", "kernel"
PARTS = ("forward", "backward", "step")


@dataclass(frozen=True)
class Row:
    """One time. kind: "step", "product" or "kernel"; part: "forward", a product's form, "forward
    KERNEL"; who: "ours" or a peer; ratio: its median over ours, None for ours."""

    threads: int
    kind: str
    part: str
    who: str
    ours: bool
    median_ms: float
    p10_ms: float
    p90_ms: float
    low_ms: float
    high_ms: float
    runs: int
    ratio: float | None

    @property
    def key(self) -> tuple[int, str, str, str]:
        """What two runs' rows of one thing have in common."""
        return self.threads, self.kind, self.part, "ours" if self.ours else self.who

    @property
    def name(self) -> str:
        """`step / fp32 PyTorch / 2 threads`: as bounds files name a ratio."""
        return f"{self.part} / {self.who} / {self.threads} thread{'s' if self.threads > 1 else ''}"


def rows(run: Mapping[str, Any]) -> list[Row]:
    """Every time of a measurement."""
    return [row for one in run["runs"] for row in _rows(one, run["recipe"])]


def _rows(one: Mapping[str, Any], recipe: str) -> Iterator[Row]:
    threads = one["threads"]
    for part in PARTS:
        times = {
            name.removesuffix(f" {part}"): row
            for name, row in one["rows"].items()
            if name.endswith(f" {part}")
        }
        yield from _beside(threads, STEP, part, times, recipe)
    for product in one["products"]:
        yield from _beside(threads, PRODUCT, product["product"], product["rows"], "sqcompile")
    for kernel in one["kernels"]:
        part = f"{kernel['function']} {kernel['kernel']}"
        yield from _beside(threads, KERNEL, part, {"sqcompile": kernel}, "sqcompile")


def _beside(
    threads: int, kind: str, part: str, times: Mapping[str, Mapping[str, Any]], ours: str
) -> Iterator[Row]:
    for who, row in times.items():
        ratio = None if who == ours else row["median_ms"] / times[ours]["median_ms"]
        p10, p90, low, high = (row[name] for name in ("p10_ms", "p90_ms", "low_ms", "high_ms"))
        yield Row(
            threads, kind, part, who, who == ours,
            row["median_ms"], p10, p90, low, high, row["runs"], ratio,
        )  # fmt: skip


def as_csv(run: Mapping[str, Any]) -> str:
    """The rows with a line of names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = list(Row.__dataclass_fields__)
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in rows(run))
    return text.getvalue()


def read(path: str | Path) -> dict[str, Any]:
    """A saved measurement. Raises UsageError for a file that is none."""
    data = read_json(path)
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise UsageError(
            f"{path} is no saved measurement\n  `sqcompile bench DIR -o {path}` writes one."
        )
    if data.get("format") != FORMAT:
        raise UsageError(f"{path} is of another version of sqcompile; measure again")
    return data


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. Raises UsageError for one that cannot be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
