"""16 values in vector registers -> the bytes of `pack_int4` and `pack_mask`, and masks back."""

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.machine import machine
from sqcompile.backends.cpu.nest import LANES, Array, Expr


def nibbles(values: Expr) -> Expr:
    """int32x16 -> uint8x8, the low 4 bits of two neighbours in a byte: 64-bit lanes hold both."""
    half = LANES // 2

    def same(value: int) -> Expr:
        return nest.splat(nest.const(value, "uint64"), half)

    pairs = tirx.reinterpret(f"uint64x{half}", values)
    first = tirx.bitwise_and(pairs, same(0xF))
    second = tirx.bitwise_and(tirx.shift_right(pairs, same(28)), same(0xF0))
    return nest.cast(tirx.bitwise_or(first, second), "uint8", half)


def mask_bytes(mask: Expr) -> Expr:
    """boolx16 -> uint8x2, the first element in the lowest bit."""
    if machine().dot.intrinsic.startswith("llvm.x86"):
        ones = nest.splat(nest.zero("int8")) - nest.cast(mask, "int8", LANES)
        # pmovmskb of SSE2; LLVM makes one instruction of it where masks have registers.
        word = tirx.call_llvm_pure_intrin("int32", "llvm.x86.sse2.pmovmskb.128", ones)
        return tirx.reinterpret("uint8x2", nest.cast(word, "uint16"))
    words = tirx.reinterpret("uint64x2", nest.cast(mask, "uint8", LANES))
    gathered = words * nest.splat(nest.const(0x0102040810204080, "uint64"), 2)
    top = tirx.shift_right(gathered, nest.splat(nest.const(56, "uint64"), 2))
    return nest.cast(top, "uint8", 2)


def mask_bits(packed: Array, index: Expr, lanes: int) -> Expr:
    """Elements index ... index + lanes - 1 of a mask of `pack_mask`, as truth values; `lanes` is a
    power of two up to 16. A vector begins with a byte, or in one at a multiple of `lanes`."""
    byte = tirx.floordiv(index, 8)
    word = nest.cast(packed[byte], "int32")
    if lanes > 8:
        upper = nest.cast(packed[byte + 1], "int32")
        word = tirx.bitwise_or(word, tirx.shift_left(upper, nest.const(8, "int32")))
    if lanes < 8:
        word = tirx.shift_right(word, nest.cast(tirx.floormod(index, 8), "int32"))
    if lanes == 1:
        return tirx.bitwise_and(word, nest.const(1, "int32")) > nest.zero("int32")
    ones = nest.splat(nest.const(1, "int32"), lanes)
    places = tirx.shift_left(ones, nest.ramp(nest.zero("int32"), lanes))
    bits = tirx.bitwise_and(nest.splat(word, lanes), places)
    return bits > nest.splat(nest.zero("int32"), lanes)
