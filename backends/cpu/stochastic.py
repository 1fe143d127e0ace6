"""Stochastic rounding of a scaled tensor: blocks of 128 elements, each one Philox call."""

from collections.abc import Callable, Sequence

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.philox import BLOCK, Philox
from sqcompile.backends.cpu.rounding import bits_of, floor_to_int8, lanes_of, same
from sqcompile.backends.cpu.scaled import Factor, Scaled
from sqcompile.ops.quantize import limits


def quantize_blocks(
    scaled: Scaled, scales: Sequence[Factor], philox: Philox, bits: int, q: Array
) -> None:
    """q = clamp(floor(scaled * (scale * scale ...) + u)), the scales multiplied first.

    Parallel over the blocks. In vectors of 16, of which one can lie across the end of a row;
    element by element where rows are shorter than a vector, and in the last block.
    """
    size, (*heads, inner) = q.size, scaled.extents
    whole = size // BLOCK if inner >= LANES or not heads else 0
    if whole:
        with nest.parallel(whole, size * 8, "block") as block:
            for index, draw in enumerate(philox.draws(block)):
                start = block * BLOCK + index * LANES
                read = _reader(scaled.extents, start)
                x = scaled.x[nest.ramp(start)]
                value = _rounded(x, scaled.factors, scales, read, draw, bits)
                q.store(nest.ramp(start), value)
    if size > whole * BLOCK:
        blocks = -(-(size - whole * BLOCK) // BLOCK)
        with nest.parallel(blocks, blocks * BLOCK * 8, "block") as task:
            block = task + whole if whole else task
            held = nest.scratch(BLOCK, "uint32")
            for index, draw in enumerate(philox.draws(block)):
                held.store(nest.ramp(index * LANES), draw)
            with nest.serial(tirx.min(BLOCK, size - block * BLOCK), "e") as e:
                at = block * BLOCK + e
                row = nest.unravel(tirx.floordiv(at, inner), heads)
                column = tirx.floormod(at, inner)

                def one(factor: Factor) -> Expr:
                    return factor.read(row, column, 1)

                q.store(at, _rounded(scaled.x[at], scaled.factors, scales, one, held[e], bits))


def _reader(extents: Sequence[int], start: Expr) -> Callable[[Factor], Expr]:
    """What reads a factor for the LANES elements from the flat index `start` on."""
    *heads, inner = extents
    if not heads:
        return lambda factor: factor.read([], start, LANES)
    row, column = tirx.floordiv(start, inner), tirx.floormod(start, inner)
    if inner % LANES:
        return lambda factor: factor.across(row, extents, column)
    return lambda factor: factor.read(nest.unravel(row, heads), column, LANES)


def _rounded(
    x: Expr,
    factors: Sequence[Factor],
    scales: Sequence[Factor],
    read: Callable[[Factor], Expr],
    draw: Expr,
    bits: int,
) -> Expr:
    """One element, or a vector of them, as int8; draw is uint32."""
    value = x
    for factor in factors:
        value = value * read(factor)
    first, *others = scales
    scale = read(first)
    for factor in others:
        scale = scale * read(factor)
    low, high = limits(bits, True)
    moved = nest.fence(value * scale, lanes_of(x)) + uniform(draw)
    return floor_to_int8(moved, low, high)


def uniform(draw: Expr) -> Expr:
    """(draw + 1/2) * 2^-16, exactly: the draw in the top of a mantissa makes 1 + u."""
    mantissa = tirx.shift_left(draw, same(7, "uint32", draw))
    number = tirx.bitwise_or(mantissa, same(0x3F800040, "uint32", draw))
    return bits_of(number, "float32") - same(1.0, "float32", draw)
