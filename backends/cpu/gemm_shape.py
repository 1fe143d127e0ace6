"""The sizes of a matrix product and of its tiles, blocks and tasks.

A tile is `rows` x `vectors` accumulators that stay in registers while k runs: 6 x 4 of 32, 5 x 2
of 16, more rows where there are fewer vectors. The last tile and the last vector of columns
overlap the ones before them instead of being cut: the same results are written twice, and one
inner loop serves every size. A panel is the columns of one tile; a block is the tiles whose rows
of a stay in the L2 cache while all panels pass by.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from sqcompile.backends.cpu.gemm_plan import INT32_LIMIT, Plan, Range
from sqcompile.backends.cpu.machine import Machine
from sqcompile.backends.kernels import KernelSpec

BLOCK_BYTES = 1 << 16
"""Rows of a in a block: a share of L2, beside the panel of b that is in use."""
LEAST_ROWS = 32
"""Rows of a block, at least: each reads all of b from L3."""
TASKS = 8
"""Parts of the work, so that a few threads get equal shares."""
ROW_BYTES = 1 << 21
"""All rows of a, when every panel passes by all of them: they come from L3, a byte a cycle."""
SEGMENT = 8192
"""Steps of k that a tile adds up in registers: its panel of b is 512 KB then, half of an L2."""
TOTAL_BYTES = 1 << 18
"""Sums over segments that a task keeps."""
WIDE = 5
"""Rows and vectors of the widest tile: 25 sums, 5 vectors and a repeated value are 31 registers."""
CLEARLY = 0.95
"""The share of dot products from which another tile pays."""
TALLEST = 12
"""Rows of a tile: as many lines of a stay in an L1 set of 8 ways, or nearly, at any stride."""
BYTES = 64
"""Bytes of a register, in which an operand of a sorted reduction is permuted."""
RUN = 4
"""Groups of `depth` values that packing takes at once where k is contiguous: segments are
multiples of it."""


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def rounded(size: int, multiple: int) -> int:
    """The next multiple of `multiple`."""
    return ceil_div(size, multiple) * multiple


@dataclass(frozen=True)
class Shape:
    """batch x [m, k] @ [k, n] on a machine, and how it is cut.

    depth, lanes: of the dot product. A quad is `depth` neighbouring steps of k. `groups` is 1
    unless the reduction is sorted; its groups begin at multiples of `align` places then. Tiles
    read rows of a where they are (`in_place`), rows of a that were sorted (`in_lines`), or packed
    ones.
    """

    batch: int
    m: int
    n: int
    k: int
    depth: int
    lanes: int
    rows: int
    vectors: int
    segment: int
    groups: int
    align: int
    wide: bool
    in_place: bool
    in_lines: bool
    row_blocks: int
    column_blocks: int

    @property
    def segments(self) -> int:
        """Parts of k, each `segment` long but the last."""
        return max(1, ceil_div(self.k, self.segment))

    @property
    def last(self) -> int:
        """Length of the last segment."""
        return self.k - (self.segments - 1) * self.segment

    @property
    def places(self) -> int:
        """Steps of k that a packed segment has room for, padding of groups included."""
        padding = self.groups * (self.align - 1) if self.groups > 1 else 0
        return rounded(min(self.segment, self.k) + padding, self.align)

    @property
    def quads(self) -> int:
        """Groups of `depth` values that a segment has room for."""
        return self.places // self.depth

    @property
    def permutes(self) -> bool:
        """Whether lines are sorted in registers where steps of k are neighbours."""
        return self.align == BYTES

    @property
    def late_windows(self) -> int:
        """Windows of a sorted line, at most, that are more than quads of a segment."""
        windows = ceil_div(min(self.segment, self.k), BYTES)
        return max(0, (self.groups + 1) * windows - self.last // self.depth)

    @property
    def tiles(self) -> int:
        """Tiles in a column of results."""
        return ceil_div(self.m, self.rows)

    @property
    def panels(self) -> int:
        """Tiles in a row of results."""
        return ceil_div(self.n, self.width)

    @property
    def width(self) -> int:
        """Columns of a panel."""
        return self.vectors * self.lanes

    @property
    def block_rows(self) -> int:
        """Rows of a that a block reads, at most."""
        return min(self.m, ceil_div(self.tiles, self.row_blocks) * self.rows)

    @property
    def block_panels(self) -> int:
        """Panels of a task, at most."""
        return ceil_div(self.panels, self.column_blocks)

    @property
    def columns_once(self) -> bool:
        """Whether each panel of b is read by one task alone, which packs it."""
        return self.row_blocks == 1

    @property
    def lines_first(self) -> bool:
        """Whether all rows of a are sorted before the tasks, which share them."""
        return self.row_blocks == 1 and self.in_lines

    @property
    def work(self) -> int:
        """Dot products of the whole product and some more for packing, to weigh threads by."""
        return self.batch * (self.m + 8) * (self.n + 8) * (self.k + 1) // self.depth // 8


@dataclass(frozen=True)
class Sides:
    """The operands as the kernel multiplies them, rows @ columns: their names, their integers, and
    whether k is contiguous in each."""

    names: tuple[str, str]
    ranges: tuple[Range, Range]
    contiguous: tuple[bool, bool]

    @classmethod
    def of(cls, spec: KernelSpec, turned: bool) -> "Sides":
        """a and b, or b^T and a^T where the transposed result is computed."""
        a, b = spec.ranges("a", "b")
        along = not spec["transpose_a"], bool(spec["transpose_b"])
        return cls(("b", "a"), (b, a), along[::-1]) if turned else cls(("a", "b"), (a, b), along)


def shape_of(
    spec: KernelSpec, result: Sequence[int], sides: Sides, plan: Plan, cpu: Machine
) -> Shape:
    """Sizes of a product that is computed as `result`, tiles for `cpu`, segments so that int32 sums
    cannot overflow."""
    *batches, m, n = result
    a = spec.tensor("a").shape
    k, batch = a[-2] if spec["transpose_a"] else a[-1], prod(batches)
    contiguous = sides.contiguous[0]
    depth, lanes = cpu.dot.depth, cpu.dot.lanes
    rows, vectors = _tile(m, n, cpu)
    segment, limit = _segment(k, plan, depth, spec["k_chunk"])
    wide = k > limit
    in_place = _in_place(k, segment, plan, cpu) and contiguous
    groups = spec["groups"] if plan.sorted else 1
    permutes = groups > 1 and cpu.permutes and cpu.dot.bytes and k >= BYTES
    align = BYTES if permutes else depth
    in_lines = permutes and contiguous
    tiles, panels = ceil_div(m, rows), ceil_div(n, vectors * lanes)
    row_blocks = _row_blocks(tiles, rows, batch, min(segment, max(k, 1)) * (4 // depth))
    if (in_place or in_lines) and batch * panels >= 2 * TASKS and m * min(k, segment) <= ROW_BYTES:
        row_blocks = 1
    shared = in_place or (in_lines and row_blocks == 1)
    tasks = 2 * TASKS if shared else TASKS  # a packed block serves one task
    column_blocks = max(1, min(panels, ceil_div(tasks, batch * row_blocks)))
    if k > segment:
        block = min(m, ceil_div(tiles, row_blocks) * rows) * (8 if wide else 4)
        column_blocks = max(column_blocks, ceil_div(block * panels * vectors * lanes, TOTAL_BYTES))
        column_blocks = min(column_blocks, panels)
    return Shape(
        batch, m, n, k, depth, lanes, rows, vectors, segment, groups, align, wide, in_place,
        in_lines, row_blocks, column_blocks,
    )  # fmt: skip


def _in_place(k: int, segment: int, plan: Plan, cpu: Machine) -> bool:
    """Whether values of a can be used as they stand, when k is contiguous."""
    depth = cpu.dot.depth
    whole = k % depth == 0 or k <= segment
    return cpu.dot.bytes and not plan.sorted and not plan.a.shift and whole and k >= depth


def _tile(m: int, n: int, cpu: Machine) -> tuple[int, int]:
    """Rows and vectors: as many as registers hold, shared evenly; 5 x 5 where that multiplies
    clearly less beside the result (65 columns are 5 vectors, and two panels of 3 otherwise)."""
    vectors = _even(ceil_div(n, cpu.dot.lanes), cpu.registers // 8)
    spare = 3 if cpu.dot.bytes else 4
    tallest = min(TALLEST, (cpu.registers - spare - vectors) // vectors)
    usual = _even(m, tallest), vectors
    if not cpu.dot.bytes or cpu.registers < 32:
        return usual
    wide = _even(m, WIDE), _even(ceil_div(n, cpu.dot.lanes), WIDE)
    less = _multiplied(m, n, cpu, *wide) < CLEARLY * _multiplied(m, n, cpu, *usual)
    return wide if less else usual


def _even(size: int, most: int) -> int:
    """Parts of `most` at most, all but equal: how long the longest is."""
    return max(1, ceil_div(size, max(1, ceil_div(size, most))))


def _multiplied(m: int, n: int, cpu: Machine, rows: int, vectors: int) -> int:
    """Dot products of a step of k, overlapping tiles included."""
    return rounded(m, rows) * rounded(ceil_div(n, cpu.dot.lanes), vectors)


def _segment(k: int, plan: Plan, depth: int, chunk: int) -> tuple[int, int]:
    """(length of a segment, length that int32 holds)."""
    run = RUN * depth
    limit = (INT32_LIMIT - 1) // plan.step // run * run
    wanted = min(limit, SEGMENT, rounded(chunk, run) if chunk else SEGMENT)
    parts = max(1, ceil_div(k, max(run, wanted)))
    return max(run, rounded(ceil_div(k, parts), run)), limit


def _row_blocks(tiles: int, rows: int, batch: int, row_bytes: int) -> int:
    fits = max(ceil_div(LEAST_ROWS, rows), BLOCK_BYTES // (rows * row_bytes))
    blocks = max(1, ceil_div(tiles, fits))
    if batch * blocks > 1 and batch >= TASKS:
        return blocks
    if tiles * rows >= TASKS * LEAST_ROWS:
        return rounded(blocks, TASKS)
    return blocks


def too_many_groups(plan: Plan, depth: int) -> bool:
    """Whether not even the shortest segment adds up in int32."""
    return RUN * depth * plan.step >= INT32_LIMIT
