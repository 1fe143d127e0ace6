"""What the layers in which kernels are written have in common (`cpu/nest.py`, `cuda/grid.py`):
tensors as row-major vectors, the function under construction, expressions, serial loops.

Nothing here knows a target.
"""

import builtins
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from sqcompile.backends.exact import Expr, bits_of
from sqcompile.backends.kernels import KernelSpec, TensorSpec, ViewSpec
from sqcompile.walks import Walk

__all__ = [
    "Array",
    "Expr",
    "Function",
    "SCALARS",
    "bits_of",
    "bound",
    "cast",
    "const",
    "dtype_of",
    "flat",
    "function",
    "linear",
    "loops",
    "select",
    "serial",
    "unravel",
    "viewed",
    "when",
    "zero",
]

SCALARS = "scalars"
"""Name of the vector that holds a kernel's run-time scalars."""


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
        arrays = [flat(buffer, one) for buffer, (_, one) in zip(shaped, named, strict=True)]
        count = len(named) - len(spec.outputs)
        made.tensors = {name: a for (name, _), a in zip(named[:count], arrays, strict=False)}
        made.outputs = arrays[count:]
        made.scalars = {name: made[SCALARS][i] for i, name in enumerate(scalars)}
        yield made
        T.evaluate(tirx.const(0, "int32"))
    made.result = builder.get()


def flat(buffer: Any, spec: TensorSpec) -> Array:
    """The memory of a buffer seen as a tensor of `spec`."""
    root = spec.root if isinstance(spec, ViewSpec) else spec
    seen = T.decl_buffer((max(root.size, 1),), root.dtype, data=buffer.data, align=1)
    return Array(seen, spec)


def viewed(array: Array, spec: TensorSpec) -> Array:
    """The memory of a tensor read and written as another dtype of the same size."""
    return flat(array.buffer, spec)


def const(value: float, dtype: str) -> Expr:
    """A constant; a float is rounded once to float32."""
    return tirx.const(value, dtype)


def zero(dtype: str) -> Expr:
    """The zero of a dtype."""
    return tirx.const(0, dtype)


def cast(value: Expr, dtype: str, lanes: int = 1) -> Expr:
    """value (of `lanes` lanes) as dtype; float to integer truncates."""
    return tirx.Cast(dtype if lanes == 1 else f"{dtype}x{lanes}", value)


def dtype_of(value: Expr) -> str:
    """The dtype of a scalar expression."""
    return str(value.ty.dtype)


def bound(value: Expr) -> Expr:
    """The value of a load as a variable: an expression is loaded again wherever it stands.

    TVM puts integers that read no memory back where they stand: `kept` holds those.
    """
    return T.bind(value)


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
