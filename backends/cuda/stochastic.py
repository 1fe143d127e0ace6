"""Carried stochastic rounding: a thread walks sixteen rows of a column, columns across threads.

The carry stays in a register from row to row, and neighbouring threads read neighbouring columns.
Only the first row draws. The draws of a block of Philox belong to columns 16 apart: each thread
computes its own, a block for sixteen elements.
"""

from collections.abc import Callable, Sequence
from math import prod

from tvm import tirx

from sqcompile.backends.cuda import grid
from sqcompile.backends.cuda.grid import Array, Expr
from sqcompile.backends.cuda.philox import Philox
from sqcompile.backends.rounding import clamp
from sqcompile.ops.carried import BELOW_ONE, ROWS
from sqcompile.ops.quantize import limits

Scaled = Callable[[Expr], Expr]
"""scaled(index) -> t of an element, in steps of the grid."""
Store = Callable[[Expr, Expr], None]


def carry(
    shape: Sequence[int], philox: Philox, bits: int, pairs: Sequence[tuple[Scaled, Store]]
) -> None:
    """store(index, integer as int32) of every element of a tensor, in one way or several which
    begin by the same draws."""
    columns, size = (shape[-1] if shape else 1), prod(shape)
    if not size:
        return
    low, high = limits(bits, True)
    rows = size // columns
    runs = -(-rows // ROWS)

    def emit(item: Expr) -> None:
        run, column = tirx.floordiv(item, columns), tirx.floormod(item, columns)
        draw = grid.cast(philox.draw(item), "float32") + grid.const(0.5, "float32")
        start = grid.keep(draw * grid.const(2.0**-16, "float32"))
        held = [grid.slots(1, "float32") for _ in pairs]
        for one in held:
            one.store(0, start)
        count = ROWS if rows % ROWS == 0 else tirx.min(rows - run * ROWS, grid.const(ROWS, "int32"))
        with grid.serial(count, "row") as row:
            at = (run * ROWS + row) * columns + column
            for (scaled, store), c in zip(pairs, held, strict=True):
                t = clamp(grid.keep(scaled(at)), low - 1, high + 1)
                v = grid.keep(grid.keep(t) + c[0])
                whole = grid.keep(tirx.floor(v))
                c.store(0, tirx.min(v - whole, grid.const(BELOW_ONE, "float32")))
                q = grid.cast(whole, "int32")
                limited = tirx.min(tirx.max(q, grid.const(low, "int32")), grid.const(high, "int32"))
                store(at, limited)

    grid.each(runs * columns, emit)


def into(q: Array) -> Store:
    """Stores the integers as they are."""
    return lambda at, value: q.store(at, grid.cast(value, q.dtype))
