"""A correlation as a TIR function over tiles.

    padded = inp with zeros around                                          scope local.inp_buffer
    acc[o, y, x] += padded[p, y', x'] @ wgt[o, p, r, s].T                   scope local.acc_buffer
    out[n, o, y, x] = acc[o, y, x] >> n * OUT's width              of max(acc, 0) with a ReLU

Every buffer ends in the two axes of a tile. Results of an axis are q * step + phase, and where a
phase reads follows from it (conv_geometry.Lines). Planes stand in runs: before the first product of
a run the accumulators shift as the correlation's segments say.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from sqcompile.backends.conv_geometry import Lines
from sqcompile.backends.vta.correlation import Correlation, Run
from sqcompile.backends.vta.cuts import taps_of
from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.tir.names import ACC, INP, PAD, PADDED, PRODUCT, STORE, SUMS, TILE_AXES

Expr = Any
Buffer = Any

SPATIAL = ("g", "i", "o", "q", "e", "z", "f")
"""Loops of a product over results: group, image, output, row, its phase, column, its phase."""
REDUCED = ("d", "p", "r", "s")
"""Loops of a product over what is summed: run, plane, row tap, column tap."""


class Tables:
    """Functions of a phase or a run: affine where that is enough, else read from a buffer."""

    def __init__(self) -> None:
        self.values: list[int] = []
        self.buffer: Buffer = None

    def of(self, index: Expr, values: Sequence[int], bounded: bool = True) -> Expr:
        """values[index]. What is read from memory is clamped where its bounds matter: an index's
        do, as the schedule has to know which tiles a chunk reads."""
        step = values[1] - values[0] if len(values) > 1 else 0
        if all(value == values[0] + step * i for i, value in enumerate(values)):
            return values[0] + index * step if step else tirx.const(values[0], "int32")
        first = len(self.values)
        self.values += values
        if not bounded:
            return self.buffer[first + index]
        low, high = (tirx.const(bound(values), "int32") for bound in (min, max))
        return tirx.min(tirx.max(self.buffer[first + index], low), high)


class _Axis(NamedTuple):
    """An axis of results, with the values of each of `step` phases; `before` zeros are before its
    source, which has `padded` lines with all zeros."""

    lines: Lines
    taps: list[int]
    offsets: list[int]
    kernels: list[int]
    before: int
    padded: int

    @property
    def most_taps(self) -> int:
        """Of a phase."""
        return max(1, *self.taps)


def _axis(lines: Lines) -> _Axis:
    """Zeros are as many as all taps of all phases read: what a phase does not have is cut off where
    it is computed."""
    some = [phase for phase in lines.phases if phase.taps and phase.count]
    met = {phase.first: phase for phase in some}
    phases = range(lines.step)
    offsets = [met[e].offset if e in met else some[0].offset if some else 0 for e in phases]
    kernels = [met[e].kernel if e in met else some[0].kernel if some else 0 for e in phases]
    reach = max(0, lines.count - 1) * lines.stride + (max(1, taps_of(lines)) - 1) * lines.spacing
    before = max(0, -min(offsets))
    after = max(0, max(offsets) + reach + 1 - lines.source)
    taps = [met[e].taps if e in met else 0 for e in phases]
    return _Axis(lines, taps, offsets, kernels, before, before + lines.source + after)


def function(hardware: Hardware, of: Correlation) -> tuple[Any, list[int]]:
    """The PrimFunc of (inp, wgt, tables, out), and the values of `tables`. Integers have the
    accelerator's widths; out has an axis of slices first."""
    tables = Tables()
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("correlation")
        inp = _argument("inp", hardware, Memory.INP, of.inp_shape)
        wgt = _argument("wgt", hardware, Memory.WGT, of.wgt_shape)
        tables.buffer = T.arg("tables", T.buffer((tirx.Var("entries", "int32"),), "int32"))
        slices = of.slices(hardware.width(Memory.OUT))
        out = _argument("out", hardware, Memory.OUT, (slices, *of.result_shape))
        rows, columns = _axis(of.rows), _axis(of.columns)
        shape = (*of.inp_shape[:3], rows.padded, columns.padded)
        padded = _scratch(PADDED, hardware, Memory.INP, shape, INP)
        acc = _scratch(SUMS, hardware, Memory.ACC, of.result_shape, ACC)
        _pad(padded, inp, rows, columns)
        _product(hardware, of, _Operands(acc, padded, wgt), (rows, columns), tables)
        _store(hardware, out, acc, of.relu)
    return builder.get(), tables.values


