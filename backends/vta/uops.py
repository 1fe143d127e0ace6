"""Micro-ops: the indices of one tile operation, 32 bits that are loaded into a buffer."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.isa import Field, Instruction, Load, Nest, placed
from sqcompile.errors import EncodingError


class Uop(NamedTuple):
    """Indices of one tile operation. src is in INP for GEMM, in ACC for ALU."""

    dst: int
    src: int
    wgt: int = 0


def uop_layout(hardware: Hardware) -> tuple[Field, Field, Field]:
    """The fields of a micro-op's 32 bits."""
    acc, inp, wgt = (hardware.log_depth(m) for m in (Memory.ACC, Memory.INP, Memory.WGT))
    dst, src, weight = placed(0, [("dst", acc), ("src", max(acc, inp)), ("wgt", wgt)])
    return dst, src, weight


def encode_uops(hardware: Hardware, uops: Sequence[Uop] | NDArray[np.int64]) -> bytes:
    """The bytes of micro-ops, or of (n, 3) of dst, src, wgt; raises EncodingError for an index
    that does not fit."""
    table = np.asarray(uops, np.int64).reshape(-1, 3)
    words = np.zeros(len(table), np.int64)
    for field, column in zip(uop_layout(hardware), table.T, strict=True):
        wrong = np.flatnonzero((column < 0) | (column > field.range[1]))
        if wrong.size:
            number = int(wrong[0])
            raise EncodingError(
                f"micro-op {number}: {field.name} = {int(column[number])} is not in "
                f"0..{field.range[1]} on {hardware.name}"
            )
        words |= column << field.low
    return words.astype("<u4").tobytes()


def decode_uops(hardware: Hardware, words: NDArray[np.uint32]) -> NDArray[np.int64]:
    """(n,) words -> (n, 3) of dst, src, wgt. Bits above the fields are not looked at, as in C."""
    wide = words.astype(np.int64)
    columns = [wide >> field.low & field.range[1] for field in uop_layout(hardware)]
    return np.stack(columns, axis=-1)


def uops_of(hardware: Hardware, instruction: Instruction, dram: bytes) -> Iterable[tuple[int, Uop]]:
    """(place, micro-op) of those that a load takes from a DRAM image, none for another
    instruction; padding and what is outside the image are left out."""
    if not isinstance(instruction, Load) or instruction.memory is not Memory.UOP:
        return
    above, _, left, right = instruction.pads
    columns = left + instruction.x_size + right
    for y in range(instruction.y_size):
        start = 4 * (instruction.dram_base + y * instruction.x_stride)
        row = dram[start : start + 4 * instruction.x_size]
        words = np.frombuffer(row[: len(row) // 4 * 4], "<u4")
        place = instruction.sram_base + (above + y) * columns + left
        for x, indices in enumerate(decode_uops(hardware, words).tolist()):
            yield place + x, Uop(*indices)


def destinations(one: Nest, uops: NDArray[np.int64]) -> NDArray[np.int64]:
    """The tiles of ACC that a GEMM or ALU instruction writes, in its order; `uops` (n, 3) is what
    the buffer of micro-ops holds."""
    outer = np.arange(one.iter_out)[:, None, None] * one.dst_out
    inner = np.arange(one.iter_in)[:, None] * one.dst_in
    found: NDArray[np.int64] = outer + inner + uops[one.uop_bgn : one.uop_end, 0]
    return found.reshape(-1)
