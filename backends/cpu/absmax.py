"""Largest magnitudes: maxima of the bits without the sign, exact in any order and any overlap.

Because a maximum may count an element twice, the end of a row is one more vector that overlaps
the one before it, and the last task of a flat reduction overlaps its neighbour: no kernel has a
scalar tail but for rows shorter than a vector.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.rounding import inverse, magnitude
from sqcompile.backends.cpu.scaled import Scaled, hoisted
from sqcompile.backends.cpu.sweep import in_runs
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec

SLICES = 32
"""Parts of the first reduced axis that threads take, each with maxima of its own."""
SLICE_WORK = 16
"""Elements that a slice reads for each of its maxima, at least: they are cleared and combined."""
ROWS = 4
"""Rows that a column maximum reads together: it loads and stores its results once for them."""
VECTORS = 4
"""Independent maxima along a row: a maximum waits for the one before it."""

Store = Callable[[Expr, Expr], None]


@dataclass(frozen=True)
class Block:
    """Part of a merged tensor: coordinates of the leading heads, then extents of the others, the
    first of which starts at `begin`; always whole rows."""

    fixed: Sequence[Expr]
    extents: Sequence[Expr]
    begin: Expr = 0

    def fix(self, count: int, stack: ExitStack) -> "Block":
        """Loop over the first `count` extents; the block inside."""
        at = list(self.fixed)
        begin = self.begin
        for extent in self.extents[:count]:
            at.append(begin + stack.enter_context(nest.serial(extent, "h")))
            begin = 0
        return Block(at, self.extents[count:], begin)


def widest(scaled: Scaled, block: Block, start: Expr = 0, inner: int = 0) -> Expr:
    """The largest magnitude of a block (bits, int32), or of `inner` columns of it from `start`."""
    inner = inner or scaled.extents[-1]
    lanes = LANES if inner >= LANES else 1
    count = min(VECTORS, inner // lanes)
    sums = [nest.scratch(lanes, "int32") for _ in range(count)]
    place = nest.ramp(0, lanes) if lanes > 1 else 0
    zero = nest.zero("int32")
    for one in sums:
        one.store(place, nest.splat(zero, lanes) if lanes > 1 else zero)
    with ExitStack() as stack:
        heads = block.fix(len(block.extents), stack).fixed

        def take(column: Expr, index: int) -> None:
            found = magnitude(scaled.read(heads, start + column, lanes))
            sums[index].store(place, tirx.max(sums[index][place], found))

        whole = inner // (lanes * count)
        with nest.serial(whole, "v") as v:
            for index in range(count):
                take(v * (lanes * count) + index * lanes, index)
        done = whole * lanes * count
        for index in range(-(-(inner - done) // lanes)):
            take(min(done + index * lanes, inner - lanes), index)
    total = sums[0][place]
    for one in sums[1:]:
        total = tirx.max(total, one[place])
    if lanes == 1:
        return total
    return tirx.call_llvm_pure_intrin("int32", "llvm.vector.reduce.smax", total)


def column_maxima(scaled: Scaled, block: Block, best: Array, base: Expr) -> None:
    """best[base + c] = the largest magnitude (bits, int32) of column c and of what is there."""
    inner = scaled.extents[-1]
    lanes = LANES if inner >= LANES else 1

    def take(rows: Sequence[Sequence[Expr]], column: Expr) -> None:
        index = base + column
        place = nest.ramp(index, lanes) if lanes > 1 else index
        found = [magnitude(scaled.read(row, column, lanes)) for row in rows]
        while len(found) > 1:
            found = [tirx.max(*found[i : i + 2]) for i in range(0, len(found), 2)]
        best.store(place, tirx.max(best[place], found[0]))

    def across(rows: Sequence[Sequence[Expr]]) -> None:
        with nest.serial(inner // lanes, "v") as v:
            take(rows, v * lanes)
        if inner % lanes:
            take(rows, inner - lanes)

    with ExitStack() as stack:
        outer = block.fix(max(len(block.extents) - 1, 0), stack)
        if not outer.extents:
            across([outer.fixed])
            return
        (count,) = outer.extents
        whole = count // ROWS if isinstance(count, int) else tirx.floordiv(count, ROWS)
        with nest.serial(whole, "r") as r:
            first = outer.begin + r * ROWS
            across([[*outer.fixed, first + k] for k in range(ROWS)])
        if not isinstance(count, int) or count % ROWS:
            with nest.serial(count, "r", whole * ROWS) as r:
                across([[*outer.fixed, outer.begin + r]])


def maxima(scaled: Scaled, into: Sequence[int], size: int, store: Store) -> None:
    """store(index, largest magnitude as float32) for `size` results; `into` are the steps of a
    result along the merged axes.

    Parallel over the leading kept axes, or over slices of the first axis into maxima of their own.
    """
    extents = scaled.extents
    work = prod(extents)
    lead = next((axis for axis, step in enumerate(into) if not step), len(extents) - 1)
    lead = min(lead, len(extents) - 1)
    if lead:
        with nest.parallel(prod(extents[:lead]), work, "task") as task:
            at = nest.unravel(task, extents[:lead])
            block = Block(at, extents[lead:-1])
            _results(scaled, block, into, nest.linear(at, into[:lead]), store)
    elif work < nest.PARALLEL_WORK or into[0]:
        _results(scaled, Block([], extents[:-1]), into, 0, store)
    elif len(extents) == 1:
        _flat(scaled, store)
    else:
        slices = Slices(extents[0], size, work)

        def slice_of(begin: Expr, length: Expr, partial: Array, base: Expr) -> None:
            block = Block([], [length, *extents[1:-1]], begin)
            accumulate(scaled, block, into, partial, base)

        slices.run(slice_of)
        slices.combine((size, store))


def _results(scaled: Scaled, block: Block, into: Sequence[int], base: Expr, store: Store) -> None:
    """All results of a block, which nothing else adds to."""
    rest = list(into[len(block.fixed) :])
    if not any(rest):
        store(base, nest.bits_of(widest(scaled, block), "float32"))
        return
    kept = [n for n, step in zip([*block.extents, scaled.extents[-1]], rest, strict=True) if step]
    best = nest.scratch(prod(kept), "int32")
    clear(best, 0, prod(kept))
    accumulate(scaled, block, rest, best, 0)
    with nest.serial(prod(kept), "o") as o:
        store(base + o, nest.bits_of(best[o], "float32"))


def accumulate(scaled: Scaled, block: Block, into: Sequence[int], best: Array, base: Expr) -> None:
    """best[base + ...] = its maximum with the block's, which goes into it by the steps `into`."""
    *steps, inner = into
    middle = max((axis + 1 for axis, step in enumerate(steps) if step), default=0)
    with ExitStack() as stack:
        fixed = len(block.fixed)
        inside = block.fix(middle, stack)
        index = nest.linear(inside.fixed[fixed:], steps[:middle], base)
        if inner:
            column_maxima(scaled, inside, best, index)
        else:
            best.store(index, tirx.max(best[index], widest(scaled, inside)))


