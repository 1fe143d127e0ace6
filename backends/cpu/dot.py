"""The inner loop of every product: C[row, column] += sum over k of A[row, k] * B[k, column].

A is int32 [rows][depth], read as a scalar for all lanes; B is int16 or int32 [depth][columns],
read in vectors of 16 columns; operands carry their shifts. A tile is ROWS x VECTORS accumulators:
4 x 2 leaves room for its loads in 16 registers of AVX2 as in 32 of AVX-512, 34 to 46 billion
multiply-adds a second and core on a Zen 4 (256 x 1024 x 256; 4 x 4 and 8 x 2 gain nothing).
Integer sums have one value in any order, so threads and tiles never change a result.
"""

from dataclasses import dataclass

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr

ROWS = 4
VECTORS = 2


def padded(size: int, multiple: int) -> int:
    """The next multiple of `multiple`."""
    return -(-size // multiple) * multiple


def blocked(size: int, limit: int, multiple: int) -> tuple[int, int]:
    """(blocks, block size): the fewest even blocks of at most about `limit`, a multiple of
    `multiple` each."""
    blocks = max(1, -(-size // limit))
    block = padded(max(1, -(-size // blocks)), multiple)
    return max(1, -(-size // block)), block


@dataclass(frozen=True)
class Panel:
    """A matrix inside an array: element (i, j) is at start + i * stride + j."""

    array: Array
    start: Expr
    stride: int


@dataclass(frozen=True)
class Accumulator:
    """Where sums are kept: int32, or int64 over int32 partial sums of `chunk` steps of k."""

    array: Array
    stride: int
    chunk: int

    @classmethod
    def of(cls, rows: int, columns: int, chunk: int) -> "Accumulator":
        """Scratch memory for rows x columns sums; chunk = 0 means int32."""
        array = nest.scratch(rows * columns, "int64" if chunk else "int32")
        return cls(array, columns, chunk)

    def clear(self) -> None:
        """Set every sum to zero."""
        with nest.serial(self.array.size, "clear") as i:
            self.array.store(i, nest.zero(self.array.dtype))


def product(a: Panel, b: Panel, acc: Accumulator, rows: int, columns: int, depth: int) -> None:
    """Add A[rows, depth] @ B[depth, columns] to acc.

    rows is a multiple of ROWS and columns of LANES: what lies beyond a matrix is zeros.
    """
    if not depth:
        return
    step = VECTORS * nest.LANES
    if columns // step:
        with nest.serial(columns // step, "j") as j, nest.serial(rows // ROWS, "i") as i:
            _tile(a, b, acc, i * ROWS, j * step, VECTORS, depth)
    if columns % step:
        with nest.serial(rows // ROWS, "i") as i:
            _tile(a, b, acc, i * ROWS, columns // step * step, 1, depth)


def _tile(
    a: Panel, b: Panel, acc: Accumulator, row: Expr, column: Expr, vectors: int, depth: int
) -> None:
    places = [(r, v) for r in range(ROWS) for v in range(vectors)]
    sums = {place: nest.scratch(nest.LANES, "int32") for place in places}
    lanes = nest.ramp(0)

    def run(first: Expr, length: int) -> None:
        for place in places:
            sums[place].store(lanes, nest.splat(nest.zero("int32")))
        with nest.serial(length, "k") as k:
            at = b.start + (first + k) * b.stride + column
            right = [b.array[nest.ramp(at + v * nest.LANES)] for v in range(vectors)]
            if b.array.dtype != "int32":
                right = [nest.cast(vector, "int32", nest.LANES) for vector in right]
            for r in range(ROWS):
                left = nest.splat(a.array[a.start + (row + r) * a.stride + first + k])
                for v in range(vectors):
                    total = sums[r, v]
                    total.store(lanes, total[lanes] + left * right[v])
        wide = acc.array.dtype
        for r, v in places:
            index = nest.ramp((row + r) * acc.stride + column + v * nest.LANES)
            value = sums[r, v][lanes]
            if wide != "int32":
                value = nest.cast(value, wide, nest.LANES)
            acc.array.store(index, acc.array[index] + value)

    longest = min(acc.chunk, depth) if acc.chunk else depth
    if depth // longest > 1:
        with nest.serial(depth // longest, "chunk") as chunk:
            run(chunk * longest, longest)
    else:
        run(0, longest)
    if depth % longest:
        run(depth // longest * longest, depth % longest)
