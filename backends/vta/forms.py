"""From a product's operands to grids of tiles and back: what every kind of product shares.

A form knows a spec on one accelerator: its correlation, how host arrays become the tiles of INP
and WGT, and how result tiles become the product's accumulators.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sqcompile.backends.vta.correlation import Correlation, Run, Segment
from sqcompile.backends.vta.digits import Digits
from sqcompile.backends.vta.spec import Values

Array = NDArray[Any]
ACC_BITS = 32


class Form(Protocol):
    """A spec on one accelerator."""

    correlation: Correlation

    def pack(self, operands: Sequence[Array]) -> tuple[Array, Array]:
        """Operands -> int8 (*inp_shape, BATCH, BLOCK) and (*wgt_shape, BLOCK out, BLOCK in)."""

    def unpack(self, tiles: Array, operands: Sequence[Array]) -> Array:
        """int32 (*result_shape, BATCH, BLOCK) and the same operands -> int32 accumulators."""


def shifted(operand: Array, exponent: Array | None, groups: int) -> Array:
    """operand << (groups - 1 - exponent), int32."""
    wide = operand.astype(np.int32)
    return wide if exponent is None else wide << (groups - 1 - exponent.astype(np.int32))


def chunks(values: Array, axis: int, length: int) -> Array:
    """An axis -> two, (count, length), with zeros after its end where it is no multiple."""
    axis %= values.ndim
    count = -(-values.shape[axis] // length)
    missing = count * length - values.shape[axis]
    if missing:
        pads = [(0, missing if number == axis else 0) for number in range(values.ndim)]
        values = np.pad(values, pads)
    return values.reshape(*values.shape[:axis], count, length, *values.shape[axis + 1 :])


def joined(tiles: Array, axis: int, size: int) -> Array:
    """The inverse of `chunks` for an axis of `size`: axes (count, length) -> one."""
    flat = tiles.reshape(*tiles.shape[:axis], -1, *tiles.shape[axis + 2 :])
    return flat[(slice(None),) * axis + (slice(size),)]


def horner(inp: Digits, wgt: Digits, planes: int) -> tuple[Segment, ...]:
    """All pairs of digits, the most significant first; digit i has planes i * planes onwards."""
    weights: dict[int, list[Run]] = {}
    for i in range(inp.count):
        for j in range(wgt.count):
            run = Run(i * planes, j * planes, planes)
            weights.setdefault(i * inp.width + j * wgt.width, []).append(run)
    segments, previous = [], None
    for weight in sorted(weights, reverse=True):
        shift = 0 if previous is None else previous - weight
        segments.append(Segment(shift, tuple(weights[weight])))
        previous = weight
    return tuple(segments)


def result_bits(inp: Digits, wgt: Digits, values: tuple[Values, Values], length: int) -> int:
    """Bits of a signed sum of `length` products of the operands' values less their offsets."""
    bound = length
    for digits, of in zip((inp, wgt), values, strict=True):
        bound *= max(abs(of.low - digits.offset), abs(of.high - digits.offset))
    return min(ACC_BITS, bound.bit_length() + 1)
