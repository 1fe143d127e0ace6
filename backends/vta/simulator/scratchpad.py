"""A scratchpad that knows what was written to it, by which instruction, and who has to wait."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sqcompile.backends.vta.isa import Module
from sqcompile.backends.vta.simulator.schedule import Clock
from sqcompile.errors import IllegalAccessError

Indices = NDArray[np.int64]
_LISTED = 4


class Users(NamedTuple):
    """The module that writes a scratchpad and the one that reads it."""

    writer: Module
    reader: Module


class Scratchpad:
    """(depth, ...) values, undefined at first.

    `written` and `read` hold, by tile, which instruction of the writing or reading module was the
    last (counted from 1 in its module). Another module may touch the tile only when tokens prove
    that this instruction is over; an access without proof is an error in every interleaving.
    """

    def __init__(self, name: str, shape: tuple[int, ...], dtype: type, users: Users) -> None:
        self.name = name
        self.data: NDArray[Any] = np.zeros(shape, dtype)
        self.users = users
        self.defined = np.zeros(shape[0], bool)
        self.written = np.zeros(shape[0], np.int64)
        self.read = np.zeros(shape[0], np.int64)

    def distinct(self, indices: Indices) -> Indices:
        """Every index once, ascending."""
        self.inside(indices)
        marked = np.zeros(len(self.data), bool)
        marked[indices] = True
        return np.flatnonzero(marked)

    def inside(self, indices: Indices) -> None:
        """Raise IllegalAccessError for an index past the end."""
        if indices.size and int(indices.max()) >= len(self.data):
            raise IllegalAccessError(
                f"{self.name} tile {int(indices.max())} is past the end: there are {len(self.data)}"
            )

    def reads(self, indices: Indices, clock: Clock) -> None:
        """Note that tiles are read; raises IllegalAccessError where that is not allowed."""
        indices = self.distinct(indices)
        undefined = ~self.defined[indices]
        if undefined.any():
            raise IllegalAccessError(
                f"reads {self.name} {_tiles(indices[undefined])}, which nothing has written"
            )
        early = self.written[indices] > clock[self.users.writer]
        if early.any():
            raise IllegalAccessError(
                f"reads {self.name} {_tiles(indices[early])} without waiting for "
                f"{self.users.writer.name} to have written them"
            )
        self.read[indices] = clock[self.users.reader]

    def writes(self, indices: Indices, clock: Clock) -> None:
        """Note that tiles are written; raises IllegalAccessError where that is not allowed."""
        indices = self.distinct(indices)
        early = self.read[indices] > clock[self.users.reader]
        if early.any():
            raise IllegalAccessError(
                f"writes {self.name} {_tiles(indices[early])} without waiting for "
                f"{self.users.reader.name} to have read them"
            )
        self.defined[indices] = True
        self.written[indices] = clock[self.users.writer]


def _tiles(indices: Indices) -> str:
    found = [str(int(index)) for index in indices]
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return f"tile{'s' if len(found) > 1 else ''} {', '.join(found[:_LISTED])}{more}"
