"""Input gradient of L1 layer norm from float rows: gamma * g, its absmax, its integers, their sums
and dx while a few rows lie in the L1 cache.

The carries of all columns lie there too, from one row to the next: a run has sixteen rows, which
are more than the cache holds at once.
"""

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.carry import Starts
from sqcompile.backends.cpu.layer_norm import RowGradients
from sqcompile.backends.cpu.layer_norm_quantize import row_absmax
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.norm import held
from sqcompile.backends.cpu.philox import Philox
from sqcompile.backends.cpu.rounding import floor_to_int8, step, steps_per_unit
from sqcompile.backends.cpu.saved_xhat import Saved
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.ops.carried import ROWS
from sqcompile.ops.quantize import limits

TASK = 8192
"""Elements of a task, about: whole runs."""
GROUP = 2048
"""Elements of the rows that are visited together, at most."""


def _limit(spec: KernelSpec) -> str:
    odd = spec.tensor("xhat").dtype == "uint8" and spec.tensor("g").shape[1] % 2
    return "rows of packed values need an even length" if odd else ""


def _together(rows: int, length: int) -> int:
    """Rows that are visited together: a power of two, so that they divide a run."""
    together = 1
    while together < min(rows, ROWS) and 2 * together * length <= GROUP:
        together *= 2
    return together


@KERNELS.kernel("sq::quantize_l1_layer_norm_backward", run_time=("stream",), limit=_limit)
def quantize_l1_layer_norm_backward(spec: KernelSpec) -> object:
    """Parallel over whole runs."""
    with nest.function(spec, ("stream",)) as f:
        g, (dx, absmax) = f["g"], f.outputs
        rows, length = g.shape
        most = _together(rows, length)
        runs = -(-rows // ROWS)
        group = min(runs, max(1, TASK // (ROWS * length)))
        xhat = Saved(f["xhat"], f["xhat"].dtype == "uint8")
        philox = Philox.of(f["rng"], f.scalars["stream"])
        row = _Row(spec, f)
        with nest.parallel(-(-runs // group), g.size * 16, "task") as task:
            starts = Starts(philox, group * length)
            q = nest.workspace(max(most * length, nest.STACK), "int8")
            scales = nest.scratch(most, "float32")
            run = task * group
            starts.fill(run * length, tirx.min(group, runs - run) * length)
            end = tirx.min((run + group) * ROWS, rows)
            with nest.serial(tirx.floordiv(end - run * ROWS + most - 1, most), "few") as few:
                top = run * ROWS + few * most
                count = tirx.min(most, end - top)
                carried = tirx.floordiv(few * most, ROWS) * length
                origin = top * length
                gradients = RowGradients(spec, q, xhat, length, most, origin)
                with nest.serial(count, "row") as one:
                    absmax.store(top + one, row.absmax(origin + one * length))
                with nest.serial(count, "row") as one:
                    r = held(absmax[top + one])
                    row.quantize(origin, one * length, r, starts, carried, q)
                    scales.store(one, step(spec["in_bits"], True, 1, r))
                with nest.serial(count, "row") as one:
                    factor = held(scales[one] * f["coefficient"][top + one])
                    gradients.sum(one, origin + one * length, factor)
                with nest.serial(count, "row") as one:
                    gradients.write(dx, one, origin + one * length)
    return f.result


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
        self, origin: Expr, start: Expr, r: Expr, starts: Starts, carried: Expr, q: Array
    ) -> None:
        """q of the row from element `start` on of the rows at hand, which begin at element
        `origin`; the carries of its run are `carried` places after the first."""
        scale = held(steps_per_unit(self.bits, True, r))

        def put(i: Expr, lanes: int) -> None:
            value = self._value(origin + start, i, lanes)
            product = value * (scale if lanes == 1 else nest.splat(scale, lanes))
            moved = starts.in_place(carried + i, lanes).step(nest.fence(product, lanes))
            q.store(_at(start + i, lanes), floor_to_int8(moved, *limits(self.bits, True)))

        with nest.serial(self.length // LANES, "v") as v:
            put(v * LANES, LANES)
        with nest.serial(self.length, "i", self.length - self.length % LANES) as i:
            put(i, 1)


def _at(index: Expr, lanes: int) -> Expr:
    return index if lanes == 1 else nest.ramp(index, lanes)
