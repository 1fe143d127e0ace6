"""Matrix products with group shifts, with and without their epilogue."""

from math import prod

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.dot import ROWS, Accumulator, Panel, blocked, product
from sqcompile.backends.cpu.epilogue import Epilogue
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.sweep import broadcast
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec

ROW_BLOCK, COLUMN_BLOCK = 64, 64
"""Results that one task computes."""
STRIP = 16
"""Rows that one task transposes: as many streams are read as a cache line holds bytes / 4."""


def shift_of(exponent: Array | None, groups: int, index: Expr) -> Expr | None:
    """groups - 1 - exponent[index] as int32, None without an exponent."""
    if exponent is None:
        return None
    return nest.const(groups - 1, "int32") - nest.cast(exponent[index], "int32")


def shifted(value: Expr, shift: Expr | None) -> Expr:
    """An int8 or uint8 value as int32, shifted left."""
    wide = nest.cast(value, "int32")
    return wide if shift is None else tirx.shift_left(wide, shift)


class _Sizes:
    """The sizes of batch x [rows, depth] @ [depth, columns] and their blocks."""

    def __init__(self, spec: KernelSpec) -> None:
        a = spec.tensor("a").shape
        self.transpose_a, self.transpose_b = spec["transpose_a"], spec["transpose_b"]
        *batch, self.rows, self.columns = spec.outputs[0].shape
        self.batch = prod(batch)
        self.depth = a[-2] if self.transpose_a else a[-1]
        self.row_blocks, self.row_block = blocked(self.rows, ROW_BLOCK, ROWS)
        self.column_blocks, self.column_block = blocked(self.columns, COLUMN_BLOCK, LANES)
        self.padded_rows = self.row_blocks * self.row_block
        self.padded_columns = self.column_blocks * self.column_block


def _pack(
    source: Array,
    out: Array,
    lines: tuple[int, int, int],
    swapped: bool,
    shift: tuple[Array, int] | None,
) -> None:
    """out[batch][line][place] = source, zeros where place or line lies beyond the source.

    lines = (batch, padded lines, padded places); swapped: source is [place][line].
    """
    batch, height, width = lines
    rank = len(source.shape)
    high, wide = source.shape[-2:][::-1] if swapped else source.shape[-2:]
    size = high * wide
    steps = [0] * rank
    if shift is not None:
        steps = broadcast(source.shape, shift[0].shape)
    batch_step = steps[0] if rank == 3 else 0
    line_step, place_step = (steps[-1], steps[-2]) if swapped else (steps[-2], steps[-1])

    def value(b: Expr, line: Expr, place: Expr) -> Expr:
        at = place * high + line if swapped else line * wide + place
        read = source[b * size + at]
        if shift is None:
            return nest.cast(read, out.dtype)
        where = nest.linear([b, line, place], [batch_step, line_step, place_step])
        return shifted(read, shift_of(shift[0], shift[1], where))

    def fill(b: Expr, line: Expr, first: int, last: int) -> None:
        with nest.serial(last - first, "pad") as p:
            out.store((b * height + line) * width + first + p, nest.zero(out.dtype))

    strips = -(-height // STRIP)
    with nest.parallel(batch * strips, batch * height * width, "strip") as task:
        b, strip = tirx.floordiv(task, strips), tirx.floormod(task, strips)
        begin = strip * STRIP
        inside = tirx.max(tirx.min(STRIP, high - begin), 0)
        if swapped:
            with nest.serial(wide, "place") as place, nest.serial(inside, "line") as line:
                out.store(
                    (b * height + begin + line) * width + place, value(b, begin + line, place)
                )
        else:
            with nest.serial(inside, "line") as line, nest.serial(wide, "place") as place:
                out.store(
                    (b * height + begin + line) * width + place, value(b, begin + line, place)
                )
        if width > wide:
            with nest.serial(inside, "line") as line:
                fill(b, begin + line, wide, width)
        if height > high:
            end = tirx.min(STRIP, height - begin)
            with nest.serial(end, "line", inside) as line:
                fill(b, begin + line, 0, width)


@KERNELS.kernel("sq::shift_matmul", "sq::shift_matmul_dequantize")
def shift_matmul(spec: KernelSpec) -> object:
    """Packs both operands (a with its shifts as int32 rows, b as int16 columns), then computes
    blocks of ROW_BLOCK x COLUMN_BLOCK results in parallel."""
    with nest.function(spec) as f:
        sizes, epilogue = _Sizes(spec), Epilogue(spec, f)
        a, b, exponent = f["a"], f["b"], f.get("exponent")
        depth = sizes.depth
        left = nest.scratch(sizes.batch * sizes.padded_rows * depth, "int32")
        right = nest.scratch(sizes.batch * depth * sizes.padded_columns, "int16")
        shift = None if exponent is None else (exponent, spec["groups"])
        _pack(a, left, (sizes.batch, sizes.padded_rows, depth), sizes.transpose_a, shift)
        _pack(b, right, (sizes.batch, depth, sizes.padded_columns), sizes.transpose_b, None)
        tasks = sizes.batch * sizes.row_blocks * sizes.column_blocks
        work = sizes.batch * sizes.padded_rows * sizes.padded_columns * (depth + 1)
        with nest.parallel(tasks, work, "block") as task:
            places = [sizes.batch, sizes.row_blocks, sizes.column_blocks]
            batch, i, j = nest.unravel(task, places)
            row, column = i * sizes.row_block, j * sizes.column_block
            acc = Accumulator.of(sizes.row_block, sizes.column_block, spec["k_chunk"])
            acc.clear()
            product(
                Panel(left, (batch * sizes.padded_rows + row) * depth, depth),
                Panel(
                    right,
                    batch * depth * sizes.padded_columns + column,
                    sizes.padded_columns,
                ),
                acc,
                sizes.row_block,
                sizes.column_block,
                depth,
            )
            height = tirx.min(sizes.row_block, sizes.rows - row)
            width = tirx.min(sizes.column_block, sizes.columns - column)
            with nest.serial(height, "row") as r:
                at = [batch, row + r, column] if len(a.shape) == 3 else [row + r, column]
                epilogue.row(acc.array, r * acc.stride, at, width)
    return f.result
