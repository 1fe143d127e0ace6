"""stages.json: the graph after every pass as records, for `inspect` and other programs.

A pass leaves most nodes as they were, so every record stands once, and a stage is a list of the
numbers of its records. Needs no torch.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sqcompile.errors import UsageError
from sqcompile.passes.entries import Entry, packed, unpacked

FILE = "stages.json"
FORMAT = 1


class Stage(Protocol):
    """What is written of a stage (`sqcompile.passes.pipeline.Stage`)."""

    @property
    def name(self) -> str:
        """The pass."""
        ...

    @property
    def entries(self) -> Sequence[Entry]:
        """The graph after it."""
        ...


def write(folder: Path, stages: Sequence[Stage]) -> None:
    """Write stages.json into a folder that nobody reads yet; nothing for no stages."""
    if not stages:
        return
    numbers: dict[str, int] = {}
    listed = []
    for stage in stages:
        records = [json.dumps(packed(entry), separators=(",", ":")) for entry in stage.entries]
        for record in records:
            numbers.setdefault(record, len(numbers))
        listed.append(json.dumps([stage.name, [numbers[record] for record in records]]))
    nodes, names = ",\n".join(numbers), ",\n".join(listed)
    (folder / FILE).write_text(
        f'{{"format": {FORMAT},\n"nodes": [\n{nodes}\n],\n"stages": [\n{names}\n]}}\n',
        encoding="utf-8",
    )


def read(folder: str | Path) -> dict[str, list[Entry]]:
    """The records of every stage by name, in order. Raises UsageError when they cannot be read."""
    path = Path(folder) / FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}\n"
            "  a run folder is what `sqcompile model.py -o DIR` writes."
        ) from error
    except ValueError as error:
        raise UsageError(f"{path} is damaged: {error}; compile the model again") from error
    return _stages(data, path)


def _stages(data: Any, path: Path) -> dict[str, list[Entry]]:
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise UsageError(f"{path} is not of this version; compile the model again")
    try:
        entries = [unpacked(node) for node in data["nodes"]]
        return {name: [entries[number] for number in numbers] for name, numbers in data["stages"]}
    except (LookupError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is damaged; compile the model again") from error
