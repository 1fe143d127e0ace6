"""Which convolutions Winograd computes, and how: tiles, blocks, the order of the work."""

from dataclasses import dataclass

from sqcompile.backends.cpu.machine import Dot, machine
from sqcompile.backends.cpu.winograd_input import WIDTH, Image
from sqcompile.backends.cpu.winograd_ranges import POSITIONS, Split, split
from sqcompile.backends.cpu.winograd_taps import Filters
from sqcompile.backends.kernels import KernelSpec

TILES, VECTORS = 6, 2
"""Tiles and vectors of columns of a group: twice as many sums, three loads beside, of 32
registers."""
CHUNK_BYTES = 3 << 17
"""Transformed inputs that a task keeps, at most: with a block of weights they fit L2."""
SHARED_BYTES = 5 << 17
"""Transformed inputs of the whole batch up to which weights are transformed block by block."""
TASKS = 4
"""Tasks that a kernel should have at least."""


@dataclass(frozen=True)
class Plan:
    """A convolution as tiles, blocks and their sizes."""

    image: Image
    filters: Filters
    split: Split
    out: tuple[int, ...]

    @property
    def dot(self) -> Dot:
        """The dot product compiled for."""
        return self.filters.dot

    @property
    def tile_rows(self) -> int:
        """Tile rows of all images."""
        return self.image.images * self.image.rows

    def groups(self, rows: int) -> int:
        """Groups of tiles in `rows` tile rows."""
        return -(-rows * self.image.tiles // TILES)

    def plane(self, rows: int) -> int:
        """Bytes of a position of `rows` tile rows; a vector more, which transforms may write."""
        return self.groups(rows) * TILES * self.image.depth + WIDTH

    @property
    def shared(self) -> bool:
        """Whether inputs of the whole batch are transformed first and stay in cache while blocks
        of weights pass, which few images with many channels need; else weights come first."""
        small = self.plane(self.tile_rows) * len(POSITIONS) <= SHARED_BYTES
        return small and self.filters.blocks >= TASKS and self.image.line % WIDTH == 0

    @property
    def chunk(self) -> int:
        """Tile rows of a task, such that transformed inputs fit CHUNK_BYTES and there are TASKS
        tasks: of the sizes that fit, the one with which one, two and four threads are done
        first. Reading the weights costs a task about as much as a group of tiles."""
        line = self.image.line * len(POSITIONS)
        most = max(1, min(CHUNK_BYTES // line, self.tile_rows // TASKS))

        def time(rows: int) -> int:
            tasks = -(-self.tile_rows // rows)
            return sum(n * -(-tasks // n) * (self.groups(rows) + 1) for n in (1, 2, 4))

        return min(range(1, most + 1), key=lambda rows: (time(rows), -rows))


def plan(spec: KernelSpec) -> Plan | None:
    """The plan of a convolution that Winograd computes exactly, None for others."""
    forward = spec.short_name.startswith("conv_fprop")
    dot = machine().dot
    if not (forward or spec.short_name.startswith("conv_dgrad")):
        return None
    if not dot.bytes or dot.lanes * dot.depth != WIDTH:
        return None
    w, out = spec.tensor("w").shape, spec.outputs[0]
    source = spec.tensor("x" if forward else "g")
    pad = spec["padding"][0]
    regular = all(tuple(spec[name]) == (1, 1) for name in ("stride", "dilation"))
    regular = regular and spec["groups"] == 1 and w[2:] == (3, 3) and out.dtype != "int64"
    if not regular or spec["padding"][1] != pad or pad > 2 or not (out.size and source.size):
        return None
    exponent = spec.tensor("exponent")
    if exponent is not None and exponent.size != source.shape[3]:
        return None
    inputs, weights = spec.ranges("x" if forward else "g", "w")
    groups = 1 if exponent is None else spec["shift_groups"]
    found = split(inputs, weights, groups, source.shape[3])
    if found is None:
        return None
    _, height, width, columns = out.shape
    around = pad if forward else 2 - pad
    n, rows, width_in, depth = source.shape
    image = Image(n, rows, width_in, depth, around, -(-height // 2), -(-width // 2))
    filters = Filters(depth, columns, not forward, VECTORS, dot)
    return Plan(image, filters, found, out.shape)
