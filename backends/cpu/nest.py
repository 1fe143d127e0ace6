"""Loop nests: a thin layer over TVM's IR builder in which every CPU kernel is written.

Tensors are flat: a kernel computes its own row-major offsets, so that one loop serves any rank.
A kernel with a product that feeds a sum puts `fence` on the product, because LLVM contracts the
two into one rounding otherwise, and runs in `lanes` loops, because a fence in a scalar loop
keeps LLVM from vectorising it. TVM's simplifier turns (x + y) - y into x, floats included: no
kernel writes that.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import DataType, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from sqcompile.backends.builder import (
    SCALARS,
    Array,
    Expr,
    Function,
    bits_of,
    bound,
    cast,
    const,
    dtype_of,
    flat,
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

__all__ = [
    "Array",
    "CHUNK",
    "Expr",
    "Function",
    "LANES",
    "PARALLEL_WORK",
    "SCALARS",
    "STACK",
    "bits_of",
    "bound",
    "cast",
    "const",
    "dtype_of",
    "fence",
    "flat",
    "function",
    "kept",
    "lanes",
    "linear",
    "literal",
    "loops",
    "parallel",
    "prefetch",
    "ramp",
    "scratch",
    "select",
    "serial",
    "splat",
    "unravel",
    "vectors",
    "viewed",
    "when",
    "workspace",
    "zero",
]

LANES = 16
"""Elements of an explicit vector: one AVX-512 register of float32, or several smaller ones."""

PARALLEL_WORK = 1 << 14
"""Element operations below which waking the thread pool (a few microseconds) does not pay."""

CHUNK = 4096
"""Elements of a flat loop that one parallel iteration takes."""

STACK = 1024
"""Bytes from which on scratch memory is a workspace of the runtime instead of a stack slot."""


def scratch(size: int, dtype: str) -> Array:
    """Uninitialised memory: a stack slot when small, a workspace of the runtime otherwise."""
    return Array(T.alloc_buffer((max(size, 1),), dtype), TensorSpec((size,), dtype))


def workspace(size: int, dtype: str) -> Array:
    """`scratch` of a kilobyte or more for computed indices. TVM narrows scratch to what its
    accesses touch, and takes long to find that it is all; it leaves a view alone."""
    spec = TensorSpec((size,), dtype)
    return flat(T.alloc_buffer((size,), dtype), spec)


def prefetch(array: Array, index: Expr, write: bool = False) -> None:
    """Ask for the cache line of an element that will be read, or written."""
    address = tirx.address_of(array.buffer[index])
    how = [tirx.const(value, "int32") for value in (int(write), 3, 1)]
    T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", address, *how))


def ramp(start: Expr, lanes: int = LANES) -> Expr:
    """The indices start, start + 1, ... of a vector."""
    return tirx.Ramp(start, 1, lanes)


def splat(value: Expr, lanes: int = LANES) -> Expr:
    """A scalar in every lane."""
    return tirx.Broadcast(value, lanes)


def kept(values: Sequence[Expr], dtype: str, lanes: int) -> list[Expr]:
    """Vectors, each computed once, in registers if they fit: without it a tree in which values
    stand twice at every level is exponentially large."""
    size = DataType(dtype).bits // 8 * lanes
    most = (STACK - 1) // size
    found = []
    for first in range(0, len(values), most):
        part = values[first : first + most]
        slots = scratch(len(part) * lanes, dtype)
        for i, value in enumerate(part):
            slots.store(ramp(i * lanes, lanes), value)
        found += [slots[ramp(i * lanes, lanes)] for i in range(len(part))]
    return found


@contextmanager
def parallel(extent: int, work: int, name: str = "i") -> Iterator[Expr]:
    """A loop over `extent` tasks for the thread pool; serial when all of them together are less
    than PARALLEL_WORK element operations."""
    loop = T.parallel if extent > 1 and work >= PARALLEL_WORK else T.serial
    with loop(0, extent) as i:
        IRBuilder.name(name, i)
        yield i


@contextmanager
def lanes(name: str = "lane", count: int = LANES) -> Iterator[Expr]:
    """A loop over the elements of an explicit vector."""
    with T.vectorized(0, count) as i:
        IRBuilder.name(name, i)
        yield i


def vectors(extent: Expr, emit: Any, start: Expr = 0) -> None:
    """Call emit(index) in a loop of explicit vectors over start..start+extent-1, and once more in
    a scalar loop for the rest."""
    if isinstance(extent, int):
        whole = extent // LANES
        rest: Expr = extent % LANES
    else:
        whole, rest = tirx.floordiv(extent, LANES), None
    if not isinstance(whole, int) or whole:
        with serial(whole, "v") as v, lanes() as lane:
            emit(start + v * LANES + lane)
    if rest != 0:
        with serial(extent, "tail", whole * LANES) as i:
            emit(start + i)
