"""Input gradient of L1 layer norm from float rows: gamma * g, its absmax, its integers, their sums
and dx while a group of rows lies in the L1 cache.

Draws belong to blocks of 128 elements, whatever the rows are: a group of rows makes those of all
blocks that it touches before its rows are visited. Two groups that share a block make it twice,
so groups are not short.
"""

from math import gcd

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.layer_norm import RowGradients
from sqcompile.backends.cpu.layer_norm_quantize import row_absmax
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.norm import held
from sqcompile.backends.cpu.philox import BLOCK, Philox
from sqcompile.backends.cpu.rounding import floor_to_int8, step, steps_per_unit
from sqcompile.backends.cpu.saved_xhat import Saved
from sqcompile.backends.cpu.stochastic import uniform
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.ops.quantize import limits

TASKS = 64
"""Blocks of groups; a block has scratch for one group."""
GROUP = 2048
"""Elements of a group of rows, at least: its draws as floats take 8 KB."""


def _limit(spec: KernelSpec) -> str:
    odd = spec.tensor("xhat").dtype == "uint8" and spec.tensor("g").shape[1] % 2
    return "rows of packed values need an even length" if odd else ""


def _group(rows: int, length: int) -> int:
    """Rows of a group: whole blocks where a few rows more make them whole."""
    few, whole = -(-GROUP // length), BLOCK // gcd(length, BLOCK)
    return max(1, min(rows, -(-few // whole) * whole if whole <= 2 * few else few))


@KERNELS.kernel("sq::quantize_l1_layer_norm_backward", run_time=("stream",), limit=_limit)
def quantize_l1_layer_norm_backward(spec: KernelSpec) -> object:
    """Parallel over blocks of groups."""
    with nest.function(spec, ("stream",)) as f:
        g, (dx, absmax) = f["g"], f.outputs
        rows, length = g.shape
        group = _group(rows, length)
        groups = -(-rows // group)
        tasks = min(groups, TASKS)
        xhat = Saved(f["xhat"], f["xhat"].dtype == "uint8")
        philox = Philox.of(f["rng"], f.scalars["stream"])
        row = _Row(spec, f)
        blocks = group * length // BLOCK + (1 if group * length % BLOCK == 0 else 2)
        with nest.parallel(tasks, g.size * 16, "task") as task:
            draws = nest.workspace(blocks * BLOCK, "float32")
            q = nest.workspace(max(group * length, nest.STACK), "int8")
            scales = nest.scratch(group, "float32")
            begin = tirx.floordiv(task * groups, tasks)
            count = tirx.floordiv((task + 1) * groups, tasks) - begin
            with nest.serial(count, "group") as index:
                top = (begin + index) * group
                bottom = tirx.min(top + group, rows)
                block = tirx.floordiv(top * length, BLOCK)
                _fill(draws, philox, block, tirx.floordiv(bottom * length - 1, BLOCK) - block + 1)
                origin = top * length
                gradients = RowGradients(spec, q, xhat, length, group, origin)
                with nest.serial(bottom - top, "row") as one:
                    absmax.store(top + one, row.absmax(origin + one * length))
                with nest.serial(bottom - top, "row") as one:
                    start, r = one * length, held(absmax[top + one])
                    row.quantize(origin, start, r, draws, origin - block * BLOCK, q)
                    scales.store(one, step(spec["in_bits"], True, 1, r))
                with nest.serial(bottom - top, "row") as one:
                    factor = held(scales[one] * f["coefficient"][top + one])
                    gradients.sum(one, origin + one * length, factor)
                with nest.serial(bottom - top, "row") as one:
                    gradients.write(dx, one, origin + one * length)
    return f.result


def _fill(draws: Array, philox: Philox, block: Expr, count: Expr) -> None:
    """The uniform numbers of `count` blocks."""
    with nest.serial(count, "block") as index:
        for place, draw in enumerate(philox.draws(block + index)):
            draws.store(nest.ramp(index * BLOCK + place * LANES), uniform(draw))


class _Row:
    """What quantises a row of gamma * g."""

    def __init__(self, spec: KernelSpec, f: nest.Function) -> None:
        self.bits, self.g, self.gamma = spec["in_bits"], f["g"], f.get("gamma")
        self.length = self.g.shape[1]

    def _value(self, start: Expr, i: Expr, lanes: int = 1) -> Expr:
        one = self.g[_at(start + i, lanes)]
        return one if self.gamma is None else one * self.gamma[_at(i, lanes)]

    def absmax(self, start: Expr) -> Expr:
        """The absmax of the row from element `start` on."""
        return row_absmax(lambda i: self._value(start, i), self.length)

    def quantize(
        self, origin: Expr, start: Expr, r: Expr, draws: Array, first: Expr, q: Array
    ) -> None:
        """q of the row from element `start` on of the group, which begins at element `origin`, its
        draws at `first`."""
        scale = held(steps_per_unit(self.bits, True, r))

        def put(i: Expr, lanes: int) -> None:
            value = self._value(origin + start, i, lanes)
            product = value * (scale if lanes == 1 else nest.splat(scale, lanes))
            moved = nest.fence(product, lanes) + draws[_at(first + start + i, lanes)]
            q.store(_at(start + i, lanes), floor_to_int8(moved, *limits(self.bits, True)))

        with nest.serial(self.length // LANES, "v") as v:
            put(v * LANES, LANES)
        with nest.serial(self.length, "i", self.length - self.length % LANES) as i:
            put(i, 1)


def _at(index: Expr, lanes: int) -> Expr:
    return index if lanes == 1 else nest.ramp(index, lanes)
