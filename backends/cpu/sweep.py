"""Elementwise loops over broadcast operands: neighbouring axes merged, rows shared by threads."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.walks import Walk, common_axes, split_strides

ENOUGH_TASKS = 64
"""Outer axes are fused until there are this many parallel iterations."""


def contiguous(shape: Sequence[int]) -> list[int]:
    """Row-major strides."""
    return [prod(shape[axis + 1 :]) for axis in range(len(shape))]


def broadcast(shape: Sequence[int], operand: Sequence[int]) -> list[int]:
    """Strides with which a contiguous tensor of shape `operand` is read as `shape`."""
    missing = len(shape) - len(operand)
    own = contiguous(operand)
    return [
        0 if axis < missing or operand[axis - missing] == 1 else own[axis - missing]
        for axis in range(len(shape))
    ]


def refined(array: Array, *shapes: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """(extents, strides): an array's elements in order, in memory and in row-major tensors of its
    shape or broadcast to it, which have `shapes`."""
    extents = common_axes([array.shape, array.walk.extents])
    assert extents is not None
    own = split_strides(array.walk.extents, array.walk.strides, extents)
    others = [split_strides(array.shape, broadcast(array.shape, one), extents) for one in shapes]
    return extents, [own, *others]


def merge(
    extents: Sequence[int], strides: Sequence[Sequence[int]]
) -> tuple[list[int], list[list[int]]]:
    """Fuse neighbouring axes that every operand walks as one; drop axes of size 1.

    Returns at least one axis.
    """
    merged: list[int] = []
    kept: list[list[int]] = [[] for _ in strides]
    for axis, extent in enumerate(extents):
        if extent == 1:
            continue
        if merged and all(k[-1] == s[axis] * extent for k, s in zip(kept, strides, strict=True)):
            merged[-1] *= extent
            for k, s in zip(kept, strides, strict=True):
                k[-1] = s[axis]
        else:
            merged.append(extent)
            for k, s in zip(kept, strides, strict=True):
                k.append(s[axis])
    return (merged, kept) if merged else ([1], [[0] for _ in strides])


def in_runs(walk: Walk) -> bool:
    """Whether vectors can be read along a walk."""
    return walk.run >= nest.LANES


def in_whole_vectors(walk: Walk) -> bool:
    """Whether it falls into vectors."""
    return walk.run % nest.LANES == 0


@contextmanager
def rows(
    extents: Sequence[int], strides: Sequence[Sequence[int]], work: int
) -> Iterator[list[Expr]]:
    """Loops over all `extents`, in parallel over the first ones; gives each operand's offset."""
    split = 0
    while split < len(extents) and prod(extents[:split]) < ENOUGH_TASKS:
        split += 1
    with ExitStack() as stack:
        outer: list[Expr] = []
        if split:
            task = stack.enter_context(nest.parallel(prod(extents[:split]), work, "task"))
            outer = nest.unravel(task, extents[:split])
        inner = stack.enter_context(nest.loops(extents[split:]))
        yield [nest.linear([*outer, *inner], s) for s in strides]


def sweep(
    extents: Sequence[int],
    strides: Sequence[Sequence[int]],
    emit: Callable[[list[Expr]], None],
    explicit: bool = False,
) -> None:
    """Call emit(offset of each operand) for every element; in vectors of LANES when `explicit`
    (see nest.fence), in loops that LLVM vectorises otherwise.

    Parallel over the outer axes, or over chunks of CHUNK elements when there is only one axis.
    """
    work = prod(extents)
    if not work:
        return
    merged, steps = merge(extents, strides)
    *outer, inner = merged
    heads, last = [s[:-1] for s in steps], [s[-1] for s in steps]

    def run(starts: list[Expr], begin: Expr, count: Expr) -> None:
        def one(index: Expr) -> None:
            emit([nest.linear([index], [s], start) for start, s in zip(starts, last, strict=True)])

        if explicit:
            nest.vectors(count, one, begin)
        else:
            with nest.serial(count, "e") as e:
                one(begin + e)

    if outer:
        with rows(outer, heads, work) as starts:
            run(starts, 0, inner)
    elif inner <= nest.CHUNK:
        run([0] * len(steps), 0, inner)
    else:
        chunks = -(-inner // nest.CHUNK)
        with nest.parallel(chunks, work, "chunk") as chunk:
            begin = chunk * nest.CHUNK
            count: Expr = nest.CHUNK
            if inner % nest.CHUNK:
                count = tirx.min(nest.CHUNK, inner - begin)
            run([0] * len(steps), begin, count)


def in_vectors(count: int, emit: Callable[[Expr, int], None], most: int = nest.LANES) -> None:
    """emit(first index, lanes) for vectors that cover 0..count-1; the last one overlaps the one
    before where `count` is no multiple, so that nothing runs scalar. For stores that may repeat."""
    if not count:
        return
    lanes = min(most, 1 << (count.bit_length() - 1))
    with nest.serial(count // lanes, "v") as v:
        emit(v * lanes, lanes)
    if count % lanes:
        emit(count - lanes, lanes)
