"""Data movement: every op is one strided read into a contiguous result, a thread an element."""

from collections.abc import Callable, Sequence
from math import prod

from tvm import tirx

from sqcompile.backends.cuda import grid
from sqcompile.backends.cuda.grid import VECTOR, Array, Expr
from sqcompile.backends.cuda.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.backends.strides import contiguous, flipped, fronts, joined, merge
from sqcompile.backends.views import walked

TILE, TILE_ROWS = 32, 8
"""Side of a square that is turned, and its rows that a block's threads are."""


Move = Callable[[Expr, Expr], None]


def _read(
    source: Array, out: Array, extents: Sequence[int], steps: Sequence[int], begin: int
) -> None:
    """out[i] = the source's element i along a walk: whole vectors, tiles where the walk runs
    across, or elements."""
    merged, (read,) = merge(extents, [steps])
    runs = merged[-1] % VECTOR == 0 and read[-1] == 1
    if runs and all(step % VECTOR == 0 for step in (*read[:-1], begin)):
        lanes = VECTOR
    elif _turns(merged, read):
        _tiles(source, out, merged, read, begin)
        return
    else:
        lanes = 1

    def emit(item: Expr) -> None:
        first = item * lanes
        place = grid.linear(grid.unravel(first, merged), read, begin)
        if lanes == 1:
            out.store(first, source[place])
        else:
            held = grid.slots(lanes, out.dtype)
            grid.load(source, place, held, 0)
            grid.store(out, first, held, 0)

    grid.each(out.size // lanes, emit)


def _turns(extents: Sequence[int], steps: Sequence[int]) -> bool:
    """Whether another axis than the last runs along memory, and both are long."""
    return 1 in steps[:-1] and min(extents[steps.index(1)], extents[-1]) >= TILE // 2


def _tiles(
    source: Array, out: Array, extents: Sequence[int], steps: Sequence[int], begin: int
) -> None:
    """Squares of the axis that runs along the source and of the one that runs along the result,
    through shared memory: both are read and written along lines. A row of the square has one place
    more than it holds, so that a column's elements lie in different banks."""
    axis, last = steps.index(1), len(extents) - 1
    others = [i for i in range(last) if i != axis]
    sizes = [-(-extents[i] // TILE) for i in (axis, last)]
    write = contiguous(extents)
    blocks = prod(extents[i] for i in others) * prod(sizes)
    with grid.launch(blocks, TILE * TILE_ROWS) as (block, thread):
        held = grid.shared(TILE * (TILE + 1), out.dtype)
        *outer, across, along = grid.unravel(block, [*(extents[i] for i in others), *sizes])
        column, row = tirx.floormod(thread, TILE), tirx.floordiv(thread, TILE)

        def move(inner: int, walk: Sequence[int], start: int, body: Move) -> None:
            """body(place, place in the square) for the elements that this thread moves along the
            axis `inner`."""
            first = grid.linear(outer, [walk[i] for i in others], start)
            ends = [walk[axis], walk[last]]
            for part in range(0, TILE, TILE_ROWS):
                a, b = (column, row + part) if inner == axis else (row + part, column)
                x, y = across * TILE + a, along * TILE + b
                with grid.when(tirx.And(x < extents[axis], y < extents[last])):
                    body(grid.linear([x, y], ends, first), b * (TILE + 1) + a)

        move(axis, steps, begin, lambda place, at: held.store(at, source[place]))
        grid.barrier()
        move(last, write, 0, lambda place, at: out.store(place, held[at]))


@KERNELS.kernel(
    "aten::permute.default",
    "aten::transpose.int",
    "aten::t.default",
    "aten::slice.Tensor",
    "aten::select.int",
    views={"self": grid.anywhere},
)
def rearranged(spec: KernelSpec) -> object:
    """A chain of these ops is one copy."""
    with grid.function(spec) as f:
        source, (out,) = f["self"], f.outputs
        walk = walked(spec, source.walk)
        if out.size:
            assert walk is not None
            _read(source, out, walk.extents, walk.strides, walk.begin)
    return f.result


@KERNELS.kernel("aten::flip.default")
def flip(spec: KernelSpec) -> object:
    """Read backwards along the axes."""
    steps, begin = flipped(spec.tensor("self").shape, spec["dims"])
    with grid.function(spec) as f:
        (out,) = f.outputs
        _read(f["self"], out, out.shape, steps, begin)
    return f.result


@KERNELS.kernel("aten::cat.default", views={"tensors": grid.anywhere})
def cat(spec: KernelSpec) -> object:
    """A launch for each input."""
    with grid.function(spec) as f:
        (out,) = f.outputs
        for source, put in joined(f.list("tensors"), out.shape, spec["dim"]):
            axis = spec["dim"] % len(out.shape)
            step = contiguous(out.shape)[axis]
            _part(source, out, source.shape[axis] * step, out.shape[axis] * step, put)
    return f.result


def _part(source: Array, out: Array, inner: int, length: int, put: int) -> None:
    """Runs of `inner` elements, `length` apart in the result."""
    walk = source.walk
    extents, steps = walk.extents or [1], walk.strides or [0]

    def emit(item: Expr) -> None:
        place = tirx.floordiv(item, inner) * length + tirx.floormod(item, inner) + put
        read = grid.linear(grid.unravel(item, extents), steps, walk.begin)
        out.store(place, source[read])

    grid.each(source.size, emit)


@KERNELS.kernel("aten::constant_pad_nd.default")
def constant_pad_nd(spec: KernelSpec) -> object:
    """An element is inside of the input or it is the value; negative padding crops."""
    with grid.function(spec) as f:
        source, (out,) = f["self"], f.outputs
        front = fronts(spec["pad"], len(out.shape))
        steps = contiguous(source.shape)

        def emit(item: Expr) -> None:
            at = [
                one - first for one, first in zip(grid.unravel(item, out.shape), front, strict=True)
            ]
            inside = [
                condition
                for one, size in zip(at, source.shape, strict=True)
                for condition in (one >= 0, one < size)
            ]
            held = grid.slots(1, out.dtype)
            held.store(0, grid.const(spec["value"], out.dtype))
            with grid.when(grid.all_of(inside)):
                held.store(0, source[grid.linear(at, steps)])
            out.store(item, held[0])

        grid.each(out.size, emit)
    return f.result
