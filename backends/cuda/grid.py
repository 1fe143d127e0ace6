"""Grids of threads: a thin layer over TVM's IR builder in which every CUDA kernel is written.

A kernel is a sequence of launches, each a device function of its own, which the host function calls
in order: what one launch writes the next one reads. Tensors are flat, as in the CPU's kernels, and
a launch has a thread for every item of a flat index space (`each`), or a team of neighbouring
threads (`teams`) which reduce by shuffles. Neighbouring threads take neighbouring items, so that
a warp reads whole lines of memory.

Items and elements are counted in int32, so a tensor or a workspace has MOST_ELEMENTS at most.
Threads beyond the last item do nothing, but for those of a team: a shuffle wants its whole warp, so
they do what the last team does and store nothing. Values are kept in `slots` of a thread's own:
an expression is evaluated wherever it stands, and TVM's simplifier is not IEEE arithmetic but does
not look into memory. A product that feeds a sum is named by `fence`: it is never contracted.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from sqcompile.backends.builder import (
    Array,
    Expr,
    Function,
    bits_of,
    cast,
    const,
    dtype_of,
    function,
    linear,
    loops,
    select,
    serial,
    unravel,
    viewed,
    when,
    zero,
)
from sqcompile.backends.exact import fence, literal
from sqcompile.backends.kernels import TensorSpec
from sqcompile.errors import UnsupportedOpError
from sqcompile.walks import Walk

__all__ = [
    "MOST_ELEMENTS",
    "THREADS",
    "VECTOR",
    "WARP",
    "Array",
    "Expr",
    "Function",
    "Team",
    "all_of",
    "anywhere",
    "at",
    "barrier",
    "bits_of",
    "cast",
    "const",
    "dtype_of",
    "each",
    "fence",
    "function",
    "keep",
    "launch",
    "linear",
    "literal",
    "load",
    "loops",
    "place",
    "select",
    "serial",
    "shared",
    "slots",
    "store",
    "teams",
    "too_large",
    "unravel",
    "unrolled",
    "viewed",
    "when",
    "workspace",
    "zero",
]

WARP = 32
"""Threads that run together and exchange values."""
THREADS = 256
"""Threads of a block, at most."""
TEAM_THREADS = 128
"""Threads of a block of teams."""
VECTOR = 4
"""Elements of a vector load or store: 16 bytes of float32. Tensors begin at multiples of that."""
MOST_ELEMENTS = 2**31 - 2**20
"""Elements of a tensor: int32 counts them, and the threads of a block beyond the last one."""
_EVERY_LANE = 0xFFFFFFFF


@contextmanager
def launch(blocks: int, threads: int) -> Iterator[tuple[Expr, Expr]]:
    """One device function on `blocks` of `threads`: the numbers of the block and of the thread in
    it. Statements outside of launches run on the host."""
    with (
        T.launch_thread("blockIdx.x", blocks) as block,
        T.launch_thread("threadIdx.x", threads) as thread,
    ):
        yield block, thread


def each(count: int, emit: Callable[[Expr], None], threads: int = THREADS) -> None:
    """A launch with a thread for each of `count` items: emit(item)."""
    if not count:
        return
    threads = min(threads, -(-count // WARP) * WARP)
    with launch(-(-count // threads), threads) as (block, thread):
        item = block * threads + thread
        with ExitStack() as stack:
            if count % threads:
                stack.enter_context(when(item < count))
            emit(item)


@dataclass(frozen=True)
class Team:
    """Neighbouring threads at one item: `lane` counts them, `width` is a power of two up to WARP.
    Stores of the item's results stand in `owning`, of one thread in `first`."""

    lane: Expr
    width: int
    owns: Expr | None

    @contextmanager
    def owning(self) -> Iterator[None]:
        """Only where the item is there."""
        with ExitStack() as stack:
            if self.owns is not None:
                stack.enter_context(when(self.owns))
            yield

    @contextmanager
    def first(self) -> Iterator[None]:
        """Only in lane 0, where the item is there."""
        with self.owning(), when(tirx.EQ(self.lane, zero("int32"))):
            yield

    def along(self, count: Expr, emit: Callable[[Expr], None], start: Expr = 0) -> None:
        """emit(k) for start + lane, and every `width` from there on, below `count`."""
        left = count - start - self.lane + (self.width - 1)
        with serial(tirx.floordiv(left, self.width), "k") as k:
            emit(start + k * self.width + self.lane)

    def joined(self, value: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
        """The values of all lanes, in every lane: lane i with lane i + width / 2, then halving.
        `combine` is commutative."""
        held = keep(value)
        distance = self.width // 2
        while distance:
            other = keep(self._from(held, distance))
            held = keep(combine(held, other))
            distance //= 2
        return held

    def _from(self, value: Expr, distance: int) -> Expr:
        """The value of the lane whose number differs in the bit `distance`."""
        return tirx.call_intrin(
            dtype_of(value),
            "tirx.tvm_warp_shuffle_xor",
            const(_EVERY_LANE, "uint32"),
            value,
            const(distance, "int32"),
            const(WARP, "int32"),
            const(WARP, "int32"),
        )


def teams(count: int, width: int, emit: Callable[[Expr, Team], None]) -> None:
    """A launch with a team of `width` threads for each of `count` items: emit(item, team)."""
    if not count:
        return
    together = min(TEAM_THREADS // width, -(-count * width // WARP) * WARP // width)
    with launch(-(-count // together), together * width) as (block, thread):
        lane = tirx.floormod(thread, width)
        item = block * together + tirx.floordiv(thread, width)
        if count % together:
            owns = keep(item < count)
            item = tirx.min(item, const(count - 1, "int32"))
            emit(item, Team(lane, width, owns))
        else:
            emit(item, Team(lane, width, None))


@contextmanager
def unrolled(count: int, name: str = "u") -> Iterator[Expr]:
    """A loop that NVRTC unrolls: what is read and written at its index may be in registers."""
    kept = {"pragma_unroll_explicit": False}
    with T.unroll(0, count, annotations=kept) as index:
        IRBuilder.name(name, index)
        yield index


def slots(size: int, dtype: str) -> Array:
    """Uninitialised memory of one thread: registers where its indices are constants. Of truth
    values, bytes."""
    buffer = T.alloc_buffer((max(size, 1),), "uint8" if dtype == "bool" else dtype, scope="local")
    return Slots(buffer, TensorSpec((size,), dtype))


class Slots(Array):
    """Slots of a thread."""

    def __getitem__(self, index: Expr) -> Expr:
        value = self.buffer[index]
        return tirx.NE(value, zero("uint8")) if self.dtype == "bool" else value

    def store(self, index: Expr, value: Expr) -> None:
        """Keep a value."""
        super().store(index, cast(value, "uint8") if self.dtype == "bool" else value)


def keep(value: Expr) -> Expr:
    """A value computed here, in a register; the result may stand anywhere after."""
    held = slots(1, dtype_of(value))
    held.store(0, value)
    return held[0]


def at(array: Array, index: Expr) -> Expr:
    """The element at a row-major index of a tensor, which may lie along a walk in another."""
    return array[place(array.walk, index)]


def place(walk: Walk, index: Expr) -> Expr:
    """Where the element at a row-major index lies."""
    if walk.in_order:
        return index + walk.begin if walk.begin else index
    return linear(unravel(index, walk.extents), walk.strides, walk.begin)


def anywhere(walk: Walk) -> bool:
    """A thread reads an element along any walk."""
    return True


def shared(size: int, dtype: str) -> Array:
    """Uninitialised memory of a block. What one thread writes and another reads wants a `barrier`
    between."""
    return Array(T.alloc_buffer((size,), dtype, scope="shared"), TensorSpec((size,), dtype))


def barrier() -> None:
    """Every thread of a block comes here before one goes on; all must."""
    T.evaluate(tirx.call_intrin("void", "tirx.tvm_storage_sync", "shared"))


def too_large(what: str, size: int) -> str:
    """What is told of a tensor or a workspace that has more than MOST_ELEMENTS."""
    return (
        f"{what} has {size} elements; kernels for a GPU count to {MOST_ELEMENTS}: "
        "take a smaller batch"
    )


def workspace(size: int, dtype: str) -> Array:
    """Uninitialised memory of the device between the launches of one kernel. Raises
    UnsupportedOpError for more than MOST_ELEMENTS."""
    if size > MOST_ELEMENTS:
        raise UnsupportedOpError(too_large(f"a kernel's workspace of {dtype}", size))
    return Array(T.alloc_buffer((max(size, 1),), dtype), TensorSpec((size,), dtype))


def _as_bytes(array: Array) -> Any:
    """The buffer for vector accesses: TVM takes a vector of bool for one of 16-bit numbers."""
    if array.dtype != "bool" or isinstance(array, Slots):
        return array.buffer
    shape = (max(array.buffer.shape[0], 1),)
    return T.decl_buffer(shape, "uint8", data=array.buffer.data, align=1)


def load(array: Array, index: Expr, into: Array, start: Expr, lanes: int = VECTOR) -> None:
    """Read a vector, which begins at a multiple of its size, into slots from `start` on."""
    value = _as_bytes(array)[tirx.Ramp(index, 1, lanes)]
    T.buffer_store(_as_bytes(into), value, [tirx.Ramp(start, 1, lanes)])


def store(array: Array, index: Expr, held: Array, start: int, lanes: int = VECTOR) -> None:
    """Write a vector, which begins at a multiple of its size, from slots."""
    load(held, start, array, index, lanes)


def all_of(conditions: Sequence[Expr]) -> Expr:
    """Whether all conditions hold; true without any."""
    held: Any = None
    for condition in conditions:
        held = condition if held is None else tirx.And(held, condition)
    return tirx.const(True, "bool") if held is None else held