def tile(hardware: Hardware, memory: Memory) -> tuple[int, int]:
    """Rows and columns of a tile."""
    return (hardware.block if memory is Memory.WGT else hardware.batch), hardware.block


def dtype(hardware: Hardware, memory: Memory) -> str:
    """Of a tile's elements."""
    return f"int{hardware.width(memory)}"


def _argument(name: str, hardware: Hardware, memory: Memory, shape: Sequence[int]) -> Buffer:
    whole = (*shape, *tile(hardware, memory))
    return T.arg(name, T.buffer(whole, dtype(hardware, memory)))


def _scratch(
    name: str, hardware: Hardware, memory: Memory, shape: Sequence[int], scope: str
) -> Buffer:
    whole = (*shape, *tile(hardware, memory))
    buffer = T.sblock_alloc_buffer(whole, dtype(hardware, memory), scope=scope)
    IRBuilder.name(name, buffer)
    return buffer


class _Operands(NamedTuple):
    acc: Buffer
    padded: Buffer
    wgt: Buffer


@contextmanager
def block(
    name: str, kinds: str, names: Sequence[str], extents: Sequence[int]
) -> Iterator[list[Expr]]:
    """A block in loops of its own, an axis of it for each: spatial (S) or reduced (R)."""
    with T.grid(*extents) as loops:
        loops = list(loops) if len(extents) > 1 else [loops]
        for loop, given in zip(loops, names, strict=True):
            IRBuilder.name(given, loop)
        with T.sblock(name):
            axes = T.axis.remap(kinds, loops)
            axes = list(axes) if len(extents) > 1 else [axes]
            for axis, given in zip(axes, names, strict=True):
                IRBuilder.name(f"v{given}", axis)
            yield axes


def _pad(padded: Buffer, inp: Buffer, rows: _Axis, columns: _Axis) -> None:
    names = ("g", "i", "p", "y", "x", "b", "k")
    with block(PAD, "S" * 7, names, list(map(int, padded.shape))) as at:
        inside = []
        source = list(at)
        for number, axis in ((3, rows), (4, columns)):
            source[number] = at[number] - axis.before if axis.before else at[number]
            if axis.before:
                inside.append(at[number] >= axis.before)
            if axis.padded > axis.before + axis.lines.source:
                inside.append(at[number] < axis.before + axis.lines.source)
        value = inp[tuple(source)]
        if inside:
            value = T.if_then_else(every(inside), value, tirx.const(0, inp.dtype))
        T.buffer_store(padded, value, at)


class _Runs(NamedTuple):
    """Runs of planes in order: how far accumulators shift left before each, its planes, where they
    begin in inp and in wgt."""

    shifts: list[int]
    planes: list[int]
    inp: list[int]
    wgt: list[int]


def _runs(of: Correlation) -> _Runs:
    """A segment without a run is one of no planes, before which accumulators shift all the same."""
    segments = [(segment.shift, segment.runs or (Run(0, 0, 0),)) for segment in of.segments]
    runs = [run for _, some in segments for run in some]
    shifts = [0 if number else shift for shift, some in segments for number in range(len(some))]
    inp, wgt = [run.inp for run in runs], [run.wgt for run in runs]
    return _Runs(shifts, [run.planes for run in runs], inp, wgt)


def _product(
    hardware: Hardware, of: Correlation, at: _Operands, axes: tuple[_Axis, _Axis], tables: Tables
) -> None:
    (rows, columns), runs = axes, _runs(of)
    results = (of.groups, of.images, of.outputs, *_results(rows), *_results(columns))
    summed = (len(runs.planes), max(runs.planes), rows.most_taps, columns.most_taps)
    with block(PRODUCT, "SSSSSSSRRRR", SPATIAL + REDUCED, results + summed) as where:
        g, i, o, q, e, z, f, d, p, r, s = where
        y, x = _result(rows, q, e), _result(columns, z, f)
        there, result = _below(rows, y) + _below(columns, x), (g, i, o, y, x)
        with T.init(), _when(there), _tiles("clear_tile", "SS", "bn", at.acc) as (b, n):
            T.buffer_store(at.acc, tirx.const(0, "int32"), [*result, b, n])
        if any(runs.shifts):
            first, left = [tirx.EQ(v, 0) for v in (p, r, s)], tables.of(d, runs.shifts)
            with _when([*there, *first]), _tiles("shift_tile", "SS", "bn", at.acc) as (b, n):
                value = T.shift_left(at.acc[(*result, b, n)], left)
                T.buffer_store(at.acc, value, [*result, b, n])
        has = [*there, *_fewer(tables, e, r, rows.taps), *_fewer(tables, f, s, columns.taps)]
        has += _fewer(tables, d, p, runs.planes)
        down, across = _source(tables, rows, q, e, r), _source(tables, columns, z, f, s)
        source = (g, i, p + tables.of(d, runs.inp), down, across)
        taps = _kernel(tables, rows, e, r), _kernel(tables, columns, f, s)
        weight = (g, o, p + tables.of(d, runs.wgt), *taps)
        with _when(has):
            _product_of_tiles(hardware, at, result, source, weight)


