"""Loop nests: a thin layer over TVM's IR builder in which every CPU kernel is written.

Tensors are flat: a kernel computes its own row-major offsets, so that one loop serves any rank.
A kernel with a product that feeds a sum puts `fence` on the product, because LLVM contracts the
two into one rounding otherwise, and runs in `lanes` loops, because a fence in a scalar loop
keeps LLVM from vectorising it. TVM's simplifier turns (x + y) - y into x, floats included: no
kernel writes that.
"""

import builtins
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any

from tvm import DataType, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from sqcompile.backends.kernels import KernelSpec, TensorSpec, ViewSpec
from sqcompile.walks import Walk

LANES = 16
"""Elements of an explicit vector: one AVX-512 register of float32, or several smaller ones."""
PARALLEL_WORK = 1 << 14
"""Element operations below which waking the thread pool (a few microseconds) does not pay."""
CHUNK = 4096
"""Elements of a flat loop that one parallel iteration takes."""

STACK = 1024
"""Bytes from which on scratch memory is a workspace of the runtime instead of a stack slot."""

SCALARS = "scalars"
"""Name of the vector that holds a kernel's run-time scalars."""

Expr = Any


class Array:
    """A tensor seen as a row-major vector: `a[i]` reads, `a.store(i, v)` writes. Of a tensor that
    lies in another (ViewSpec), the other is seen: `walk` tells how to go."""

    def __init__(self, buffer: Any, spec: TensorSpec) -> None:
        self.buffer = buffer
        self.spec = spec
        self.shape, self.dtype, self.size = spec.shape, spec.dtype, spec.size
        self.walk = spec.walk if isinstance(spec, ViewSpec) else Walk.whole(spec.shape)

    def __getitem__(self, index: Expr) -> Expr:
        return self.buffer[index]

    def store(self, index: Expr, value: Expr) -> None:
        """Write one element, or a vector when `index` is a ramp."""
        T.buffer_store(self.buffer, value, [index])


class Function:
    """The kernel under construction: its tensors by name, its outputs, its scalars, its result."""

    def __init__(self) -> None:
        self.tensors: dict[str, Array] = {}
        self.outputs: list[Array] = []
        self.scalars: dict[str, Expr] = {}
        self.result: Any = None

    def __getitem__(self, name: str) -> Array:
        return self.tensors[name]

    def get(self, name: str) -> Array | None:
        """The tensor called `name`, None when the op was called without it."""
        return self.tensors.get(name)

    def list(self, name: str) -> list[Array]:
        """The tensors of the list argument `name`."""
        found: builtins.list[Array] = []
        while f"{name}_{len(found)}" in self.tensors:
            found.append(self.tensors[f"{name}_{len(found)}"])
        return found


@contextmanager
def function(spec: KernelSpec, scalars: Sequence[str] = ()) -> Iterator[Function]:
    """Build the PrimFunc of `spec`: inputs, the values of `scalars` as one int64 vector if there
    are any, outputs. `.result` holds it."""
    made = Function()
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        named = list(spec.tensors())
        if scalars:
            named.append((SCALARS, TensorSpec((len(scalars),), "int64")))
        named += [(f"out_{i}", out) for i, out in enumerate(spec.outputs)]
        roots = [one.root if isinstance(one, ViewSpec) else one for _, one in named]
        shaped = [
            T.arg(name, T.buffer(root.shape, root.dtype, align=1))
            for (name, _), root in zip(named, roots, strict=True)
        ]
        arrays = [_flat(buffer, one) for buffer, (_, one) in zip(shaped, named, strict=True)]
        count = len(named) - len(spec.outputs)
        made.tensors = {name: a for (name, _), a in zip(named[:count], arrays, strict=False)}
        made.outputs = arrays[count:]
        made.scalars = {name: made[SCALARS][i] for i, name in enumerate(scalars)}
        yield made
        T.evaluate(tirx.const(0, "int32"))
    made.result = builder.get()


def _flat(buffer: Any, spec: TensorSpec) -> Array:
    root = spec.root if isinstance(spec, ViewSpec) else spec
    flat = T.decl_buffer((max(root.size, 1),), root.dtype, data=buffer.data, align=1)
    return Array(flat, spec)


def viewed(array: Array, spec: TensorSpec) -> Array:
    """The memory of a tensor read and written as another dtype of the same size."""
    return _flat(array.buffer, spec)


