"""Rows of the last axis in explicit vectors of 16, their ends included.

The end of a row is a vector as well: its first lanes hold the elements that are left, the others
a value that changes nothing. It is the row's last 16 elements, turned by a shuffle, or, of a row
shorter than a vector, pieces put together.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.sweep import in_vectors
from sqcompile.ops.reduce import CHUNK

TASK = 8192
"""Elements of the rows that one parallel task takes, at least."""

Combine = Callable[[Expr, Expr], Expr]
Body = Callable[[Expr, bool], None]
"""body(first element of a vector, whether it is the end of its row)"""


@contextmanager
def each_row(rows: int, length: int) -> Iterator[Expr]:
    """A loop over rows, several to a parallel task."""
    count = max(min(rows, -(-TASK // max(length, 1))), 1)
    tasks = -(-rows // count)
    with nest.parallel(tasks, rows * length, "task") as task:
        left = count if rows % count == 0 else tirx.min(count, rows - task * count)
        with nest.serial(left, "row") as row:
            yield task * count + row


class Held:
    """Vectors that are read more than once, in registers: `keep` for `functions`."""

    def __call__(self, value: Expr) -> Expr:
        """The value under a name of its own."""
        dtype, _, lanes = nest.dtype_of(value).partition("x")
        if not lanes:
            slot = nest.scratch(1, dtype)
            slot.store(0, value)
            return slot[0]
        slot = nest.scratch(int(lanes), dtype)
        place = nest.ramp(0, int(lanes))
        slot.store(place, value)
        return slot[place]


keep = Held()


def whole(array: Array, start: Expr) -> Expr:
    """16 elements from `start` on."""
    return array[nest.ramp(start)]


def end(array: Array, start: Expr, length: int, other: float) -> Expr:
    """The last `length % 16` elements of the row of `length` that begins at `start`, then `other`
    in the remaining lanes."""
    left = length % LANES
    if length >= LANES:
        vectors, size = [whole(array, start + (length - LANES))], LANES
    else:
        vectors, size = _pieces(array, start, left), left + left % 2
    vectors.append(nest.splat(nest.const(other, array.dtype)))
    first = LANES - left if length >= LANES else 0
    places = [first + lane if lane < left else size for lane in range(LANES)]
    return tirx.Shuffle(vectors, [tirx.const(place, "int32") for place in places])


def _pieces(array: Array, start: Expr, left: int) -> list[Expr]:
    """`left` elements as vectors of 8, 4, 2, 1 lanes; a single one stands twice."""
    found, at = [], 0
    while at < left:
        lanes = 1 << ((left - at).bit_length() - 1)
        place = start + at
        found.append(array[nest.ramp(place, lanes)] if lanes > 1 else nest.splat(array[place], 2))
        at += lanes
    return found


def halved(vector: Expr, combine: Combine) -> Expr:
    """All lanes combined in pairs: lane i with lane i + 8, then 4, 2, 1."""
    half = LANES // 2
    while half:
        vector = keep(vector)
        low, high = (
            tirx.Shuffle([vector], [tirx.const(first + i, "int32") for i in range(half)])
            for first in (0, half)
        )
        vector = combine(low, high)
        half //= 2
    return vector


def vectors(length: int, body: Body) -> None:
    """body(at, False) for the whole vectors of a row, in a loop, then body(at, True) for what is
    left, if something is."""
    if length >= LANES:
        with nest.serial(length // LANES, "v") as v:
            body(v * LANES, False)
    if length % LANES:
        body(length - length % LANES, True)


def maximum(a: Expr, b: Expr) -> Expr:
    """The larger of two."""
    return nest.select(a < b, b, a)


def largest(length: int, load: Callable[[Expr, bool], Expr]) -> Expr:
    """The largest element of a row whose vectors `load` gives, -inf in lanes beyond its end."""
    best = nest.scratch(LANES, "float32")
    best.store(nest.ramp(0), nest.splat(nest.const(-float("inf"), "float32")))

    def body(at: Expr, last: bool) -> None:
        best.store(nest.ramp(0), maximum(best[nest.ramp(0)], load(at, last)))

    vectors(length, body)
    return keep(halved(best[nest.ramp(0)], maximum))


def ordered_sum(length: int, value: Callable[[Expr, bool], Expr]) -> Expr:
    """The sum of a row in the order of sq::ordered_sum; `value` gives its vectors in order, once
    each, 0 in lanes beyond its end."""
    total, lanes = nest.scratch(1, "float32"), nest.scratch(LANES, "float32")
    total.store(0, nest.zero("float32"))
    place = nest.ramp(0)

    def chunk(first: Expr, size: int) -> None:
        lanes.store(place, nest.splat(nest.zero("float32")))

        def body(at: Expr, last: bool) -> None:
            lanes.store(place, lanes[place] + value(first + at, last))

        vectors(size, body)
        total.store(0, total[0] + halved(lanes[place], lambda a, b: a + b))

    if length >= CHUNK:
        with nest.serial(length // CHUNK, "chunk") as number:
            chunk(number * CHUNK, CHUNK)
    if length % CHUNK:
        chunk(length - length % CHUNK, length % CHUNK)
    return total[0]


def store(length: int, array: Array, start: Expr, value: Callable[[Expr, int], Expr]) -> None:
    """array[start ...] = value(first element, lanes), a row in vectors; the last one overlaps."""

    def vector(at: Expr, lanes: int) -> None:
        if lanes == 1:
            array.store(start + at, value(at, 1))
        else:
            array.store(nest.ramp(start + at, lanes), value(at, lanes))

    in_vectors(length, vector)


def read(array: Array, at: Expr, lanes: int) -> Expr:
    """`lanes` elements from `at` on."""
    return array[at] if lanes == 1 else array[nest.ramp(at, lanes)]


def spread(value: Expr, lanes: int) -> Expr:
    """A scalar in every lane."""
    return value if lanes == 1 else nest.splat(value, lanes)
