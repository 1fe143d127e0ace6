"""softmax and log_softmax with their gradients: a team of 16 threads for each row, which are the
lanes of its float sums."""

from collections.abc import Callable, Sequence

from tvm import tirx

from sqcompile.backends import functions
from sqcompile.backends.cuda import grid
from sqcompile.backends.cuda.absmax import ordered_bits
from sqcompile.backends.cuda.grid import Array, Expr, Team
from sqcompile.backends.cuda.reduce import TOTAL, Fold, team_folded, team_sum
from sqcompile.backends.cuda.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.backends.rounding import rounded
from sqcompile.ops.quantize import limits
from sqcompile.ops.reduce import LANES

_HIGHEST = Fold("int32", -(2**31), tirx.max)
Body = Callable[[Team, Expr, int], None]
"""body(team, first element of a row, elements of a row)."""


def _rows(shape: Sequence[int], body: Body) -> None:
    """A launch with a team for every row along the last axis."""
    length = shape[-1]
    count = 1
    for size in shape[:-1]:
        count *= size
    if length:
        grid.teams(count, LANES, lambda row, team: body(team, grid.keep(row * length), length))


def _float(value: float) -> Expr:
    return grid.const(value, "float32")


def _largest(team: Team, x: Array, start: Expr, length: int) -> Expr:
    """The largest of a row, or 0 in a row of nothing but -inf."""

    def element(k: Expr) -> Sequence[Expr]:
        return [ordered_bits(grid.keep(grid.bits_of(x[start + k], "int32")))]

    (best,) = team_folded(team, length, [_HIGHEST], element)
    largest = grid.keep(grid.bits_of(ordered_bits(best), "float32"))
    masked = tirx.EQ(largest, _float(-float("inf")))
    return grid.keep(grid.select(masked, _float(0.0), largest))


def _exp(value: Expr) -> Expr:
    return grid.keep(functions.exp(grid.keep(value), grid.keep))


def _unless_zero(total: Expr, value: Expr) -> Expr:
    """value, or 0 where the total is."""
    return grid.keep(grid.select(tirx.EQ(total, _float(0.0)), _float(0.0), value))


def _exponentials(
    team: Team, x: Array, start: Expr, length: int
) -> tuple[Callable[[Expr], Expr], Expr]:
    """The exponentials of a row, each computed where it is asked for, and their sum."""
    largest = _largest(team, x, start, length)

    def value(k: Expr) -> Expr:
        return _exp(x[start + k] - largest)

    return value, grid.keep(team_sum(team, length, value))


def _each(team: Team, length: int, store: Callable[[Expr], None]) -> None:
    """store(k) of all elements of a row."""
    with team.owning():
        team.along(length, store)


@KERNELS.kernel("sq::softmax")
def softmax(spec: KernelSpec) -> object:
    """Exponentials are computed for the sum, and again for the result."""
    with grid.function(spec) as f:
        x, (out,) = f["x"], f.outputs

        def body(team: Team, start: Expr, length: int) -> None:
            value, total = _exponentials(team, x, start, length)
            inverse = _unless_zero(total, _float(1.0) / total)
            _each(team, length, lambda k: out.store(start + k, value(k) * inverse))

        _rows(x.shape, body)
    return f.result


@KERNELS.kernel("sq::softmax_backward")
def softmax_backward(spec: KernelSpec) -> object:
    """A sum of products, then an element each."""
    with grid.function(spec) as f:
        g, y, (out,) = f["g"], f["y"], f.outputs

        def body(team: Team, start: Expr, length: int) -> None:
            total = team_sum(team, length, lambda k: grid.fence(g[start + k] * y[start + k]))
            total = grid.keep(total)

            def store(k: Expr) -> None:
                out.store(start + k, grid.keep(g[start + k] - total) * y[start + k])

            _each(team, length, store)

        _rows(g.shape, body)
    return f.result


@KERNELS.kernel("sq::log_softmax")
def log_softmax(spec: KernelSpec) -> object:
    """A sum of exponentials, then an element each."""
    with grid.function(spec) as f:
        x, (out,) = f["x"], f.outputs

        def body(team: Team, start: Expr, length: int) -> None:
            largest = _largest(team, x, start, length)
            total = team_sum(team, length, lambda k: _exp(x[start + k] - largest))
            logarithm = grid.keep(functions.log(grid.keep(total), grid.keep))

            def store(k: Expr) -> None:
                out.store(start + k, grid.keep(x[start + k] - largest) - logarithm)

            _each(team, length, store)

        _rows(x.shape, body)
    return f.result


@KERNELS.kernel("sq::log_softmax_backward")
def log_softmax_backward(spec: KernelSpec) -> object:
    """A sum, then an element each."""
    with grid.function(spec) as f:
        g, y, (out,) = f["g"], f["y"], f.outputs

        def body(team: Team, start: Expr, length: int) -> None:
            total = grid.keep(team_sum(team, length, lambda k: g[start + k]))

            def store(k: Expr) -> None:
                spread = grid.fence(_exp(y[start + k]) * total)
                out.store(start + k, g[start + k] - spread)

            _each(team, length, store)

        _rows(g.shape, body)
    return f.result


@KERNELS.kernel("sq::softmax_quantize")
def softmax_quantize(spec: KernelSpec) -> object:
    """The largest exponential of a row is 1, so its integers need no absmax."""
    highest = float(limits(spec["bits"], spec["signed"])[1])
    with grid.function(spec) as f:
        x, (q, scale) = f["x"], f.outputs

        def body(team: Team, start: Expr, length: int) -> None:
            value, total = _exponentials(team, x, start, length)

            def store(k: Expr) -> None:
                level = grid.keep(value(k) * _float(highest))
                q.store(start + k, grid.cast(rounded(level), q.dtype))

            _each(team, length, store)
            with team.first():
                worth = _unless_zero(total, _float(1.0) / grid.keep(total * _float(highest)))
                scale.store(tirx.floordiv(start, length), worth)

        _rows(x.shape, body)
        if not x.shape[-1]:
            grid.each(scale.size, lambda i: scale.store(i, _float(0.0)))
    return f.result


@KERNELS.kernel("sq::softmax_quantized_backward")
def softmax_quantized_backward(spec: KernelSpec) -> object:
    """An integer sum and a float one, then an element each."""
    with grid.function(spec) as f:
        g, q, scale, (out,) = f["g"], f["q"], f["scale"], f.outputs

        def body(team: Team, start: Expr, length: int) -> None:
            def level(k: Expr) -> Expr:
                return grid.cast(q[start + k], "float32")

            total = team_sum(team, length, lambda k: grid.fence(g[start + k] * level(k)))
            total = grid.keep(total)
            (count,) = team_folded(
                team, length, [TOTAL], lambda k: [grid.cast(q[start + k], "int64")]
            )
            count = grid.keep(grid.cast(count, "float32"))
            mean = _unless_zero(count, total / count)
            worth = grid.keep(scale[tirx.floordiv(start, length)])

            def store(k: Expr) -> None:
                moved = grid.keep(g[start + k] - mean)
                out.store(start + k, moved * grid.keep(level(k) * worth))

            _each(team, length, store)

        _rows(g.shape, body)
    return f.result
