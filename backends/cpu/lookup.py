"""Slices by number, and the sum of what was read from each: rows shared by threads.

The sum has one order, ascending by position, so no two threads may add to one element: a task
takes some columns of some rows of the result and goes through all positions.
"""

from math import prod

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.sweep import in_vectors
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec

COLUMNS = 64
"""Columns of a task: four cache lines of every slice."""
TASKS = 16
"""Rows are cut, too, until there are this many tasks; each part reads all numbers again."""


def split(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """A shape as (all axes before, the axis, all axes behind)."""
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


def _inside(number: Expr, size: int) -> Expr:
    """A row number, kept inside 0 .. size - 1."""
    dtype = nest.dtype_of(number)
    kept = tirx.min(number, nest.const(size - 1, dtype))
    return nest.cast(tirx.max(kept, nest.zero(dtype)), "int32")


@KERNELS.kernel("sq::take")
def take(spec: KernelSpec) -> object:
    """Slices of the result in parallel, vectors along what stands behind the axis; numbers in
    vectors where nothing does."""
    with nest.function(spec) as f:
        x, index, (out,) = f["x"], f["index"], f.outputs
        before, size, inner = split(x.shape, spec["axis"])
        count = index.size
        if inner == 1:
            with nest.parallel(before, out.size, "row") as row:

                def places(at: Expr, lanes: int) -> None:
                    with nest.lanes(count=lanes) as lane:
                        place = _inside(index[at + lane], size)
                        out.store(row * count + at + lane, x[row * size + place])

                in_vectors(count, places)
        else:
            with nest.parallel(before * count, out.size, "slice") as task:
                row, at = tirx.floordiv(task, count), tirx.floormod(task, count)
                start = (row * size + _inside(nest.bound(index[at]), size)) * inner

                def piece(column: Expr, lanes: int) -> None:
                    with nest.lanes(count=lanes) as lane:
                        out.store(task * inner + column + lane, x[start + column + lane])

                in_vectors(inner, piece)
    return f.result


def _ranges(before: int, size: int, inner: int) -> tuple[int, int]:
    """(columns, rows) of a task."""
    columns = min(COLUMNS, inner)
    blocks = before * -(-inner // columns)
    parts = max(1, min(size, TASKS // blocks))
    return columns, -(-size // parts)


@KERNELS.kernel("sq::take_backward")
def take_backward(spec: KernelSpec) -> object:
    """Blocks of columns and of rows in parallel, every one through all positions in order."""
    with nest.function(spec) as f:
        g, index, (out,) = f["g"], f["index"], f.outputs
        before, size, inner = split(out.shape, spec["axis"])
        count, skipped = index.size, spec["skipped"]
        columns, rows = _ranges(before, size, inner)
        blocks, parts = -(-inner // columns), -(-size // rows)
        work = out.size + g.size * parts
        with nest.parallel(before * blocks * parts, work, "task") as task:
            part = tirx.floormod(task, parts)
            place = tirx.floordiv(task, parts)
            outer = tirx.floordiv(place, blocks)
            first = tirx.floormod(place, blocks) * columns
            low = part * rows
            high = tirx.min(low + rows, size)

            def clear(row: Expr, width: int) -> None:
                start = (outer * size + row) * inner + first

                def vector(column: Expr, lanes: int) -> None:
                    with nest.lanes(count=lanes) as lane:
                        out.store(start + column + lane, nest.zero("float32"))

                in_vectors(width, vector)

            def block(width: int) -> None:
                with nest.serial(high, "row", low) as row:
                    clear(row, width)
                with nest.serial(count, "at") as at:
                    row = nest.bound(_inside(nest.bound(index[at]), size))
                    inside = [row >= low, row < high]
                    if skipped >= 0:
                        inside.append(tirx.NE(row, skipped))
                    with nest.when(tirx.all(*inside)):
                        to, source = (outer * size + row) * inner, (outer * count + at) * inner
                        _add(out, to + first, g, source + first, width)

            # Blocks must not overlap: each clears its columns and adds to them.
            if left := inner % columns:
                with nest.when(first + columns <= inner):
                    block(columns)
                with nest.when(first + columns > inner):
                    block(left)
            else:
                block(columns)
    return f.result


def _add(out: Array, to: Expr, g: Array, source: Expr, columns: int) -> None:
    """out[to ...] += g[source ...]; every element once."""
    lanes = min(nest.LANES, 1 << (columns.bit_length() - 1))
    starts = [*range(0, columns - lanes + 1, lanes)]
    left, width = columns % lanes, lanes
    pieces = [(start, lanes) for start in starts]
    done = len(starts) * lanes
    while left:
        width = 1 << (left.bit_length() - 1)
        pieces.append((done, width))
        done, left = done + width, left - width
    for start, width in pieces:
        with nest.lanes(count=width) as lane:
            at = to + start + lane
            out.store(at, out[at] + g[source + start + lane])
