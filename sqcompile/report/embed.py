"""Data inside a page: compressed, and as text that no HTML parser reads as anything else."""

import base64
import gzip
import json
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T", bound=Hashable)


def packed(text: str) -> str:
    """Base64 of gzip, the same for the same text; DecompressionStream reads it in the browser."""
    return base64.b64encode(gzip.compress(text.encode("utf-8"), 9, mtime=0)).decode("ascii")


def packed_json(data: Any) -> str:
    """The same of a JSON document without blanks."""
    return packed(json.dumps(data, separators=(",", ":")))


class Pool:
    """Distinct values in the order in which they came first: lists are stored as their places."""

    def __init__(self) -> None:
        self._places: dict[Any, int] = {}

    def steps(self, values: Iterable[T]) -> list[int]:
        """The places of values, each as its distance from the one before: mostly ones."""
        places = [self._places.setdefault(value, len(self._places)) for value in values]
        return [here - before for before, here in zip([0, *places], places, strict=False)]

    def values(self) -> Sequence[Any]:
        """Every value, by place."""
        return list(self._places)
