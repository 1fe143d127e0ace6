"""The inner loop of a matrix product: a tile of rows x vectors sums that stay in registers.

A step is one quad of k: `vectors` loads of packed b, and for every row `depth` values of a,
repeated in all lanes, times each of them. With 6 x 4 sums, 4 loads and one repeated value 29 of
32 registers are in use; 7 x 4 spills and loses a third.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.gemm_plan import Plan
from sqcompile.backends.cpu.gemm_shape import Shape
from sqcompile.backends.cpu.machine import Dot
from sqcompile.backends.cpu.nest import Array, Expr

Rows = Callable[[int, Expr], Expr]
"""The values of a for row r of a tile at a quad, repeated, as the dot product takes them."""


def multiplied(plan: Plan, dot: Dot, acc: Expr, a: Expr, b: Expr) -> Expr:
    """acc + the products of a and b, each on its side of the dot product."""
    return dot.add(acc, a, b) if plan.a.unsigned or not dot.bytes else dot.add(acc, b, a)


def dtypes(plan: Plan, dot: Dot) -> tuple[str, str]:
    """How a and b are stored."""
    swapped = dot.bytes and not plan.a.unsigned
    return (dot.right, dot.left) if swapped else (dot.left, dot.right)


@dataclass(frozen=True)
class PanelB:
    """One segment of a panel of packed b, and the sums that correct its columns (or none)."""

    array: Array
    base: Expr
    correction: Array | None
    correction_base: Expr


class Tile:
    """The sums of one tile, in registers."""

    def __init__(self, shape: Shape, plan: Plan, dot: Dot) -> None:
        self.shape, self.plan, self.dot = shape, plan, dot
        self.lanes = nest.ramp(0, dot.lanes)
        self.sums = [
            [nest.scratch(dot.lanes, "int32") for _ in range(shape.vectors)]
            for _ in range(shape.rows)
        ]

    def start(self, panel: PanelB) -> None:
        """Set the sums to the correction of their columns, or to zero where it comes last."""
        zero = nest.splat(nest.zero("int32"), self.dot.lanes)
        early = not self.plan.sorted
        for row in self.sums:
            for v, one in enumerate(row):
                one.store(self.lanes, self._correction(panel, v) if early else zero)

    def step(self, rows: Rows, panel: PanelB, quad: Expr) -> None:
        """Add the products of one quad."""
        size = self.dot.lanes * self.dot.depth
        at = panel.base + quad * (self.shape.vectors * size)
        right = [self.dot.loaded(panel.array, at + v * size) for v in range(self.shape.vectors)]
        for r, row in enumerate(self.sums):
            left = rows(r, quad)
            for one, b in zip(row, right, strict=True):
                one.store(self.lanes, multiplied(self.plan, self.dot, one[self.lanes], left, b))

    def double(self) -> None:
        """Multiply the sums by two: what is added from now on has half their weight."""
        for row in self.sums:
            for one in row:
                one.store(self.lanes, one[self.lanes] + one[self.lanes])

    def result(self, panel: PanelB, r: int, v: int) -> Expr:
        """A vector of sums when every quad was added."""
        total = self.sums[r][v][self.lanes]
        return total + self._correction(panel, v) if self.plan.sorted else total

    def _correction(self, panel: PanelB, v: int) -> Expr:
        if panel.correction is None:
            return nest.splat(nest.zero("int32"), self.dot.lanes)
        at = panel.correction_base + v * self.dot.lanes
        return panel.correction[nest.ramp(at, self.dot.lanes)]


@dataclass(frozen=True)
class InPlace:
    """Rows of a read where they are, or sorted: k contiguous, of bytes, without a shift."""

    array: Array
    start: Expr
    stride: int
    plan: Plan
    dot: Dot
    dtype: str

    def __call__(self, r: int, quad: Expr) -> Expr:
        """Four neighbouring values."""
        return self._taken(self.start + r * self.stride + quad * self.dot.depth, 0)

    def rest(self, missing: int) -> Callable[[int, Expr], Expr]:
        """The last values of a row, fewer than a quad, and zeros: the last quad of the row, shifted
        by what was counted before."""
        last = self.stride - self.dot.depth
        return lambda r, quad: self._taken(self.start + r * self.stride + last, missing)

    def _taken(self, at: Expr, missing: int) -> Expr:
        word = tirx.reinterpret("uint32", self.array[nest.ramp(at, self.dot.depth)])
        if missing:
            word = tirx.shift_right(word, nest.const(8 * missing, "uint32"))
        if self.plan.a.bias:  # as a scalar: LLVM 22 never ends on a vector that is flipped here
            word = tirx.bitwise_xor(word, nest.const(0x80808080, "uint32"))
        lanes = self.dot.lanes
        kind = f"{self.dtype}x{lanes * self.dot.depth}"
        return tirx.reinterpret(kind, nest.splat(word, lanes))


@dataclass(frozen=True)
class Packed:
    """Rows of a packed block: [quad][row][depth]."""

    array: Array
    start: Expr
    width: int
    dot: Dot

    def __call__(self, r: int, quad: Expr) -> Expr:
        """`depth` values of a row."""
        at = self.start + (quad * self.width + r) * self.dot.depth
        return self.dot.repeated(self.array, at)
