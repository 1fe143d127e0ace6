"""The weight side of Winograd's convolution: OIHW weights to transformed, interleaved blocks."""

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.winograd_input import WIDTH, Shifts
from sqcompile.backends.cpu.winograd_ranges import POSITIONS, TAPS, WEIGHT, Split
from sqcompile.backends.cpu.winograd_taps import SEGMENT, Filters, Straight, Turned

ORDER = ((1, 2), (0, 3))
"""Rows (and columns) of positions in the order in which they are summed: a pair at a time."""


def place_of(filters: Filters, i: int, j: int) -> int:
    """Where position (i, j) begins in a block."""
    column = next(p * 2 + q for p, pair in enumerate(ORDER) for q, c in enumerate(pair) if c == j)
    half, within = next(
        (p, q) for p, pair in enumerate(ORDER) for q, c in enumerate(pair) if c == i
    )
    return (column * 2 + half) * filters.pair + within * filters.vectors * filters.vector


class Packer:
    """Writes blocks and the corrections of their columns: 4 x width int32 a block, for the
    results (0, 0), (0, 1), (1, 0), (1, 1) of a tile."""

    def __init__(self, filters: Filters, source: Array, shifts: Shifts, split: Split) -> None:
        self.filters, self.split, self.shifts = filters, split, shifts
        self.taps = (Turned if filters.flipped else Straight)(filters, source)

    def pack(self, block: Expr, out: Array, start: Expr, corrections: Array, first: Expr) -> None:
        """Block number `block` to out[start ...], corrections[first ...]."""
        filters, dot = self.filters, self.filters.dot
        lanes = nest.ramp(0, dot.lanes)
        sums = [nest.scratch(dot.lanes, "int32") for _ in TAPS]
        with nest.serial(filters.vectors, "v") as v:
            for one in sums:
                one.store(lanes, nest.splat(nest.zero("int32"), dot.lanes))
            column = block * filters.width + v * dot.lanes
            with nest.serial(-(-filters.steps // SEGMENT), "segment") as segment:
                before = segment * SEGMENT
                steps = nest.bound(tirx.min(SEGMENT, filters.steps - before))
                self.taps.stage(column, before, steps)
                with nest.serial(steps, "k") as k:
                    at = start + ((before + k) * 2 * filters.vectors + v) * filters.vector
                    channel = (before + k) * dot.depth
                    taps = self.shifts.weights(self.taps.read(k), channel, dot.lanes)
                    self._step(taps, sums, out, at)
            self._correct(sums, corrections, first + v * dot.lanes)

    def _step(self, taps: list[Expr], sums: list[Array], out: Array, at: Expr) -> None:
        filters, dot = self.filters, self.filters.dot
        lanes = nest.ramp(0, dot.lanes)
        ones = nest.splat(nest.const(1, dot.left), filters.vector)
        kind = f"{dot.right}x{filters.vector}"
        for one, tap in zip(sums, taps, strict=True):
            one.store(lanes, dot.add(one[lanes], ones, tirx.reinterpret(kind, tap)))
        rows = [_mixed(factors, taps[b::3]) for factors in WEIGHT for b in range(3)]
        rows = nest.kept(rows, "uint8", WIDTH)
        for i, j in POSITIONS:
            value = tirx.reinterpret(kind, _mixed(WEIGHT[j], rows[3 * i : 3 * i + 3]))
            out.store(nest.ramp(at + place_of(filters, i, j), filters.vector), value)

    def _correct(self, sums: list[Array], corrections: Array, first: Expr) -> None:
        lanes = self.filters.dot.lanes
        for result in range(4):
            total = nest.splat(nest.zero("int32"), lanes)
            factors = self.split.correction(result // 2, result % 2)
            for factor, one in zip(factors, sums, strict=True):
                if factor:
                    total = total + one[nest.ramp(0, lanes)] * nest.splat(factor, lanes)
            at = nest.ramp(first + result * self.filters.width, lanes)
            corrections.store(at, total)


def _mixed(factors: tuple[int, ...], values: list[Expr]) -> Expr:
    """The sum of factor * value over three vectors."""
    if factors[1]:
        total = values[0] + values[2]
        total = total + values[1] if factors[1] > 0 else total - values[1]
    elif factors[0]:
        total = values[0] + values[0]
    else:
        zero = nest.zero("uint8")
        total = nest.splat(zero, WIDTH) - values[2] - values[2]
    return total
