"""Vector expressions that the convolutions share: pieces that overlap instead of leaving a rest,
words of `depth` values, powers of two."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.machine import Dot
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.kernels import KernelSpec

COPIED = 64
"""Elements that a copy moves at a time."""
SLACK = 64
"""Elements behind scratch that a last, partial vector may read or write."""


def at(start: Expr, lanes: int) -> Expr:
    """The index of `lanes` elements from start on."""
    return start if lanes == 1 else nest.ramp(start, lanes)


def filled(value: Expr, lanes: int) -> Expr:
    """A scalar in every lane, of any number."""
    return value if lanes == 1 else nest.splat(value, lanes)


@contextmanager
def pieces(length: int, widest: int = COPIED) -> Iterator[tuple[Expr, int]]:
    """A loop over vectors that cover `length` elements: (start, lanes).

    The last one overlaps the one before it instead of leaving a rest: no loop is scalar.
    """
    lanes = min(widest, 1 << (length.bit_length() - 1))
    with starts(length, lanes, "piece") as start:
        yield start, lanes


@contextmanager
def starts(length: int, size: int, name: str = "tile") -> Iterator[Expr]:
    """A loop over pieces of `size` that cover `length`: where each starts; the last may overlap."""
    with nest.serial(-(-length // size), name) as index:
        start = index * size
        yield tirx.min(start, length - size) if length % size else start


def pick(index: Expr, values: Sequence[int]) -> Expr:
    """values[index]: an affine expression where it can be, else a chain of selections."""
    step = values[1] - values[0] if len(values) > 1 else 0
    if all(value == values[0] + i * step for i, value in enumerate(values)):
        return values[0] + index * step if step else values[0]
    chosen: Expr = nest.const(values[-1], "int32")
    for i, value in reversed(list(enumerate(values[:-1]))):
        chosen = nest.select(index == i, nest.const(value, "int32"), chosen)
    return chosen


def interleave(vectors: Sequence[Expr], lanes: int) -> Expr:
    """[first of each, second of each, ...] of vectors of `lanes` elements."""
    order = [q * lanes + lane for lane in range(lanes) for q in range(len(vectors))]
    return tirx.Shuffle(list(vectors), [tirx.const(i, "int32") for i in order])


def power_of_two(shift: Expr) -> Expr:
    """1 << shift as int32, in a register."""
    held = nest.scratch(1, "int32")
    held.store(0, tirx.shift_left(nest.const(1, "int32"), shift))
    return held[0]


def scaled(value: Expr, factors: Sequence[Expr], words: int, dot: Dot) -> Expr:
    """Words of `depth` values times powers of two, one for each place in a word.

    There is no product of bytes: even and odd ones are multiplied as 16-bit values.
    """
    half, kind = words * 2, f"int16x{words * 2}"

    def both(first: Expr, second: Expr) -> Expr:
        pair = tirx.bitwise_or(first, tirx.shift_left(second, nest.const(16, "int32")))
        return tirx.reinterpret(kind, filled(pair, words))

    pairs = tirx.reinterpret(kind, value)
    if not dot.bytes:
        return pairs * both(factors[0], factors[1])
    low, high = (nest.splat(nest.const(mask, "int16"), half) for mask in (0xFF, -0x100))
    even = (pairs * both(factors[0], factors[2])) & low
    odd = (pairs & high) * both(factors[1], factors[3])
    return tirx.reinterpret(f"int8x{words * 4}", even | odd)


def shift_of(exponent: Array, groups: int, index: Expr) -> Expr:
    """groups - 1 - exponent[index] as int32; an exponent of one element serves every index."""
    value = exponent[index if exponent.size > 1 else 0]
    return nest.const(groups - 1, "int32") - nest.cast(value, "int32")


def shifts(spec: KernelSpec, f: nest.Function) -> tuple[int, Callable[[Expr], Expr] | None]:
    """The number of groups, and the shift of a reduced channel where there are several."""
    exponent, groups = f.get("exponent"), spec["shift_groups"]
    if exponent is None or groups == 1:
        return 1, None
    return groups, partial(shift_of, exponent, groups)


def at_most(shift: Callable[[Expr], Expr] | None, room: int) -> Callable[[Expr], Expr] | None:
    """The part of a shift that weights take."""
    if shift is None or not room:
        return None
    return lambda channel: tirx.min(shift(channel), room)


def remaining(shift: Expr, room: int) -> Expr:
    """What is left of a shift for the image, as a power of two."""
    rest = tirx.max(shift - room, 0)
    return nest.cast(tirx.shift_left(nest.const(1, "int32"), rest), "int16")
