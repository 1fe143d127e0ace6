"""The variants of a run folder, and which of them are looked at. Executes nothing, needs no torch.

A variant is one compiled form of a step: of a mode, with or without gradients, for one set of
shapes. The first is the training step; the forward of evaluation is another.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sqcompile.errors import UsageError

ALL = "all"


@dataclass(frozen=True)
class Listed:
    """One variant of a run folder. inputs: `float32[4, 6]`, one each; place: the folder of its
    graphs, which for the first is the run folder itself."""

    number: int
    mode: str
    gradients: bool
    inputs: tuple[str, ...]
    place: Path

    @property
    def what(self) -> str:
        """`train`, `eval`, `train without gradients`."""
        plain = self.gradients == (self.mode == "train")
        if plain:
            return self.mode
        return f"{self.mode} {'with' if self.gradients else 'without'} gradients"

    def __str__(self) -> str:
        return f"variant {self.number}: {self.what}, {', '.join(self.inputs)}"

    def to_json(self) -> dict[str, Any]:
        """What the variant is, as data."""
        return {
            "variant": self.number,
            "mode": self.mode,
            "gradients": self.gradients,
            "inputs": list(self.inputs),
        }


def listed(folder: str | Path) -> list[Listed]:
    """The variants of a run folder, in order. Raises UsageError for a folder that is none."""
    path = Path(folder) / "manifest.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["variants"]
        return [_listed(number, entry, Path(folder)) for number, entry in enumerate(entries)]
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}\n"
            "  a run folder is what `sqcompile model.py -o DIR` writes."
        ) from error
    except (LookupError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is damaged; compile the model again") from error


def _listed(number: int, entry: Mapping[str, Any], run: Path) -> Listed:
    key = entry["key"]
    place = run / entry["folder"] if number else run
    return Listed(number, key["mode"], key["gradients"], tuple(key["leaves"]), place)


def chosen(known: Sequence[Listed], asked: str) -> list[Listed]:
    """The variants that a number, a mode ("train", "eval") or "all" names. Raises UsageError where
    there is none."""
    found = [one for one in known if asked in (ALL, one.mode, str(one.number))]
    if not found:
        words = [*dict.fromkeys(one.mode for one in known), ALL]
        close = get_close_matches(asked, words, n=1)
        raise UsageError(
            f"no variant '{asked}'{f'; did you mean {close[0]!r}?' if close else ''}\n  there are "
            + "; ".join(f"{one.number}: {one.what}, {', '.join(one.inputs)}" for one in known)
        )
    return found


def others(known: Sequence[Listed], shown: Sequence[Listed]) -> str:
    """`1 (eval)`: the variants that are not shown; "" for none."""
    return ", ".join(f"{one.number} ({one.what})" for one in known if one not in shown)