def _product_of_tiles(
    hardware: Hardware,
    at: _Operands,
    result: Sequence[Expr],
    source: Sequence[Expr],
    weight: Sequence[Expr],
) -> None:
    lanes = (hardware.batch, hardware.block, hardware.block)
    with block("product_tile", "SSR", "bnk", lanes) as (b, n, k):
        factors = at.padded[(*source, b, k)], at.wgt[(*weight, n, k)]
        # Said, or what indices read of the tables would count: no intrinsic reads such.
        T.reads([at.acc[(*result, b, n)], *factors])
        T.writes([at.acc[(*result, b, n)]])
        wide = [T.Cast("int32", factor) for factor in factors]
        T.buffer_store(at.acc, at.acc[(*result, b, n)] + wide[0] * wide[1], [*result, b, n])


def _store(hardware: Hardware, out: Buffer, acc: Buffer, relu: bool) -> None:
    names = ("n", "g", "i", "o", "y", "x", "b", "c")
    with block(STORE, "S" * 8, names, list(map(int, out.shape))) as (number, *at):
        value = acc[tuple(at)]
        if relu:
            value = T.max(value, tirx.const(0, "int32"))
        width = hardware.width(Memory.OUT)
        if width < hardware.width(Memory.ACC):
            if int(out.shape[0]) > 1:
                value = T.shift_right(value, number * width)
            value = T.Cast(dtype(hardware, Memory.OUT), value)
        T.buffer_store(out, value, [number, *at])


def _results(axis: _Axis) -> tuple[int, int]:
    """Results of a phase, phases."""
    return max(1, axis.lines.count), axis.lines.step


def _result(axis: _Axis, q: Expr, phase: Expr) -> Expr:
    return q if axis.lines.step == 1 else q * axis.lines.step + phase


def _below(axis: _Axis, result: Expr) -> list[Expr]:
    """Conditions under which there is a result."""
    count, step = _results(axis)
    return [result < axis.lines.results] if count * step > axis.lines.results else []


def _fewer(tables: Tables, index: Expr, number: Expr, counts: list[int]) -> list[Expr]:
    """number < counts[index], where that is not always so."""
    return (
        []
        if len(set(counts)) == 1 and counts[0]
        else [number < tables.of(index, counts, bounded=False)]
    )


def _source(tables: Tables, axis: _Axis, q: Expr, phase: Expr, tap: Expr) -> Expr:
    first = tables.of(phase, [offset + axis.before for offset in axis.offsets])
    return _times(q, axis.lines.stride) + _times(tap, axis.lines.spacing) + first


def _kernel(tables: Tables, axis: _Axis, phase: Expr, tap: Expr) -> Expr:
    return _times(tap, axis.lines.kernel_step) + tables.of(phase, axis.kernels)


def _times(value: Expr, factor: int) -> Expr:
    return value if factor == 1 else value * factor


def _tiles(name: str, kinds: str, names: str, buffer: Buffer) -> Any:
    return block(name, kinds, names, list(map(int, buffer.shape[-TILE_AXES:])))


@contextmanager
def _when(conditions: Sequence[Expr]) -> Iterator[None]:
    if not conditions:
        yield
        return
    with T.If(every(conditions)), T.Then():
        yield


def every(conditions: Sequence[Expr]) -> Expr:
    """All of the conditions, true where there is none."""
    if not conditions:
        return tirx.const(True, "bool")
    found, *others = conditions
    for one in others:
        found = tirx.And(found, one)
    return found
