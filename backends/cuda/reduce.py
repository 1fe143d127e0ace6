"""Reductions: those without an order (maxima, integer sums) and float sums in their written one.

What is reduced is given as (results, count, element): element(result, k) computes element k of a
result. Where neighbouring k stand side by side in memory a team of threads takes one result, where
neighbouring results do, a thread takes one: either way a warp reads whole lines. A reduction with
few results is cut into slices, whose partial results a second launch brings together.

A float sum has one order on every target (`sqcompile.ops.reduce`): chunks of 1024 in 16 lanes,
which are a team of 16 threads, or 16 registers of one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt, prod

from tvm import tirx

from sqcompile.backends.cuda import grid
from sqcompile.backends.cuda.grid import WARP, Array, Expr, Team
from sqcompile.backends.cuda.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.backends.strides import broadcast, merge
from sqcompile.ops.reduce import CHUNK, LANES

ENOUGH_THREADS = 1 << 16
"""Threads that keep a GPU busy: with fewer results a reduction is cut into slices."""
LEAST_STEPS = 16
"""Elements that a thread of a slice takes at least."""
FEW_TEAMS = 1 << 11
"""Below so many results the chunks of a float sum have teams of their own."""


@dataclass(frozen=True)
class Fold:
    """A reduction without an order: a commutative `combine` that begins with `initial`."""

    dtype: str
    initial: int
    combine: Callable[[Expr, Expr], Expr]

    def start(self) -> Array:
        """An accumulator."""
        held = grid.slots(1, self.dtype)
        held.store(0, grid.const(self.initial, self.dtype))
        return held

    def take(self, held: Array, value: Expr) -> None:
        """One more value."""
        held.store(0, self.combine(held[0], value))


LARGEST = Fold("int32", 0, tirx.max)
"""Of magnitudes, as the bits of floats without their sign."""
TOTAL = Fold("int64", 0, lambda a, b: a + b)

Element = Callable[[Expr, Expr], Sequence[Expr]]
"""element(result, k) -> a value for each fold."""
Store = Callable[[Expr, Sequence[Expr]], None]
"""store(result, value of each fold), in one thread."""


@dataclass(frozen=True)
class Reduced:
    """The walk of a reduction over `axes` of `shape`: results, how many elements each has, and the
    steps of operands, which broadcast to the shape. `columns`: neighbouring results stand side by
    side in the first operand, which is the tensor itself."""

    kept: list[int]
    gone: list[int]
    kept_steps: list[list[int]]
    gone_steps: list[list[int]]

    @classmethod
    def of(cls, shape: Sequence[int], axes: Sequence[int], *others: Sequence[int]) -> "Reduced":
        """Operands: the tensor, then those of the shapes `others`."""
        steps = [broadcast(shape, one) for one in (shape, *others)]
        parts = []
        for side in ([a for a in range(len(shape)) if a not in axes], sorted(axes)):
            parts.append(merge([shape[a] for a in side], [[s[a] for a in side] for s in steps]))
        (kept, kept_steps), (gone, gone_steps) = parts
        return cls(kept, gone, kept_steps, gone_steps)

    @property
    def results(self) -> int:
        """How many results there are."""
        return prod(self.kept)

    @property
    def count(self) -> int:
        """How many elements each has."""
        return prod(self.gone)

    @property
    def columns(self) -> bool:
        """Whether neighbouring results stand side by side."""
        return self.kept_steps[0][-1] == 1 and self.kept[-1] > 1

    def places(self, result: Expr, k: Expr) -> list[Expr]:
        """Where element k of a result lies in every operand."""
        outer, inner = grid.unravel(result, self.kept), grid.unravel(k, self.gone)
        return [
            grid.linear(inner, gone, grid.linear(outer, kept))
            for kept, gone in zip(self.kept_steps, self.gone_steps, strict=True)
        ]


def folded(
    results: int, count: int, columns: bool, folds: Sequence[Fold], element: Element, store: Store
) -> None:
    """Reduce in one launch, or in two where the results are few."""
    if not results:
        return
    slices = _slices(results, count, columns)
    run = _by_thread if columns else _by_team
    if slices == 1:
        run(results, 1, count, folds, element, store)
        return
    partial = [grid.workspace(results * slices, fold.dtype) for fold in folds]

    def place(result: Expr, part: Expr) -> Expr:
        return part * results + result if columns else result * slices + part

    def put(item: Expr, values: Sequence[Expr]) -> None:
        for memory, value in zip(partial, values, strict=True):
            memory.store(item, value)

    def again(result: Expr, k: Expr) -> Sequence[Expr]:
        return [memory[place(result, k)] for memory in partial]

    run(results, slices, count, folds, element, put)
    run(results, 1, slices, folds, again, store)


def _slices(results: int, count: int, columns: bool) -> int:
    """Parts of a result that have threads of their own. One thread brings those of a column
    together, so that there are no more of them than each has elements."""
    width = 1 if columns else WARP
    steps = -(-count // width)
    most = min(steps // LEAST_STEPS, isqrt(steps)) if columns else steps // LEAST_STEPS
    return max(1, min(-(-ENOUGH_THREADS // (results * width)), most))


def _by_thread(
    results: int, slices: int, count: int, folds: Sequence[Fold], element: Element, store: Store
) -> None:
    """A thread for each slice of a result; item = slice * results + result."""
    length = -(-count // slices)

    def emit(item: Expr) -> None:
        held = [fold.start() for fold in folds]
        result, first = item, grid.zero("int32")
        if slices > 1:
            result, first = tirx.floormod(item, results), tirx.floordiv(item, results) * length
        end = tirx.min(first + length, grid.const(count, "int32")) if slices > 1 else count
        with grid.serial(end, "k", first) as k:
            for fold, one, value in zip(folds, held, element(result, k), strict=True):
                fold.take(one, value)
        store(item, [one[0] for one in held])

    grid.each(results * slices, emit)


def _by_team(
    results: int, slices: int, count: int, folds: Sequence[Fold], element: Element, store: Store
) -> None:
    """A warp for each slice of a result; item = result * slices + slice."""
    length = -(-count // (slices * WARP)) * WARP

    def emit(item: Expr, team: Team) -> None:
        result, first = item, grid.zero("int32")
        if slices > 1:
            result, first = tirx.floordiv(item, slices), tirx.floormod(item, slices) * length
        end = tirx.min(first + length, grid.const(count, "int32")) if slices > 1 else count
        values = team_folded(
            team, end, folds, lambda k: element(result, k), first if slices > 1 else 0
        )
        with team.first():
            store(item, values)

    grid.teams(results * slices, WARP, emit)


def team_folded(
    team: Team,
    count: Expr,
    folds: Sequence[Fold],
    element: Callable[[Expr], Sequence[Expr]],
    start: Expr = 0,
) -> list[Expr]:
    """The reductions of elements start .. count - 1, in every thread of a team."""
    held = [fold.start() for fold in folds]

    def take(k: Expr) -> None:
        for fold, one, value in zip(folds, held, element(k), strict=True):
            fold.take(one, value)

    team.along(count, take, start)
    return [team.joined(one[0], fold.combine) for fold, one in zip(folds, held, strict=True)]


def _add(a: Expr, b: Expr) -> Expr:
    return a + b


def team_sum(team: Team, count: int, element: Callable[[Expr], Expr]) -> Expr:
    """The ordered float sum of element(0 .. count - 1), in every thread of a team of 16."""
    total = grid.slots(1, "float32")
    total.store(0, grid.const(0.0, "float32"))

    def chunk(first: Expr, end: Expr) -> None:
        total.store(0, total[0] + _chunk(team, first, end, element))

    if count <= CHUNK:
        chunk(0, count)
    else:
        with grid.serial(-(-count // CHUNK), "chunk") as index:
            first = index * CHUNK
            chunk(first, tirx.min(first + CHUNK, grid.const(count, "int32")))
    return total[0]


def _chunk(team: Team, first: Expr, end: Expr, element: Callable[[Expr], Expr]) -> Expr:
    """The sum of one chunk: the lanes are those of the team."""
    lane = grid.slots(1, "float32")
    lane.store(0, grid.const(0.0, "float32"))
    team.along(end, lambda k: lane.store(0, lane[0] + element(k)), first)
    return team.joined(lane[0], _add)


def ordered(
    results: int,
    count: int,
    columns: bool,
    element: Callable[[Expr, Expr], Expr],
    store: Callable[[Expr, Expr], None],
) -> None:
    """Ordered float sums: store(result, sum) in one thread."""
    if not results:
        return
    chunks = max(1, -(-count // CHUNK))
    if chunks == 1 or results >= FEW_TEAMS:
        (_sums_by_thread if columns else _sums_by_team)(results, 1, count, element, store)
        return
    partial = grid.workspace(results * chunks, "float32")
    run = _sums_by_thread if columns else _sums_by_team
    run(results, chunks, count, element, partial.store)

    def finish(result: Expr) -> None:
        total = grid.slots(1, "float32")
        total.store(0, grid.const(0.0, "float32"))
        with grid.serial(chunks, "chunk") as chunk:
            place = chunk * results + result if columns else result * chunks + chunk
            total.store(0, total[0] + partial[place])
        store(result, total[0])

    grid.each(results, finish)


def _sums_by_team(
    results: int,
    chunks: int,
    count: int,
    element: Callable[[Expr, Expr], Expr],
    store: Callable[[Expr, Expr], None],
) -> None:
    """A team for every result, or for every chunk of one; item = result * chunks + chunk."""

    def emit(item: Expr, team: Team) -> None:
        if chunks == 1:
            total = team_sum(team, count, lambda k: element(item, k))
        else:
            result, first = tirx.floordiv(item, chunks), tirx.floormod(item, chunks) * CHUNK
            end = tirx.min(first + CHUNK, grid.const(count, "int32"))
            total = _chunk(team, first, end, lambda k: element(result, k))
        with team.first():
            store(item, total)

    grid.teams(results * chunks, LANES, emit)


def _sums_by_thread(
    results: int,
    chunks: int,
    count: int,
    element: Callable[[Expr, Expr], Expr],
    store: Callable[[Expr, Expr], None],
) -> None:
    """A thread for every result, or for every chunk of one; item = chunk * results + result."""

    def emit(item: Expr) -> None:
        lanes = grid.slots(LANES, "float32")
        total = grid.slots(1, "float32")
        total.store(0, grid.const(0.0, "float32"))
        result = item if chunks == 1 else tirx.floormod(item, results)
        own = -(-count // CHUNK) if chunks == 1 else 1

        def chunk(first: Expr) -> None:
            for lane in range(LANES):
                lanes.store(lane, grid.const(0.0, "float32"))
            whole = tirx.min(count - first, grid.const(CHUNK, "int32"))
            with grid.serial(tirx.floordiv(whole + LANES - 1, LANES), "step") as step:
                for lane in range(LANES):
                    k = first + step * LANES + lane
                    with grid.when(k < count):
                        lanes.store(lane, lanes[lane] + element(result, k))
            half = LANES // 2
            while half:
                for lane in range(half):
                    lanes.store(lane, lanes[lane] + lanes[lane + half])
                half //= 2
            total.store(0, total[0] + lanes[0])

        if chunks > 1:
            chunk(tirx.floordiv(item, results) * CHUNK)
        else:
            with grid.serial(own, "chunk") as index:
                chunk(index * CHUNK)
        store(item, total[0])

    grid.each(results * chunks, emit)


@KERNELS.kernel("sq::ordered_sum")
def ordered_sum(spec: KernelSpec) -> object:
    """Teams of 16 threads along what is reduced, or threads along what is kept."""
    with grid.function(spec) as f:
        x, (out,) = f["x"], f.outputs
        walk = Reduced.of(x.shape, spec["axes"])
        count = prod(x.shape[axis] for axis in spec["axes"])

        def element(result: Expr, k: Expr) -> Expr:
            return x[walk.places(result, k)[0]]

        ordered(out.size, count, walk.columns, element, out.store)
    return f.result


@KERNELS.kernel(
    "aten::sum.default",
    "aten::sum.dim_IntList",
    limit=lambda spec: _refused(spec.tensor("self").dtype, spec.outputs[0].dtype),
)
def integer_sum(spec: KernelSpec) -> object:
    """Sums of integers and truth values, as int64."""
    with grid.function(spec) as f:
        x, (out,) = f["self"], f.outputs
        rank = len(x.shape)
        axes = sorted({axis % rank for axis in (spec.get("dim") or range(rank))}) if rank else []
        walk = Reduced.of(x.shape, axes)
        count = prod(x.shape[axis] for axis in axes)

        def element(result: Expr, k: Expr) -> Sequence[Expr]:
            return [grid.cast(x[walk.places(result, k)[0]], "int64")]

        def store(result: Expr, values: Sequence[Expr]) -> None:
            out.store(result, values[0])

        folded(out.size, count, walk.columns, [TOTAL], element, store)
    return f.result


def _refused(source: str, result: str) -> str:
    return "" if result == "int64" and "float" not in source else f"a sum of {source} as {result}"
