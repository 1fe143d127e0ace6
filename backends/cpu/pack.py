"""Packing of what backward keeps: nibbles and masks, byte by byte."""

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.sweep import sweep
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec


def _u8(value: int) -> Expr:
    return nest.const(value, "uint8")


def _or_all(parts: list[Expr]) -> Expr:
    joined = parts[0]
    for part in parts[1:]:
        joined = tirx.bitwise_or(joined, part)
    return joined


def _pack(source: Array, out: Array, per_byte: int) -> None:
    """out[i] = the low bits of source[per_byte * i ...], first element lowest; zeros at the end."""
    bits = 8 // per_byte

    def byte(start: Expr, count: int) -> Expr:
        elements = [nest.cast(source[start + k], "uint8") for k in range(count)]
        kept = [tirx.bitwise_and(e, _u8(2**bits - 1)) for e in elements]
        return _or_all([tirx.shift_left(e, _u8(bits * k)) if k else e for k, e in enumerate(kept)])

    whole, rest = divmod(source.size, per_byte)
    sweep([whole], [[1]], lambda at: out.store(at[0], byte(at[0] * per_byte, per_byte)))
    if rest:
        out.store(whole, byte(whole * per_byte, rest))


@KERNELS.kernel("sq::pack_int4")
def pack_int4(spec: KernelSpec) -> object:
    """Parallel over chunks of bytes."""
    with nest.function(spec) as f:
        _pack(f["q"], f.outputs[0], 2)
    return f.result


@KERNELS.kernel("sq::pack_mask")
def pack_mask(spec: KernelSpec) -> object:
    """Parallel over chunks of bytes."""
    with nest.function(spec) as f:
        _pack(f["mask"], f.outputs[0], 8)
    return f.result


@KERNELS.kernel("sq::unpack_int4")
def unpack_int4(spec: KernelSpec) -> object:
    """Parallel over chunks of bytes, two elements each."""
    with nest.function(spec) as f:
        packed, (q,) = f["packed"], f.outputs

        def store(index: Expr, nibble: Expr) -> None:
            if spec["signed"]:
                wide = nest.cast(nibble, "int8")
                sign = nest.const(8, "int8")
                nibble = tirx.bitwise_xor(wide, sign) - sign
            q.store(index, nibble)

        def low(at: list[Expr]) -> None:
            store(at[0] * 2, tirx.bitwise_and(packed[at[0]], _u8(0xF)))

        def both(at: list[Expr]) -> None:
            low(at)
            store(at[0] * 2 + 1, tirx.shift_right(packed[at[0]], _u8(4)))

        sweep([q.size // 2], [[1]], both)
        if q.size % 2:
            low([q.size // 2])
    return f.result


@KERNELS.kernel("sq::unpack_mask")
def unpack_mask(spec: KernelSpec) -> object:
    """Parallel over chunks of bytes, eight elements each."""
    with nest.function(spec) as f:
        packed, (mask,) = f["packed"], f.outputs

        def bits(index: Expr, count: int) -> None:
            for k in range(count):
                bit = tirx.bitwise_and(packed[index], _u8(1 << k))
                mask.store(index * 8 + k, bit != _u8(0))

        whole, rest = divmod(mask.size, 8)
        sweep([whole], [[1]], lambda at: bits(at[0], 8))
        if rest:
            bits(whole, rest)
    return f.result
