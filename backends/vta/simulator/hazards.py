"""Which operations of a sequence can be computed together, as if they had run in order."""

from collections.abc import Iterator

import numpy as np

from sqcompile.backends.vta.simulator.scratchpad import Indices


def rounds(dst: Indices, src: Indices, depth: int) -> Iterator[Indices]:
    """Positions t of `dst[t] = op(dst[t], src[t])` that may run at once, round after round.

    Within a round all reads come before all writes. So an operation belongs to a round after the
    last one that wrote a tile it reads or writes, and not before one that reads what it writes.
    """
    if _independent(dst, src, depth):
        yield np.arange(len(dst))
        return
    written, read = [0] * depth, [0] * depth
    chosen = np.empty(len(dst), np.int64)
    for t, (to, by) in enumerate(zip(dst.tolist(), src.tolist(), strict=True)):
        number = max(written[to] + 1, written[by] + 1, read[to])
        chosen[t] = number
        written[to] = number
        read[to] = number
        read[by] = max(read[by], number)
    order = np.argsort(chosen, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(chosen[order])) + 1)


def _independent(dst: Indices, src: Indices, depth: int) -> bool:
    """Is no tile written twice, and none read by another operation than the one that writes it?"""
    writer = np.full(depth, -1)
    writer[dst] = np.arange(len(dst))
    twice = (writer[dst] != np.arange(len(dst))).any()
    others = (writer[src] >= 0) & (writer[src] != np.arange(len(src)))
    return not twice and not others.any()
