"""Elementwise kernels, of one op or of a group: a thread for four elements in a row, or for one.

Where no axis that an operand walks otherwise is cut by a vector, a thread loads four elements of
every operand at once and stores four of every result.
"""

from collections.abc import Callable, Sequence

from sqcompile.backends.activations import ELEMENTS
from sqcompile.backends.cuda import grid
from sqcompile.backends.cuda.grid import VECTOR, Array, Expr
from sqcompile.backends.cuda.pack import bit
from sqcompile.backends.cuda.table import KERNELS
from sqcompile.backends.elements import ENDINGS, UNPACK, Pass, Read, one_pass
from sqcompile.backends.fusion import Member
from sqcompile.backends.kernels import KernelSpec
from sqcompile.backends.strides import contiguous, merge

ELEMENT_THREADS = 128
"""Threads of a block: each has four elements of every value of a group in registers."""


def run(one: Pass, outputs: Sequence[Array]) -> None:
    """All elements of a pass, in one launch."""
    walks = [contiguous(one.axes), *(read.strides for read in one.reads)]
    extents, (_, *steps) = merge(one.axes, walks)
    inner, size = extents[-1], outputs[0].size
    lanes = VECTOR if inner % VECTOR == 0 and all(s[-1] in (0, 1) for s in steps) else 1

    def emit(item: Expr) -> None:
        first, compute = item * lanes, one.start()
        at = grid.unravel(first, extents)
        loads = [
            _load(read, grid.linear(at, s), s[-1], lanes, first)
            for read, s in zip(one.reads, steps, strict=True)
        ]
        held = [grid.slots(lanes, out.dtype) for out in outputs]
        for lane in range(lanes):
            values = compute([load(lane) for load in loads], grid.keep)
            for slot, value in zip(held, values, strict=True):
                slot.store(lane, value)
        for out, slot in zip(outputs, held, strict=True):
            if lanes == 1:
                out.store(first, slot[0])
            else:
                out.store(grid.ramp(first), slot[grid.ramp(0)])

    grid.each(size // lanes, emit, ELEMENT_THREADS)


def _load(read: Read, place: Expr, step: int, lanes: int, first: Expr) -> Callable[[int], Expr]:
    """The elements of an operand for one thread, by lane."""
    if read.packed:
        return lambda lane: bit(read.array, first + lane)
    if lanes == 1 or not step:
        held = grid.keep(read.array[place])
        return lambda lane: held
    vector = grid.slots(lanes, read.array.dtype)
    vector.store(grid.ramp(0), read.array[grid.ramp(place)])
    return lambda lane: vector[lane]


def single(spec: KernelSpec) -> object:
    """One pass over memory."""
    with grid.function(spec) as f:
        inputs = [f[name] for name, _ in spec.tensors()]
        one = one_pass([Member(spec, tuple(range(len(inputs))))], inputs, [len(inputs)])
        run(one, f.outputs)
    return f.result


@KERNELS.group
def group(spec: KernelSpec) -> object:
    """One pass over memory, whatever the number of ops."""
    with grid.function(spec) as f:
        inputs = [f[name] for name, _ in spec.tensors()]
        run(one_pass(spec["members"], inputs, spec["results"]), f.outputs)
    return f.result


for _op, _element in ELEMENTS.items():
    if _op not in ENDINGS | {UNPACK}:
        KERNELS.elementwise(_op, limit=_element.limit)(single)

KERNELS.joins(UNPACK, lambda spec: True)
