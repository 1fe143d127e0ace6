"""Moving elements between vectors: joining, interleaving, transposing.

x86 interleaves inside each 16 bytes of a register, so a transposition works on `across` elements
there, in every 16 bytes at once: log2(across) rounds of interleaving vector i with vector
i + across / 2, one instruction a result.
"""

from collections.abc import Sequence

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Expr


def _kept(value: Expr, dtype: str, lanes: int) -> Expr:
    """The value through a stack slot: an expression that several others read is emitted once."""
    held = nest.scratch(lanes, dtype)
    held.store(nest.ramp(0, lanes), value)
    return held[nest.ramp(0, lanes)]


def concatenated(parts: Sequence[Expr], lanes: int) -> Expr:
    """Vectors of `lanes` elements one after the other."""
    if len(parts) == 1:
        return parts[0]
    total = len(parts) * lanes
    return tirx.Shuffle(list(parts), [tirx.const(i, "int32") for i in range(total)])


def interleaved(rows: Sequence[Expr]) -> Expr:
    """Element 0 of every row, then element 1 of every row, ..."""
    if len(rows) == 1:
        return rows[0]
    lanes = rows[0].ty.dtype.lanes
    places = [row * lanes + lane for lane in range(lanes) for row in range(len(rows))]
    return tirx.Shuffle(list(rows), [tirx.const(i, "int32") for i in places])


def transposed(rows: Sequence[Expr], dtype: str, lanes: int, across: int) -> list[Expr]:
    """In each run of `across` elements: element j of result i is element i of row j."""
    assert len(rows) == across
    half = across // 2
    now = [_kept(row, dtype, lanes) for row in rows]
    for _ in range(across.bit_length() - 1):
        pairs = [(now[i], now[i + half], high) for i in range(half) for high in (0, half)]
        now = [_kept(_unpacked(*pair, lanes, across), dtype, lanes) for pair in pairs]
    return now


def _unpacked(first: Expr, second: Expr, start: int, lanes: int, across: int) -> Expr:
    """Elements start ... start + across / 2 - 1 of every run, of the two in turns."""
    places = [
        tirx.const(vector * lanes + run + start + j, "int32")
        for run in range(0, lanes, across)
        for j in range(across // 2)
        for vector in (0, 1)
    ]
    return tirx.Shuffle([first, second], places)
