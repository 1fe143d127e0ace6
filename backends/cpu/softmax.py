"""softmax and log_softmax of rows: a row is read from memory once and written once.

The exponentials of a row stay in the L1 cache until their sum is known. A row's end is a vector
like the others (`sqcompile.backends.cpu.rows`).
"""

from tvm import tirx

from sqcompile.backends import functions
from sqcompile.backends.cpu import nest, rows
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.rounding import cast, rounded
from sqcompile.backends.cpu.rows import keep, read, spread
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.functions import product
from sqcompile.backends.kernels import KernelSpec
from sqcompile.ops.quantize import limits

LOWEST = -float("inf")


def _float(value: float) -> Expr:
    return nest.const(value, "float32")


def _rows(x: Array) -> tuple[int, int]:
    length = x.shape[-1]
    return (x.size // length if length else 0), length


def _row_of_scratch(length: int) -> Array:
    """Room for a row in whole vectors."""
    size = -(-length // LANES) * LANES
    return nest.workspace(max(size, nest.STACK // 4), "float32")


def _base(x: Array, start: Expr, length: int) -> Expr:
    """What a row is lowered by: its maximum, or 0 when that is -inf."""

    def load(at: Expr, last: bool) -> Expr:
        return rows.end(x, start, length, LOWEST) if last else rows.whole(x, start + at)

    most = rows.largest(length, load)
    return keep(nest.select(tirx.EQ(most, _float(LOWEST)), _float(0.0), most))


def _exponentials(x: Array, start: Expr, length: int, base: Expr, e: Array | None) -> Expr:
    """The sum of exp(x - base) over a row; e, where given, holds them."""

    def value(at: Expr, last: bool) -> Expr:
        loaded = rows.end(x, start, length, LOWEST) if last else rows.whole(x, start + at)
        one = keep(functions.exp(loaded - nest.splat(base), keep))
        if e is not None:
            e.store(nest.ramp(at), one)
        return one

    return rows.ordered_sum(length, value)


def _row(x: Array, start: Expr, length: int) -> tuple[Array, Expr, Expr]:
    """The exponentials of a row, their sum, and whether all of the row is masked."""
    e = _row_of_scratch(length)
    total = keep(_exponentials(x, start, length, _base(x, start, length), e))
    return e, total, tirx.EQ(total, _float(0.0))


@KERNELS.kernel("sq::softmax")
def softmax(spec: KernelSpec) -> object:
    """Maximum, exponentials with their sum, product with its inverse."""
    with nest.function(spec) as f:
        x, (out,) = f["x"], f.outputs
        count, length = _rows(x)
        if count:
            with rows.each_row(count, length) as row:
                start = row * length
                e, total, none = _row(x, start, length)
                inverse = keep(nest.select(none, _float(0.0), _float(1.0) / total))
                rows.store(
                    length,
                    out,
                    start,
                    lambda at, lanes: read(e, at, lanes) * spread(inverse, lanes),
                )
    return f.result


@KERNELS.kernel("sq::softmax_backward")
def softmax_backward(spec: KernelSpec) -> object:
    """The sum of products, then the row once more, from the cache."""
    with nest.function(spec) as f:
        g, y, (dx,) = f["g"], f["y"], f.outputs
        count, length = _rows(y)
        if count:
            with rows.each_row(count, length) as row:
                start = row * length

                def value(at: Expr, last: bool) -> Expr:
                    if last:
                        pair = [rows.end(one, start, length, 0.0) for one in (g, y)]
                    else:
                        pair = [rows.whole(one, start + at) for one in (g, y)]
                    return product(*pair)

                total = keep(rows.ordered_sum(length, value))

                def gradient(at: Expr, lanes: int) -> Expr:
                    above = read(g, start + at, lanes) - spread(total, lanes)
                    return above * read(y, start + at, lanes)

                rows.store(length, dx, start, gradient)
    return f.result


@KERNELS.kernel("sq::softmax_quantize")
def softmax_quantize(spec: KernelSpec) -> object:
    """Maximum, exponentials with their sum, then their integers: the rounder's sum has them in its
    low bits, and none is above qmax."""
    highest = limits(spec["bits"], spec["signed"])[1]
    with nest.function(spec) as f:
        x, (q, scale) = f["x"], f.outputs
        count, length = _rows(x)
        if count:
            with rows.each_row(count, length) as row:
                start = row * length
                e, total, none = _row(x, start, length)
                inverse = _float(1.0) / (total * _float(highest))
                scale.store(row, nest.select(none, _float(0.0), inverse))

                def levels(at: Expr, lanes: int) -> Expr:
                    return cast(rounded(functions.times(read(e, at, lanes), highest)), q.dtype)

                rows.store(length, q, start, levels)
    return f.result


@KERNELS.kernel("sq::softmax_quantized_backward")
def softmax_quantized_backward(spec: KernelSpec) -> object:
    """The sums of products and of integers, then the row once more, from the cache."""
    with nest.function(spec) as f:
        g, q, scale, (dx,) = f["g"], f["q"], f["scale"], f.outputs
        count, length = _rows(q)
        if count:
            with rows.each_row(count, length) as row:
                start = row * length
                counts = nest.scratch(LANES, "int32")
                counts.store(nest.ramp(0), nest.splat(nest.zero("int32")))

                def value(at: Expr, last: bool) -> Expr:
                    if last:
                        pair = [rows.end(one, start, length, 0) for one in (g, q)]
                    else:
                        pair = [rows.whole(one, start + at) for one in (g, q)]
                    levels = keep(cast(pair[1], "int32"))
                    counts.store(nest.ramp(0), counts[nest.ramp(0)] + levels)
                    return product(pair[0], cast(levels, "float32"))

                products = keep(rows.ordered_sum(length, value))
                levels = keep(rows.halved(counts[nest.ramp(0)], lambda a, b: a + b))
                total = nest.cast(levels, "float32")
                none = tirx.EQ(levels, nest.zero("int32"))
                mean = keep(nest.select(none, _float(0.0), products / total))
                step = keep(scale[row])

                def gradient(at: Expr, lanes: int) -> Expr:
                    above = read(g, start + at, lanes) - spread(mean, lanes)
                    y = cast(read(q, start + at, lanes), "float32") * spread(step, lanes)
                    return above * y

                rows.store(length, dx, start, gradient)
    return f.result


@KERNELS.kernel("sq::log_softmax")
def log_softmax(spec: KernelSpec) -> object:
    """Maximum, sum of exponentials, then the row once more, from the cache."""
    with nest.function(spec) as f:
        x, (out,) = f["x"], f.outputs
        count, length = _rows(x)
        if count:
            with rows.each_row(count, length) as row:
                start = row * length
                base = _base(x, start, length)
                total = keep(_exponentials(x, start, length, base, None))
                # The logarithm of a vector: scalar code would be as slow, and fences keep it so.
                logs = keep(functions.log(nest.splat(total), keep))
                shift = keep(tirx.Shuffle([logs], [tirx.const(0, "int32")]))
                rows.store(
                    length,
                    out,
                    start,
                    lambda at, lanes: (
                        (read(x, start + at, lanes) - spread(base, lanes)) - spread(shift, lanes)
                    ),
                )
    return f.result


@KERNELS.kernel("sq::log_softmax_backward")
def log_softmax_backward(spec: KernelSpec) -> object:
    """The sum of the gradient, then the row with its exponentials."""
    with nest.function(spec) as f:
        g, y, (dx,) = f["g"], f["y"], f.outputs
        count, length = _rows(y)
        if count:
            with rows.each_row(count, length) as row:
                start = row * length

                def value(at: Expr, last: bool) -> Expr:
                    return rows.end(g, start, length, 0.0) if last else rows.whole(g, start + at)

                total = keep(rows.ordered_sum(length, value))

                def gradient(at: Expr, lanes: int) -> Expr:
                    scaled = product(
                        functions.exp(read(y, start + at, lanes), keep), spread(total, lanes)
                    )
                    return read(g, start + at, lanes) - scaled

                rows.store(length, dx, start, gradient)
    return f.result
