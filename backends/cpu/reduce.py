"""Float sums in the one order of `sqcompile.ops.reduce`."""

from math import prod

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.sweep import contiguous, merge
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.ops.reduce import CHUNK

COLUMNS = 64
"""Results that one task of a column sum keeps in registers and cache."""


@KERNELS.kernel("sq::ordered_sum")
def ordered_sum(spec: KernelSpec) -> object:
    """Parallel over the kept elements.

    When the reduced elements are innermost a task sums one result in vectors of 16 lanes, else
    COLUMNS results side by side, 16 accumulators each.
    """
    axes = sorted(spec["axes"])
    with nest.function(spec) as f:
        x, (out,) = f["x"], f.outputs
        own = contiguous(x.shape)
        others = [axis for axis in range(len(x.shape)) if axis not in axes]
        reduced, (read,) = merge([x.shape[a] for a in axes], [[own[a] for a in axes]])
        kept, (keep,) = merge([x.shape[a] for a in others], [[own[a] for a in others]])
        work = x.size
        if not x.size:
            _zeros(out)
        elif keep[-1] == 1 and kept[-1] > 1:
            _column_sums(x, out, (reduced, read), (kept, keep), work)
        else:
            with nest.parallel(out.size, work, "o") as o:
                start = nest.linear(nest.unravel(o, kept), keep)
                _row_sum(x, out, o, start, reduced, read)
    return f.result


def _zeros(out: Array) -> None:
    with nest.serial(out.size, "o") as o:
        out.store(o, nest.zero("float32"))


def _row_sum(
    x: Array, out: Array, place: Expr, start: Expr, extents: list[int], read: list[int]
) -> None:
    """out[place] = the sum of the reduced elements, which begin at `start`."""
    count, lanes = prod(extents), nest.LANES
    acc = nest.scratch(lanes, "float32")
    total = nest.scratch(1, "float32")
    total.store(0, nest.zero("float32"))
    in_vectors = read[-1] == 1 and extents[-1] % lanes == 0 or extents == [count] and read == [1]

    def element(k: Expr) -> Expr:
        return x[nest.linear(nest.unravel(k, extents), read, start)]

    def chunk(first: Expr, size: int) -> None:
        with nest.lanes() as lane:
            acc.store(lane, nest.zero("float32"))
        whole = size // lanes if in_vectors else 0
        if whole:
            with nest.serial(whole, "v") as v:
                k = nest.unravel(first + v * lanes, extents)
                at = nest.linear(k, read, start)
                with nest.lanes() as lane:
                    acc.store(lane, acc[lane] + x[at + lane])
        if size % lanes or not whole:
            with nest.serial(size - whole * lanes, "k") as k:
                lane = tirx.floormod(k, lanes)
                acc.store(lane, acc[lane] + element(first + whole * lanes + k))
        half = lanes // 2
        while half:
            for lane in range(half):
                acc.store(lane, acc[lane] + acc[half + lane])
            half //= 2
        total.store(0, total[0] + acc[0])

    if count // CHUNK:
        with nest.serial(count // CHUNK, "chunk") as c:
            chunk(c * CHUNK, CHUNK)
    if count % CHUNK:
        chunk(count - count % CHUNK, count % CHUNK)
    out.store(place, total[0])


def _column_sums(
    x: Array,
    out: Array,
    reduced: tuple[list[int], list[int]],
    kept: tuple[list[int], list[int]],
    work: int,
) -> None:
    """Blocks of neighbouring results; the rows of x are read whole."""
    (extents, read), (outer, keep) = reduced, kept
    count, inner, lanes = prod(extents), outer[-1], nest.LANES
    blocks = -(-inner // COLUMNS)
    with nest.parallel(prod(outer[:-1]) * blocks, work, "task") as task:
        first = tirx.floormod(task, blocks) * COLUMNS
        row = tirx.floordiv(task, blocks)
        start = nest.linear(nest.unravel(row, outer[:-1]), keep[:-1], first)
        width = tirx.min(COLUMNS, inner - first) if inner % COLUMNS else COLUMNS
        acc = nest.scratch(lanes * COLUMNS, "float32")
        total = nest.scratch(COLUMNS, "float32")
        with nest.serial(COLUMNS, "c") as c:
            total.store(c, nest.zero("float32"))

        def chunk(begin: Expr, size: int) -> None:
            with nest.serial(lanes * COLUMNS, "c") as c:
                acc.store(c, nest.zero("float32"))
            with nest.serial(size, "k") as k:
                at = nest.linear(nest.unravel(begin + k, extents), read, start)
                lane = tirx.floormod(k, lanes) * COLUMNS
                with nest.serial(width, "c") as c:
                    acc.store(lane + c, acc[lane + c] + x[at + c])
            half = lanes // 2
            while half:
                with nest.serial(half * COLUMNS, "c") as c:
                    acc.store(c, acc[c] + acc[half * COLUMNS + c])
                half //= 2
            with nest.serial(COLUMNS, "c") as c:
                total.store(c, total[c] + acc[c])

        if count // CHUNK:
            with nest.serial(count // CHUNK, "chunk") as number:
                chunk(number * CHUNK, CHUNK)
        if count % CHUNK:
            chunk(count - count % CHUNK, count % CHUNK)
        with nest.serial(width, "c") as c:
            out.store(row * inner + first + c, total[c])
