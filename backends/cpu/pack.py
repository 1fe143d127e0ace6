"""Packing of what backward keeps: nibbles and masks, a vector of words at a time.

A word holds the elements that go into one byte: two bytes of nibbles in 16 bits, eight bytes of
truth values in 64. Shifts move their bits together, and narrowing the word leaves the byte;
unpacking goes the other way. So no byte is shuffled, on any CPU, and x86 words are little-endian
as the packed bytes are. What does not fill a vector goes byte by byte.
"""

from collections.abc import Callable

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.rounding import cast, same
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec, TensorSpec

BYTES = 64
"""Unpacked elements of a vector: one AVX-512 register, or several smaller ones."""
TASK = 1 << 14
"""Elements of a task."""


def _blocks(size: int, vector: Callable[[Expr], None], rest: Callable[[int, int], None]) -> None:
    """vector(first element) for every whole vector, then rest(first, count)."""
    whole = size // BYTES
    each = TASK // BYTES
    tasks = -(-whole // each)
    if whole:
        with nest.parallel(tasks, size, "task") as task:
            count = tirx.min(each, whole - task * each) if whole % each else each
            with nest.serial(count, "v") as v:
                vector((task * each + v) * BYTES)
    if size % BYTES:
        rest(whole * BYTES, size % BYTES)


def _and(value: Expr, mask: int, dtype: str) -> Expr:
    return tirx.bitwise_and(value, same(mask, dtype, value))


def _joined(value: Expr, shift: int, dtype: str) -> Expr:
    """value | value >> shift; | value << -shift when that is negative."""
    move = tirx.shift_right if shift > 0 else tirx.shift_left
    return tirx.bitwise_or(value, move(value, same(abs(shift), dtype, value)))


def _words(array: Array, first: Expr, dtype: str, per_word: int) -> Expr:
    """BYTES elements from `first` on as a vector of words."""
    return tirx.reinterpret(f"{dtype}x{BYTES // per_word}", array[nest.ramp(first, BYTES)])


def _pack(
    source: Array, out: Array, dtype: str, per_byte: int, byte_of: Callable[[Expr], Expr]
) -> None:
    """out[i] = the low bits of source[per_byte * i ...], first element lowest; zeros at the end."""
    bits = 8 // per_byte

    def vector(first: Expr) -> None:
        place = nest.ramp(tirx.floordiv(first, per_byte), BYTES // per_byte)
        out.store(place, cast(byte_of(_words(source, first, dtype, per_byte)), "uint8"))

    def rest(first: int, count: int) -> None:
        with nest.serial(-(-count // per_byte), "byte") as byte:
            held = nest.scratch(1, "uint8")
            held.store(0, nest.zero("uint8"))
            begin = byte * per_byte
            with nest.serial(tirx.min(per_byte, count - begin), "k") as k:
                kept = _and(cast(source[first + begin + k], "uint8"), 2**bits - 1, "uint8")
                moved = tirx.shift_left(kept, cast(k * bits, "uint8"))
                held.store(0, tirx.bitwise_or(held[0], moved))
            out.store(first // per_byte + byte, held[0])

    _blocks(source.size, vector, rest)


def _unpack(
    packed: Array,
    out: Array,
    dtype: str,
    per_byte: int,
    word_of: Callable[[Expr], Expr],
    element: Callable[[Expr], Expr],
) -> None:
    """out[i] = element(bits of packed, as out's dtype)."""
    bits = 8 // per_byte

    def vector(first: Expr) -> None:
        place = nest.ramp(tirx.floordiv(first, per_byte), BYTES // per_byte)
        words = word_of(cast(packed[place], dtype))
        spread = tirx.reinterpret(f"{out.dtype}x{BYTES}", words)
        out.store(nest.ramp(first, BYTES), element(spread))

    def rest(first: int, count: int) -> None:
        with nest.serial(count, "e") as e:
            byte = packed[first // per_byte + tirx.floordiv(e, per_byte)]
            moved = tirx.shift_right(byte, cast(tirx.floormod(e, per_byte) * bits, "uint8"))
            out.store(first + e, element(cast(_and(moved, 2**bits - 1, "uint8"), out.dtype)))

    _blocks(out.size, vector, rest)


def _bytes_of(mask: Array) -> Array:
    """A tensor of truth values as the bytes 0 and 1 that it is in memory."""
    return nest.viewed(mask, TensorSpec(mask.shape, "uint8"))


@KERNELS.kernel("sq::pack_int4")
def pack_int4(spec: KernelSpec) -> object:
    """Two elements a word."""

    def byte_of(word: Expr) -> Expr:
        high = tirx.shift_right(word, same(4, "uint16", word))
        return tirx.bitwise_or(_and(word, 0x0F, "uint16"), _and(high, 0xF0, "uint16"))

    with nest.function(spec) as f:
        _pack(f["q"], f.outputs[0], "uint16", 2, byte_of)
    return f.result


@KERNELS.kernel("sq::pack_mask")
def pack_mask(spec: KernelSpec) -> object:
    """Eight truth values a word: each step doubles the bits that lie together."""

    def byte_of(word: Expr) -> Expr:
        for shift in (7, 14, 28):
            word = _joined(word, shift, "uint64")
        return word

    with nest.function(spec) as f:
        _pack(_bytes_of(f["mask"]), f.outputs[0], "uint64", 8, byte_of)
    return f.result


@KERNELS.kernel("sq::unpack_int4")
def unpack_int4(spec: KernelSpec) -> object:
    """Two elements a word; a sign is the nibble's highest bit."""

    def word_of(byte: Expr) -> Expr:
        return _and(_joined(byte, -4, "uint16"), 0x0F0F, "uint16")

    def element(nibble: Expr) -> Expr:
        if not spec["signed"]:
            return nibble
        sign = same(8, "int8", nibble)
        return tirx.bitwise_xor(nibble, sign) - sign

    with nest.function(spec) as f:
        _unpack(f["packed"], f.outputs[0], "uint16", 2, word_of, element)
    return f.result


@KERNELS.kernel("sq::unpack_mask")
def unpack_mask(spec: KernelSpec) -> object:
    """Eight truth values a word: each step halves the bits that lie together."""

    def word_of(byte: Expr) -> Expr:
        for shift, mask in (
            (-28, 0x0000000F0000000F),
            (-14, 0x0003000300030003),
            (-7, 0x0101010101010101),
        ):
            byte = _and(_joined(byte, shift, "uint64"), mask, "uint64")
        return byte

    with nest.function(spec) as f:
        _unpack(f["packed"], _bytes_of(f.outputs[0]), "uint64", 8, word_of, lambda bit: bit)
    return f.result
