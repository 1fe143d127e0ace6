"""One pass over memory for elementwise work: a thread takes a few elements in a row, loads those of
every operand at once and stores those of every result at once.

Four elements are 16 bytes of float32; eight, where a result is packed, are whole bytes of it. Sizes
that these do not divide are taken element by element, and packed results then have launches of
their own. What is packed or measured goes to a sink beside the results that are stored.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from tvm import tirx

from sqcompile.backends.cuda import grid
from sqcompile.backends.cuda.grid import VECTOR, WARP, Array, Expr, Team
from sqcompile.backends.cuda.pack import nibble, store_bits, store_nibbles
from sqcompile.backends.cuda.reduce import LARGEST, folded
from sqcompile.backends.rounding import magnitude
from sqcompile.walks import Walk

PASS_THREADS = 128
"""Threads of a block: each has some elements of every value in registers."""
BYTES = 8
"""Elements of a thread where a result is packed."""

Load = Callable[[Expr, int], Callable[[int], Expr]]
"""load(first, lanes) -> an operand's element, by lane from `first` on."""
Element = Callable[[Expr, Sequence[Expr]], Sequence[Expr]]
"""element(index, value of each operand) -> a value for each sink."""


class Stored:
    """Every value, row-major."""

    lanes = 1
    """Elements that a thread must have, for the sink to take them together."""

    def __init__(self, out: Array) -> None:
        self.out, self.dtype = out, out.dtype

    def start(self) -> None:
        """Before the elements, in every thread of the launch."""

    def put(self, first: Expr, held: Array, lanes: int) -> None:
        """The values of a thread."""
        if lanes == 1:
            self.out.store(first, held[0])
            return
        for part in range(0, lanes, VECTOR):
            grid.store(self.out, first + part, held, part)

    def leave(self, item: Expr) -> None:
        """After the elements, in every thread of the launch, of which this is number `item`."""

    def finish(self) -> None:
        """After the launch."""

    def alone(self, size: int, value: Callable[[Expr], Expr]) -> None:
        """A launch of its own: value(index) of every element."""
        grid.each(size, lambda i: self.out.store(i, value(i)))