def scratch(size: int, dtype: str) -> Array:
    """Uninitialised memory: a stack slot when small, a workspace of the runtime otherwise."""
    return Array(T.alloc_buffer((max(size, 1),), dtype), TensorSpec((size,), dtype))


def workspace(size: int, dtype: str) -> Array:
    """`scratch` of a kilobyte or more for computed indices. TVM narrows scratch to what its
    accesses touch, and takes long to find that it is all; it leaves a view alone."""
    spec = TensorSpec((size,), dtype)
    return _flat(T.alloc_buffer((size,), dtype), spec)


def prefetch(array: Array, index: Expr, write: bool = False) -> None:
    """Ask for the cache line of an element that will be read, or written."""
    address = tirx.address_of(array.buffer[index])
    how = [tirx.const(value, "int32") for value in (int(write), 3, 1)]
    T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", address, *how))


def const(value: float, dtype: str) -> Expr:
    """A constant; a float is rounded once to float32."""
    return tirx.const(value, dtype)


def literal(value: float) -> Expr:
    """A float32 constant out of a user's graph, safe in any expression.

    TVM simplifies x + 0.0 to x and x * 0.0 to 0.0, which is not IEEE arithmetic (-0.0, NaN); it
    does not look into memory, and LLVM, which does, is exact.
    """
    if value != 0.0:
        return const(value, "float32")
    held = scratch(1, "float32")
    held.store(0, const(value, "float32"))
    return held[0]


def zero(dtype: str) -> Expr:
    """The zero of a dtype."""
    return tirx.const(0, dtype)


def cast(value: Expr, dtype: str, lanes: int = 1) -> Expr:
    """value (of `lanes` lanes) as dtype; float to integer truncates."""
    return tirx.Cast(dtype if lanes == 1 else f"{dtype}x{lanes}", value)


def dtype_of(value: Expr) -> str:
    """The dtype of a scalar expression."""
    return str(value.ty.dtype)


def ramp(start: Expr, lanes: int = LANES) -> Expr:
    """The indices start, start + 1, ... of a vector."""
    return tirx.Ramp(start, 1, lanes)


def splat(value: Expr, lanes: int = LANES) -> Expr:
    """A scalar in every lane."""
    return tirx.Broadcast(value, lanes)


def bits_of(value: Expr, dtype: str) -> Expr:
    """The bits of a scalar read as another dtype of its width."""
    return tirx.reinterpret(dtype, value)


def bound(value: Expr) -> Expr:
    """The value of a load as a variable: an expression is loaded again wherever it stands.

    TVM puts integers that read no memory back where they stand: `kept` holds those.
    """
    return T.bind(value)


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


def fence(product: Expr, lanes: int = 1) -> Expr:
    """A float32 product (of `lanes` lanes) that LLVM must round before it adds something to it."""
    kind = "float32" if lanes == 1 else f"float32x{lanes}"
    return tirx.call_llvm_pure_intrin(kind, "llvm.arithmetic.fence", product)


def select(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """yes where condition, else no; both are evaluated."""
    return tirx.Select(condition, yes, no)


@contextmanager
def serial(extent: Expr, name: str = "i", start: Expr = 0) -> Iterator[Expr]:
    """for name in start..extent-1."""
    with T.serial(start, extent) as i:
        IRBuilder.name(name, i)
        yield i


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


@contextmanager
def when(condition: Expr) -> Iterator[None]:
    """if condition."""
    with T.If(condition), T.Then():
        yield


@contextmanager
def loops(extents: Sequence[int], name: str = "d") -> Iterator[list[Expr]]:
    """Nested serial loops, outermost first."""
    with ExitStack() as stack:
        yield [stack.enter_context(serial(n, f"{name}{i}")) for i, n in enumerate(extents)]


def linear(indices: Sequence[Expr], strides: Sequence[int], start: Expr = 0) -> Expr:
    """start + sum of index * stride."""
    total = start
    for index, stride in zip(indices, strides, strict=True):
        if stride:
            total = total + (index if stride == 1 else index * stride)
    return total


def unravel(index: Expr, extents: Sequence[int]) -> list[Expr]:
    """The coordinates of a row-major index."""
    coordinates = []
    for axis, extent in enumerate(extents):
        inner = prod(extents[axis + 1 :])
        quotient = tirx.floordiv(index, inner) if inner > 1 else index
        coordinates.append(tirx.floormod(quotient, extent) if axis else quotient)
    return coordinates


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
