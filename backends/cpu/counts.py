"""Sums of integers and truth values, which have no order: results in parallel."""

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.sweep import contiguous, in_vectors, merge
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec


def _limit(spec: KernelSpec) -> str:
    source, result = spec.tensor("self").dtype, spec.outputs[0].dtype
    return "" if result == "int64" and "float" not in source else f"a sum of {source} as {result}"


@KERNELS.kernel("aten::sum.default", "aten::sum.dim_IntList", limit=_limit)
def integer_sum(spec: KernelSpec) -> object:
    """Vectors of results where what is kept is innermost, vectors of what is reduced elsewhere."""
    with nest.function(spec) as f:
        x, (out,) = f["self"], f.outputs
        rank, own = len(x.shape), contiguous(x.shape)
        axes = sorted({axis % rank for axis in (spec.get("dim") or range(rank))}) if rank else []
        others = [axis for axis in range(rank) if axis not in axes]
        reduced, (read,) = merge([x.shape[a] for a in axes], [[own[a] for a in axes]])
        kept, (keep,) = merge([x.shape[a] for a in others], [[own[a] for a in others]])
        inner = kept.pop() if keep[-1] == 1 and kept[-1] > 1 else 1
        keep = keep[: len(kept)]
        count = out.size // inner
        with nest.parallel(count, x.size, "row") as row:
            start = nest.linear(nest.unravel(row, kept), keep) if kept else 0

            def results(at: Expr, lanes: int) -> None:
                total = _zeros(lanes)
                with nest.loops(reduced, "k") as place, nest.lanes(count=lanes) as lane:
                    value = x[nest.linear(place, read, start) + at + lane]
                    total.store(lane, total[lane] + nest.cast(value, "int64"))
                with nest.lanes(count=lanes) as lane:
                    out.store(row * inner + at + lane, total[lane])

            if inner > 1:
                in_vectors(inner, results)
            else:
                out.store(row, _whole(x, start, reduced, read))
    return f.result


def _zeros(lanes: int) -> Array:
    total = nest.scratch(lanes, "int64")
    with nest.lanes(count=lanes) as lane:
        total.store(lane, nest.zero("int64"))
    return total


def _whole(x: Array, start: Expr, reduced: list[int], read: list[int]) -> Expr:
    """One sum: sixteen by sixteen along the last axis, and the rest one by one."""
    *heads, last = reduced
    *steps, step = read
    lanes = nest.LANES
    total = _zeros(lanes)
    with nest.loops(heads, "k") as place:
        begin = nest.linear(place, steps, start)
        if last // lanes:
            with nest.serial(last // lanes, "v") as v, nest.lanes(count=lanes) as lane:
                value = x[begin + (v * lanes + lane) * step]
                total.store(lane, total[lane] + nest.cast(value, "int64"))
        if last % lanes:
            with nest.serial(last, "tail", last - last % lanes) as k:
                total.store(0, total[0] + nest.cast(x[begin + k * step], "int64"))
    return tirx.call_llvm_pure_intrin("int64", "llvm.vector.reduce.add", total[nest.ramp(0, lanes)])
