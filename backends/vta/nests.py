"""Loops of tile operations in the form that an instruction has: two loops around micro-ops."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sqcompile.backends.vta.hardware import Hardware, Memory

PORTABLE_UOPS = 2048
"""Micro-ops that every implementation holds: upstream's Chisel core has no more by default."""

MOST_RIGHT, MOST_LEFT = 15, 16
"""Shifts by an immediate on which all implementations agree."""

MOST_ITERATIONS = (1 << 14) - 1
"""Of a loop."""


class Loop(NamedTuple):
    """`length` iterations, and the steps of the three indices from one to the next."""

    length: int
    dst: int = 0
    src: int = 0
    wgt: int = 0


class Nest(NamedTuple):
    """uops (n, 3) of dst, src, wgt inside two loops."""

    uops: NDArray[np.int64]
    outer: Loop
    inner: Loop

    def fields(self, begin: int, has_weights: bool) -> dict[str, int]:
        """The fields of a GEMM or ALU instruction whose micro-ops begin at `begin`."""
        found = {
            "uop_bgn": begin,
            "uop_end": begin + len(self.uops),
            "iter_out": self.outer.length,
            "iter_in": self.inner.length,
        }
        for name in ("dst", "src", "wgt") if has_weights else ("dst", "src"):
            found |= {
                f"{name}_out": getattr(self.outer, name),
                f"{name}_in": getattr(self.inner, name),
            }
        return found


def nest(loops: Sequence[Loop], base: tuple[int, int, int]) -> Nest:
    """Any number of loops: the two longest that count upwards stay loops, the others become
    micro-ops around `base`, the first one outermost."""

    def may_stay(number: int) -> bool:
        count, *steps = loops[number]
        return 1 < count <= MOST_ITERATIONS and min(steps) >= 0

    stay = sorted(filter(may_stay, range(len(loops))), key=lambda number: -loops[number].length)[:2]
    uops = np.array([base], np.int64)
    for number, (count, *by) in enumerate(loops):
        if number not in stay:
            steps = np.arange(count)[:, None] * np.array(by)
            uops = (uops[:, None] + steps[None]).reshape(-1, 3)
    outer, inner = [Loop(1), Loop(1), *(loops[number] for number in stay)][-2:]
    return Nest(uops, outer, inner)


class Uops:
    """The micro-ops of a program, in pages that are loaded as a whole.

    `place` gives where in the buffer a nest's micro-ops lie. When the page is full it asks for
    another one: then `pages` grows, and what was placed before has to be placed again.
    """

    def __init__(self, hardware: Hardware) -> None:
        self.capacity = min(hardware.depth(Memory.UOP), PORTABLE_UOPS)
        self.pages: list[list[NDArray[np.int64]]] = []
        self.placed: dict[bytes, int] = {}
        self.used = 0

    def place(self, uops: NDArray[np.int64]) -> tuple[int, bool]:
        """(where they begin, whether that is in a page that was just opened)."""
        key = uops.tobytes()
        if self.pages and key in self.placed:
            return self.placed[key], False
        opened = not self.pages or self.used + len(uops) > self.capacity
        if opened:
            self.pages.append([])
            self.placed.clear()
            self.used = 0
        self.placed[key] = self.used
        self.pages[-1].append(uops)
        self.used += len(uops)
        return self.placed[key], opened

    def sizes(self) -> list[int]:
        """Micro-ops of every page."""
        return [sum(map(len, page)) for page in self.pages]

    def all(self) -> NDArray[np.int64]:
        """(n, 3), page after page."""
        found = [uops for page in self.pages for uops in page]
        return np.concatenate(found) if found else np.empty((0, 3), np.int64)
