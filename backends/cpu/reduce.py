"""Reductions: maxima in any order, float sums in the one order of `sqcompile.ops.reduce`."""

from collections.abc import Callable, Sequence
from math import prod

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.quantize import inverse
from sqcompile.backends.cpu.sweep import broadcast, contiguous, merge, rows
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.ops.reduce import CHUNK

SLICES = 64
"""Parts of the first reduced axis that threads take when few results are kept."""
COLUMNS = 64
"""Results that one task of a column sum keeps in registers and cache."""


@KERNELS.kernel("sq::absmax")
def absmax(spec: KernelSpec) -> object:
    """Maximum of the bits without the sign, as int32: exact in any order.

    Parallel over the kept axes, or over slices of the first axis into partial maxima when those
    are few; loops follow memory, so the innermost one is contiguous.
    """
    axes = spec["axes"]
    with nest.function(spec) as f:
        x, outer, (out,) = f["x"], f.get("outer"), f.outputs

        def magnitude(at: list[Expr]) -> Expr:
            value = x[at[0]] if outer is None else x[at[0]] * inverse(outer[at[1]])
            bits = nest.bits_of(value, "int32")
            return tirx.bitwise_and(bits, nest.const(0x7FFFFFFF, "int32"))

        kept = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        read = [contiguous(x.shape)]
        if outer is not None:
            read.append(broadcast(x.shape, outer.shape))
        _maxima(x.shape, kept, read, magnitude, out)
    return f.result


def _maxima(
    shape: Sequence[int],
    kept: Sequence[int],
    read: list[list[int]],
    magnitude: Callable[[list[Expr]], Expr],
    out: Array,
) -> None:
    extents, steps = merge(shape, [*read, broadcast(shape, kept)])
    *read, into = steps
    reduced = [step == 0 for step in into]
    head = extents[0]
    if prod(extents) < nest.PARALLEL_WORK or not reduced[0]:
        _maxima_of(extents, read, into, magnitude, out)
        return
    slices = min(SLICES, head)
    partial = nest.scratch(slices * out.size, "int32")
    with nest.parallel(slices, prod(extents), "slice") as part:
        begin = tirx.floordiv(part * head, slices)
        count = tirx.floordiv((part + 1) * head, slices) - begin
        base = part * out.size
        with nest.serial(out.size, "clear") as i:
            partial.store(base + i, nest.zero("int32"))
        with nest.serial(count, "first") as first:
            starts = [(begin + first) * s[0] for s in read]
            with nest.loops(extents[1:]) as inner:
                at = [nest.linear(inner, s[1:], b) for s, b in zip(read, starts, strict=True)]
                index = base + nest.linear(inner, into[1:])
                partial.store(index, tirx.max(partial[index], magnitude(at)))
    with nest.serial(out.size, "o") as o:
        best = nest.scratch(1, "int32")
        best.store(0, nest.zero("int32"))
        with nest.serial(slices, "slice") as part:
            best.store(0, tirx.max(best[0], partial[part * out.size + o]))
        out.store(o, nest.bits_of(best[0], "float32"))


def _maxima_of(
    extents: list[int],
    read: list[list[int]],
    into: list[int],
    magnitude: Callable[[list[Expr]], Expr],
    out: Array,
) -> None:
    """Parallel over the leading kept axes; everything inside runs in memory order."""
    split = 0
    while split < len(into) and into[split]:
        split += 1
    inner_size = prod([n for n, step in zip(extents[split:], into[split:], strict=True) if step])
    with rows(extents[:split], [*(s[:split] for s in read), into[:split]], prod(extents)) as starts:
        *starts, place = starts
        best = nest.scratch(inner_size, "int32")
        with nest.serial(inner_size, "clear") as i:
            best.store(i, nest.zero("int32"))
        with nest.loops(extents[split:]) as inner:
            at = [nest.linear(inner, s[split:], b) for s, b in zip(read, starts, strict=True)]
            index = nest.linear(inner, into[split:])
            best.store(index, tirx.max(best[index], magnitude(at)))
        with nest.serial(inner_size, "o") as o:
            out.store(place + o, nest.bits_of(best[o], "float32"))


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
