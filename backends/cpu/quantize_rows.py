"""Nearest quantisation of rows by their own absmax: a weight, read from memory once."""

from math import prod

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.absmax import Block, widest
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.rounding import lanes_of, step, steps_per_unit, to_bytes
from sqcompile.backends.cpu.scaled import Scaled
from sqcompile.backends.cpu.sweep import in_vectors
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.ops.quantize import limits

TOGETHER = 4
"""Vectors that one store of bytes takes."""


@KERNELS.kernel("sq::quantize_rows")
def quantize_rows(spec: KernelSpec) -> object:
    """Parallel over rows; a row is measured, then quantised out of the cache."""
    bits, signed = spec["bits"], spec["signed"]
    with nest.function(spec) as f:
        x, (q, scale, r) = f["x"], f.outputs
        rows, inner = x.shape[0], prod(x.shape[1:])
        scaled = Scaled(x, [rows, inner], [])
        with nest.parallel(rows, x.size, "row") as row:
            r.store(row, nest.bits_of(widest(scaled, Block([row], [])), "float32"))
            scale.store(row, step(bits, signed, 1, r[row]))
            units = nest.scratch(1, "float32")
            units.store(0, steps_per_unit(bits, signed, r[row]))
            _row(scaled, row, units[0], limits(bits, signed), q)
    return f.result


def _row(scaled: Scaled, row: Expr, units: Expr, grid: tuple[int, int], q: Array) -> None:
    inner = scaled.extents[-1]

    def emit(column: Expr, lanes: int, count: int = 1) -> None:
        many = nest.splat(units, lanes) if lanes > 1 else units
        starts = [column + i * lanes for i in range(count)]
        values = [scaled.read([row], start, lanes) * many for start in starts]
        at = row * inner + column
        for value in to_bytes(values, *grid, down=False):
            length = lanes_of(value)
            q.store(nest.ramp(at, length) if length > 1 else at, value)
            at = at + length

    whole = LANES * TOGETHER
    if inner < whole:
        in_vectors(inner, emit)
        return
    with nest.serial(inner // whole, "v") as v:
        emit(v * whole, LANES, TOGETHER)
    if inner % whole:
        emit(inner - whole, LANES, TOGETHER)