class Nibbles(Stored):
    """int32 whose lowest four bits are packed two to a byte."""

    lanes = BYTES

    def __init__(self, out: Array) -> None:
        super().__init__(out)
        self.dtype = "int32"

    def put(self, first: Expr, held: Array, lanes: int) -> None:
        """Four bytes."""
        low = grid.const(15, "int32")
        bytes_ = grid.slots(lanes // 2, "uint8")
        for place in range(lanes // 2):
            even, odd = (tirx.bitwise_and(held[2 * place + i], low) for i in range(2))
            both = tirx.bitwise_or(even, tirx.shift_left(odd, grid.const(4, "int32")))
            bytes_.store(place, grid.cast(both, "uint8"))
        at = tirx.floordiv(first, 2)
        grid.store(self.out, at, bytes_, 0, lanes // 2)

    def alone(self, size: int, value: Callable[[Expr], Expr]) -> None:
        """A thread for each byte."""
        store_nibbles(self.out, size, value)


class Bits(Stored):
    """Truth values, packed eight to a byte."""

    lanes = BYTES

    def __init__(self, out: Array) -> None:
        super().__init__(out)
        self.dtype = "uint8"

    def put(self, first: Expr, held: Array, lanes: int) -> None:
        """One byte."""
        byte = grid.cast(held[0], "int32")
        for place in range(1, lanes):
            bit = grid.cast(held[place], "int32")
            byte = tirx.bitwise_or(byte, tirx.shift_left(bit, grid.const(place, "int32")))
        self.out.store(tirx.floordiv(first, BYTES), grid.cast(byte, "uint8"))

    def alone(self, size: int, value: Callable[[Expr], Expr]) -> None:
        """A thread for each byte."""
        store_bits(self.out, size, lambda i: tirx.NE(value(i), grid.zero(self.dtype)))


class Largest(Stored):
    """The largest magnitude of all, given as the bits of a float32 without its sign: store(value)
    takes it in one thread. Each warp leaves its own in memory, and another launch joins them."""

    def __init__(self, threads: int, store: Callable[[Expr], None]) -> None:
        self.dtype, self.store = "int32", store
        self.parts = grid.workspace(-(-threads // WARP), "int32")

    def start(self) -> None:
        """An accumulator in every thread."""
        self.best = LARGEST.start()

    def put(self, first: Expr, held: Array, lanes: int) -> None:
        """More values."""
        for lane in range(lanes):
            LARGEST.take(self.best, held[lane])

    def leave(self, item: Expr) -> None:
        """The largest of a warp."""
        team = Team(tirx.floormod(item, WARP), WARP, None)
        found = team.joined(self.best[0], LARGEST.combine)
        with team.first():
            self.parts.store(tirx.floordiv(item, WARP), found)

    def finish(self) -> None:
        """The largest of all warps."""

        def put(result: Expr, values: Sequence[Expr]) -> None:
            self.store(grid.keep(grid.bits_of(values[0], "float32")))

        parts = self.parts
        folded(1, parts.size, False, [LARGEST], lambda result, k: [parts[k]], put)


def lanes_for(size: int, sinks: Sequence[Stored], most: int = BYTES) -> int:
    """Elements of a thread: at most `most`, as many as the sinks want or a vector has."""
    wanted = max(max((sink.lanes for sink in sinks), default=1), VECTOR)
    fitting = [lanes for lanes in (BYTES, VECTOR) if lanes <= min(wanted, most)]
    return next((lanes for lanes in fitting if size % lanes == 0), 1)


def threads_for(size: int, lanes: int) -> int:
    """Threads of a pass, those beyond the last element included."""
    block = min(PASS_THREADS, -(-(size // lanes) // WARP) * WARP)
    return -(-(size // lanes) // block) * block


def along(array: Array) -> Load:
    """An operand whose elements are those of the results, one for one."""

    walk = array.walk

    def load(first: Expr, lanes: int) -> Callable[[int], Expr]:
        if lanes == 1:
            held = grid.keep(grid.at(array, first))
            return lambda lane: held
        vector = grid.slots(lanes, array.dtype)
        for part in range(0, lanes, VECTOR if in_vectors(walk) else 1):
            if in_vectors(walk):
                grid.load(array, grid.place(walk, first + part), vector, part)
            else:
                vector.store(part, grid.at(array, first + part))
        return lambda lane: vector[lane]

    return load


def in_vectors(walk: Walk) -> bool:
    """Whether a walk falls into aligned vectors."""
    outer = [stride for _, stride in walk.axes[:-1]]
    whole = walk.in_order or walk.run % VECTOR == 0
    return whole and all(step % VECTOR == 0 for step in (*outer, walk.begin))


def saved_along(xhat: Array) -> Load:
    """Saved integers as int32: int8, or two to a byte."""
    if xhat.dtype != "uint8":
        plain = along(xhat)

        def cast(first: Expr, lanes: int) -> Callable[[int], Expr]:
            value = plain(first, lanes)
            return lambda lane: grid.cast(value(lane), "int32")

        return cast

    def load(first: Expr, lanes: int) -> Callable[[int], Expr]:
        if lanes == 1:
            return lambda lane: nibble(xhat, first, True)
        bytes_ = grid.slots(lanes // 2, "uint8")
        at = tirx.floordiv(first, 2)
        grid.load(xhat, at, bytes_, 0, lanes // 2)
        return lambda lane: nibble(bytes_, grid.const(lane, "int32"), True)

    return load


def one_launch(
    size: int,
    lanes: int,
    loads: Sequence[Load],
    sinks: Sequence[Stored],
    start: Callable[[], Element],
) -> None:
    """Hand the elements to the sinks, in one launch; `start` gives the element where its constants
    may be made."""
    if not size:
        return
    items, threads = size // lanes, threads_for(size, lanes)
    block_size = min(PASS_THREADS, threads)
    with grid.launch(threads // block_size, block_size) as (block, thread):
        item = block * block_size + thread
        for sink in sinks:
            sink.start()
        with ExitStack() as stack:
            if items % block_size:
                stack.enter_context(grid.when(item < items))
            first = item * lanes
            element = start()
            values = [load(first, lanes) for load in loads]
            held = [grid.slots(lanes, sink.dtype) for sink in sinks]
            for lane in range(lanes):
                results = element(first + lane, [value(lane) for value in values])
                for sink, slot, value in zip(sinks, held, results, strict=True):
                    slot.store(lane, grid.cast(value, sink.dtype))
            for sink, slot in zip(sinks, held, strict=True):
                sink.put(first, slot, lanes)
        for sink in sinks:
            sink.leave(item)
    for sink in sinks:
        sink.finish()


def mapped(size: int, loads: Sequence[Load], sinks: Sequence[Stored], element: Element) -> None:
    """Hand the elements to the sinks: together where the size allows it, else those that pack in
    launches of their own."""
    lanes = lanes_for(size, sinks)
    wide = [sink.lanes > lanes for sink in sinks]

    def kept(results: Sequence[Expr]) -> list[Expr]:
        return [one for one, apart in zip(results, wide, strict=True) if not apart]

    together = kept(sinks)
    one_launch(
        size, lanes, loads, together, lambda: lambda index, given: kept(element(index, given))
    )
    for place, (sink, apart) in enumerate(zip(sinks, wide, strict=True)):
        if apart:
            sink.alone(size, _one_of(loads, element, place, sink.dtype))


def _one_of(
    loads: Sequence[Load], element: Element, place: int, dtype: str
) -> Callable[[Expr], Expr]:
    """One value of an element."""

    def value(index: Expr) -> Expr:
        given = [load(index, 1)(0) for load in loads]
        return grid.cast(grid.keep(element(index, given)[place]), dtype)

    return value


def magnitude_of(value: Expr) -> Expr:
    """What `Largest` takes of a float32."""
    return magnitude(grid.keep(value))