def clear(best: Array, base: Expr, size: int) -> None:
    """Zeros: no magnitude is smaller."""
    with nest.serial(size, "clear") as i:
        best.store(base + i, nest.zero("int32"))


class Slices:
    """Maxima of `size` results over slices of an axis of `extent`, for threads to fill; `work`
    elements in all, of which a slice has many times its results."""

    def __init__(self, extent: int, size: int, work: int) -> None:
        self.extent, self.size, self.work = extent, size, work
        self.count = max(min(SLICES, extent, work // (SLICE_WORK * size)), 1)
        self.stride = -(-size // LANES) * LANES
        self.partial = nest.scratch(self.count * self.stride, "int32")

    def run(self, emit: Callable[[Expr, Expr, Array, Expr], None]) -> None:
        """Call emit(first of the slice, its length, where its maxima go: array, base)."""
        with nest.parallel(self.count, self.work, "slice") as part:
            begin = tirx.floordiv(part * self.extent, self.count)
            length = tirx.floordiv((part + 1) * self.extent, self.count) - begin
            base = part * self.stride
            clear(self.partial, base, self.size)
            emit(begin, length, self.partial, base)

    def combine(self, *stores: tuple[int, Store]) -> None:
        """store(index, magnitude as float32) of the results, for (how many, store) in turn."""
        best = self.partial
        with nest.serial(self.count, "slice", 1) as part, nest.serial(self.size, "o") as o:
            best.store(o, tirx.max(best[o], best[part * self.stride + o]))
        first = 0
        for size, store in stores:
            with nest.serial(size, "o") as o:
                store(o, nest.bits_of(best[first + o], "float32"))
            first += size


def _flat(scaled: Scaled, store: Store) -> None:
    """Everything is reduced: tasks of CHUNK elements, the last one overlapping."""
    (size,) = scaled.extents
    tasks = -(-size // nest.CHUNK)
    partial = nest.scratch(tasks, "int32")
    with nest.parallel(tasks, size, "task") as task:
        start = tirx.min(task * nest.CHUNK, size - nest.CHUNK)
        partial.store(task, widest(scaled, Block([], []), start, nest.CHUNK))
    best = nest.scratch(1, "int32")
    clear(best, 0, 1)
    with nest.serial(tasks, "task") as task:
        best.store(0, tirx.max(best[0], partial[task]))
    store(0, nest.bits_of(best[0], "float32"))


@KERNELS.kernel("sq::absmax", views={"x": in_runs})
def absmax(spec: KernelSpec) -> object:
    """Bound by memory: one read of x, factors in scratch."""
    axes = spec["axes"]
    with nest.function(spec) as f:
        x, outer, (out,) = f["x"], f.get("outer"), f.outputs
        kept = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        divided = [] if outer is None else [(outer, inverse)]
        plain, factors, (into,) = hoisted(x, divided, kept)
        maxima(plain.times(*factors), into, out.size, out.store)
    return f.result
