"""Elementwise loops over broadcast operands: neighbouring axes merged, rows shared by threads."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Expr
from sqcompile.backends.strides import broadcast, contiguous, merge, refined
from sqcompile.walks import Walk

__all__ = [
    "ENOUGH_TASKS",
    "broadcast",
    "contiguous",
    "in_runs",
    "in_vectors",
    "in_whole_vectors",
    "merge",
    "refined",
    "rows",
    "sweep",
]

ENOUGH_TASKS = 64
"""Outer axes are fused until there are this many parallel iterations."""


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
