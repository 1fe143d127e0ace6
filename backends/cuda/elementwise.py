"""Elementwise kernels, of one op or of a group: one pass over memory, see `passes`.

Operands that broadcast are read with the strides of the merged axes. Where no axis that one walks
otherwise is cut by a thread's elements, these are loaded at once.
"""

from collections.abc import Callable, Sequence
from math import prod

from sqcompile.backends.activations import ELEMENTS
from sqcompile.backends.cuda import grid, passes
from sqcompile.backends.cuda.grid import VECTOR, Array, Expr
from sqcompile.backends.cuda.pack import bit
from sqcompile.backends.cuda.passes import Bits, Element, Largest, Load, Stored
from sqcompile.backends.cuda.table import KERNELS
from sqcompile.backends.elements import ABSMAX, ENDINGS, PACK, UNPACK, Pass, Read, one_pass
from sqcompile.backends.fusion import Member
from sqcompile.backends.kernels import KernelSpec
from sqcompile.backends.strides import contiguous, merge


def run(one: Pass, size: int, outputs: Sequence[Array]) -> None:
    """All `size` elements of a pass, in one launch, and one more where something is measured."""
    walks = [contiguous(one.axes), *(read.strides for read in one.reads)]
    extents, (_, *steps) = merge(one.axes, walks)
    inner = extents[-1]
    straight = all(s[-1] in (0, 1) for s in steps)
    packs = any(spec.op == PACK for spec in one.results)
    lanes = next(
        (n for n in ((passes.BYTES,) if packs else (VECTOR,)) if straight and inner % n == 0), 1
    )
    assert lanes > 1 or not packs
    loads = [_load(read, extents, s) for read, s in zip(one.reads, steps, strict=True)]
    sinks = [
        _sink(spec, out, passes.threads_for(size, lanes))
        for spec, out in zip(one.results, outputs, strict=True)
    ]

    def start() -> Element:
        compute = one.start()
        return lambda index, given: compute(given, grid.keep)

    passes.one_launch(size, lanes, loads, sinks, start)


def _sink(spec: KernelSpec, out: Array, threads: int) -> Stored:
    if spec.op == PACK:
        return Bits(out)
    if spec.op == ABSMAX:
        return Largest(threads, lambda value: out.store(0, value))
    return Stored(out)


def _load(read: Read, extents: Sequence[int], steps: Sequence[int]) -> Load:
    """The elements of an operand for one thread."""

    def load(first: Expr, lanes: int) -> Callable[[int], Expr]:
        if read.packed:
            return lambda lane: bit(read.array, first + lane)
        place = grid.linear(grid.unravel(first, extents), steps)
        if lanes == 1 or not steps[-1]:
            held = grid.keep(read.array[place])
            return lambda lane: held
        return passes.along(read.array)(place, lanes)

    return load


def single(spec: KernelSpec) -> object:
    """One pass over memory."""
    with grid.function(spec) as f:
        inputs = [f[name] for name, _ in spec.tensors()]
        one = one_pass([Member(spec, tuple(range(len(inputs))))], inputs, [len(inputs)])
        run(one, spec.outputs[0].size, f.outputs)
    return f.result


@KERNELS.group
def group(spec: KernelSpec) -> object:
    """One pass over memory, whatever the number of ops."""
    with grid.function(spec) as f:
        inputs = [f[name] for name, _ in spec.tensors()]
        one = one_pass(spec["members"], inputs, spec["results"])
        run(one, prod(one.axes), f.outputs)
    return f.result


for _op, _element in ELEMENTS.items():
    if _op not in ENDINGS | {UNPACK}:
        KERNELS.elementwise(_op, limit=_element.limit)(single)


def _whole_bytes(shape: Sequence[int]) -> bool:
    return bool(shape) and shape[-1] % passes.BYTES == 0 and prod(shape) > 0


def _measures_all(spec: KernelSpec) -> bool:
    x = spec.tensor("x")
    return len(spec["axes"]) == len(x.shape) and x.size > 0 and spec.tensor("outer") is None


# These have kernels of their own; in a group they save a pass over memory.
KERNELS.joins(UNPACK, lambda spec: True)
KERNELS.ends(PACK, lambda spec: _whole_bytes(spec.tensor("mask").shape))
KERNELS.ends(ABSMAX, _measures_all)
