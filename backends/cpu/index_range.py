"""The lowest and the highest of row numbers: exact in any order and any overlap."""

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import CHUNK, LANES, Array, Expr
from sqcompile.backends.cpu.sweep import in_vectors
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.ops.index_range import NONE


def _place(at: Expr, lanes: int) -> Expr:
    return nest.ramp(at, lanes) if lanes > 1 else at


def _spread(number: int, lanes: int) -> Expr:
    one = nest.const(number, "int64")
    return nest.splat(one, lanes) if lanes > 1 else one


def _combine(found: Array, at: Expr, low: Expr, high: Expr, lanes: int) -> None:
    """found[at ...] and, `lanes` behind it, found[at + lanes ...] take in more numbers. Both are
    parts of one array, because TVM gives two that are used alike the same memory."""
    lows, highs = _place(at, lanes), _place(at + lanes, lanes)
    found.store(lows, tirx.min(found[lows], low))
    found.store(highs, tirx.max(found[highs], high))


def _clear(found: Array, at: Expr, lanes: int) -> None:
    for part, number in enumerate(NONE):
        found.store(_place(at + part * lanes, lanes), _spread(number, lanes))


def _whole(found: Array, at: Expr, lanes: int, which: str) -> Expr:
    one = found[_place(at, lanes)]
    if lanes == 1:
        return one
    return tirx.call_llvm_pure_intrin("int64", f"llvm.vector.reduce.{which}", one)


@KERNELS.kernel("sq::index_range")
def index_range(spec: KernelSpec) -> object:
    """Tasks of CHUNK numbers, the last one overlapping, each in vectors; then their results."""
    with nest.function(spec) as f:
        x, (out,), ignored = f["x"], f.outputs, spec["ignored"]
        tasks, count = -(-x.size // CHUNK), min(x.size, CHUNK)
        lanes = min(LANES, 1 << max(count.bit_length() - 1, 0))
        parts = nest.scratch(2 * tasks, "int64")
        with nest.parallel(tasks, x.size, "task") as task:
            start = tirx.min(task * CHUNK, x.size - count)
            found = nest.scratch(2 * lanes, "int64")
            _clear(found, 0, lanes)

            def take(at: Expr, width: int) -> None:
                number = nest.cast(x[_place(start + at, width)], "int64", width)
                low = high = number
                if ignored is not None:
                    skip = tirx.EQ(number, _spread(ignored, width))
                    low, high = (nest.select(skip, _spread(n, width), number) for n in NONE)
                _combine(found, 0, low, high, width)

            in_vectors(count, take, lanes)
            parts.store(2 * task, _whole(found, 0, lanes, "smin"))
            parts.store(2 * task + 1, _whole(found, lanes, lanes, "smax"))
        _clear(out, 0, 1)
        with nest.serial(tasks, "part") as part:
            _combine(out, 0, parts[2 * part], parts[2 * part + 1], 1)
    return f.result
