"""Two measurements compared, and one held against bounds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqcompile.bench.saved import KERNEL, KIND, STEP, Row, read, read_json, rows
from sqcompile.bench.steps import FP32
from sqcompile.errors import UsageError

FASTER, SLOWER, SAME = "faster", "slower", "same"


@dataclass(frozen=True)
class Verdict:
    """One row of both measurements; change: B's median over A's, less 1."""

    a: Row
    b: Row
    change: float
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """As JSON-able data."""
        a, b = self.a, self.b
        return {
            "threads": a.threads,
            "kind": a.kind,
            "part": a.part,
            "who": "ours" if a.ours else a.who,
            "a_ms": a.median_ms,
            "b_ms": b.median_ms,
            "a_ratio": a.ratio,
            "b_ratio": b.ratio,
            "change": self.change,
            "verdict": self.verdict,
        }


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Verdict]:
    """A verdict for every row that both have. B is faster or slower where the ranges of the
    medians of blocks of runs (`Times.low_ms` to `high_ms`) do not touch, the same elsewhere."""
    second = {row.key: row for row in rows(b)}
    pairs = [(row, second[row.key]) for row in rows(a) if row.key in second]
    return [Verdict(x, y, y.median_ms / x.median_ms - 1.0, verdict(x, y)) for x, y in pairs]


def verdict(a: Row, b: Row) -> str:
    """What B is beside A."""
    if b.high_ms < a.low_ms:
        return FASTER
    return SLOWER if b.low_ms > a.high_ms else SAME


@dataclass(frozen=True)
class Held:
    """A ratio (peer's time over ours) and its bound. best: the ratio at the favourable ends of
    both ranges; None for what was not measured."""

    name: str
    bound: float
    ratio: float | None
    best: float | None

    @property
    def passed(self) -> bool:
        """Whether even noise does not explain a ratio below the bound; never what is missing."""
        return self.best is not None and self.best >= self.bound


def bounds(given: str, slack: float, threads: list[int]) -> dict[str, float]:
    """What `--gate` asks for, by the names of ratios: a number for the step beside fp32 PyTorch; a
    saved measurement, whose ratios may fall by `slack`, a share; or {"bounds": {NAME: RATIO}}.

    Raises UsageError for anything else.
    """
    number = _number(given)
    if number is not None:
        many = [f"{count} thread{'s' if count > 1 else ''}" for count in threads]
        return {f"step / {FP32} / {one}": number for one in many}
    if not Path(given).is_file():
        raise UsageError(f"--gate {given}: neither a number above 0 nor a file")
    data = read_json(given)
    if isinstance(data, dict) and data.get("kind") == KIND:
        return {
            row.name: row.ratio * (1.0 - slack)
            for row in rows(read(given))
            if row.ratio is not None and (row.kind != STEP or row.part == "step")
        }
    named = data.get("bounds") if isinstance(data, dict) else None
    if not isinstance(named, dict) or not named or not all(map(_is_ratio, named.values())):
        raise UsageError(
            f'{given}: a bounds file is {{"bounds": {{"step / {FP32} / 2 threads": 1.5}}}}, ratios '
            "by name"
        )
    return named


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if _is_ratio(value) else None


def _is_ratio(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9


def gate(run: Mapping[str, Any], wanted: Mapping[str, float]) -> list[Held]:
    """Every bound and what this measurement has for it."""
    found = [row for row in rows(run) if row.kind != KERNEL]
    ours = {(row.threads, row.kind, row.part): row for row in found if row.ours}
    peers = {row.name: row for row in found if not row.ours}
    held = []
    for name, bound in wanted.items():
        peer = peers.get(name)
        own = ours[peer.threads, peer.kind, peer.part] if peer else None
        best = peer.high_ms / own.low_ms if peer and own else None
        held.append(Held(name, bound, peer.ratio if peer else None, best))
    return held
