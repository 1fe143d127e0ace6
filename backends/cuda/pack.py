"""Packing: two 4-bit values to a byte, eight truth values to a byte. A thread writes a byte, or
reads one for an element: neighbouring threads share it in the cache."""

from collections.abc import Callable

from tvm import tirx

from sqcompile.backends.cuda import grid
from sqcompile.backends.cuda.grid import Array, Expr
from sqcompile.backends.cuda.table import KERNELS
from sqcompile.backends.kernels import KernelSpec

Value = Callable[[Expr], Expr]
"""value(index) of an element."""


def bit(packed: Array, index: Expr) -> Expr:
    """Element `index` of a packed mask."""
    byte = grid.cast(packed[tirx.floordiv(index, 8)], "int32")
    shifted = tirx.shift_right(byte, tirx.floormod(index, 8))
    return tirx.NE(tirx.bitwise_and(shifted, grid.const(1, "int32")), grid.zero("int32"))


def nibble(packed: Array, index: Expr, signed: bool) -> Expr:
    """Element `index` of packed 4-bit values, as int32."""
    byte = grid.cast(packed[tirx.floordiv(index, 2)], "int32")
    shifted = tirx.shift_right(byte, tirx.floormod(index, 2) * 4)
    value = tirx.bitwise_and(shifted, grid.const(15, "int32"))
    if not signed:
        return value
    # The sign bit by xor: TVM takes shifted bits that overflow for a product that cannot.
    eight = grid.const(8, "int32")
    return tirx.bitwise_xor(value, eight) - eight


def gathered(count: Expr, first: Expr, width: int, value: Value) -> Expr:
    """A byte of 8 / width values of `width` bits: value(index) as int32 in its lowest bits, for
    `first` and those after it below `count`; zeros else. To be stored at once."""
    byte = grid.slots(1, "int32")
    byte.store(0, grid.zero("int32"))
    for place in range(8 // width):
        with grid.when(first + place < count):
            moved = tirx.shift_left(value(first + place), grid.const(place * width, "int32"))
            byte.store(0, tirx.bitwise_or(byte[0], moved))
    return grid.cast(byte[0], "uint8")


def store_nibbles(out: Array, count: int, value: Value) -> None:
    """A launch that packs `count` values: value(index) as int32."""

    def low(index: Expr) -> Expr:
        return tirx.bitwise_and(value(index), grid.const(15, "int32"))

    grid.each(out.size, lambda i: out.store(i, gathered(count, i * 2, 4, low)))


def store_bits(out: Array, count: int, value: Value) -> None:
    """A launch that packs `count` truth values: value(index) as bool."""

    def low(index: Expr) -> Expr:
        return grid.cast(value(index), "int32")

    grid.each(out.size, lambda i: out.store(i, gathered(count, i * 8, 1, low)))


@KERNELS.kernel("sq::pack_int4")
def pack_int4(spec: KernelSpec) -> object:
    """A thread for a byte."""
    with grid.function(spec) as f:
        q, (out,) = f["q"], f.outputs
        store_nibbles(out, q.size, lambda i: grid.cast(q[i], "int32"))
    return f.result


@KERNELS.kernel("sq::pack_mask")
def pack_mask(spec: KernelSpec) -> object:
    """A thread for a byte."""
    with grid.function(spec) as f:
        mask, (out,) = f["mask"], f.outputs
        store_bits(out, mask.size, lambda i: mask[i])
    return f.result


@KERNELS.kernel("sq::unpack_int4")
def unpack_int4(spec: KernelSpec) -> object:
    """A thread for an element."""
    with grid.function(spec) as f:
        packed, (out,) = f["packed"], f.outputs
        signed = spec["signed"]
        grid.each(out.size, lambda i: out.store(i, grid.cast(nibble(packed, i, signed), out.dtype)))
    return f.result


@KERNELS.kernel("sq::unpack_mask")
def unpack_mask(spec: KernelSpec) -> object:
    """A thread for an element."""
    with grid.function(spec) as f:
        packed, (out,) = f["packed"], f.outputs
        grid.each(out.size, lambda i: out.store(i, bit(packed, i)))
    return f.result
