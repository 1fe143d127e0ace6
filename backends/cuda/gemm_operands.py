"""Operands of a product: where the elements of their rows lie along the reduction.

acc[z, m, n] = sum over k of A[z, m, k] * B[z, n, k]. An operand adds what a row gives to what a
step of k gives, so that a thread computes each once for all elements of its rows and steps. A
matrix adds places. An image adds places and coordinates of its pixels: where these are outside,
the element is zero. That is a convolution without a copy of its windows (implicit im2col).
"""

from dataclasses import dataclass, replace
from math import gcd
from typing import ClassVar, Protocol

from tvm import tirx

from sqcompile.backends.conv_geometry import Axis, Geometry, Lines, Phase
from sqcompile.backends.cuda import grid
from sqcompile.backends.cuda.grid import Array, Expr


@dataclass(frozen=True)
class Part:
    """What a row, or a step of k, gives to its elements: a place, whether there are any, and the
    pixel's coordinates in an image. Values of threads."""

    place: Expr
    there: Expr
    y: Expr | None = None
    x: Expr | None = None

    def kept(self) -> "Part":
        """The same in registers."""
        y = None if self.y is None else grid.keep(self.y)
        x = None if self.x is None else grid.keep(self.x)
        return Part(grid.keep(self.place), grid.keep(self.there), y, x)


class Parts:
    """Several of them, in registers: `parts[i]` in an unrolled loop."""

    def __init__(self, count: int) -> None:
        self.place, self.there = grid.slots(count, "int32"), grid.slots(count, "uint8")
        self.y, self.x = grid.slots(count, "int32"), grid.slots(count, "int32")
        self.image = False

    def store(self, index: Expr, part: Part) -> None:
        """Keep one."""
        self.place.store(index, part.place)
        self.there.store(index, grid.cast(part.there, "uint8"))
        self.image = part.y is not None
        if self.image:
            self.y.store(index, part.y)
            self.x.store(index, part.x)

    def __getitem__(self, index: Expr) -> Part:
        there = tirx.NE(self.there[index], grid.zero("uint8"))
        if not self.image:
            return Part(self.place[index], there)
        return Part(self.place[index], there, self.y[index], self.x[index])


class Operand(Protocol):
    """One operand: its memory, how many rows and steps it has, and how they lie."""

    @property
    def array(self) -> Array:
        """The memory."""
        ...

    @property
    def per_byte(self) -> int:
        """Steps that are joined to a byte of a tile as it is brought: 1, or 2 nibbles."""
        ...

    @property
    def rows(self) -> int:
        """Rows of it."""
        ...

    @property
    def steps(self) -> int:
        """Steps of k."""
        ...

    @property
    def along(self) -> int:
        """Elements of a row that certainly lie side by side, from every multiple of that number of
        steps on, aligned to it."""
        ...

    @property
    def across(self) -> int:
        """Elements of a step that do."""
        ...

    @property
    def adjacent(self) -> bool:
        """Whether neighbouring rows lie side by side, aligned or not."""
        ...

    def row(self, z: Expr, row: Expr) -> Part:
        """What row `row` of number z gives."""
        ...

    def step(self, z: Expr, k: Expr) -> Part:
        """What step k gives."""
        ...

    def at(self, row: Part, step: Part) -> tuple[Expr, Expr]:
        """(the place of an element, whether it is there)."""
        ...


@dataclass(frozen=True)
class Matrix:
    """Rows and steps at constant distances; `start` is the place of the first element."""

    array: Array
    rows: int
    steps: int
    row_step: int
    k_step: int
    z_step: int
    start: int = 0
    per_byte: ClassVar[int] = 1

    @property
    def along(self) -> int:
        """Elements of a row that lie together."""
        if self.k_step != 1:
            return 1
        return gcd(self.steps, self.row_step, self.z_step, self.start)

    @property
    def across(self) -> int:
        """Elements of a step that lie together."""
        if self.row_step != 1:
            return 1
        return gcd(self.rows, self.k_step, self.z_step, self.start)

    @property
    def adjacent(self) -> bool:
        """Whether neighbouring rows lie side by side."""
        return self.row_step == 1 and self.k_step != 1

    def from_(self, start: int) -> "Matrix":
        """The same matrix further on in memory."""
        return replace(self, start=self.start + start)

    def row(self, z: Expr, row: Expr) -> Part:
        """The place of a row."""
        place = grid.linear([z, row], [self.z_step, self.row_step], self.start)
        return Part(place, row < self.rows)

    def step(self, z: Expr, k: Expr) -> Part:
        """The place of a step in its row."""
        return Part(k * self.k_step, k < self.steps)

    def at(self, row: Part, step: Part) -> tuple[Expr, Expr]:
        """Their sum."""
        return row.place + step.place, tirx.And(row.there, step.there)


class Image:
    """A tensor (N, H, W, C) whose z-th `channels` channels are read."""

    def __init__(self, array: Array, channels: int, per_byte: int = 1) -> None:
        self.array, self.channels, self.per_byte = array, channels, per_byte
        self.images, self.height, self.width, self.pitch = array.shape

    @property
    def together(self) -> int:
        """Channels that lie side by side, from every multiple of that number on."""
        return gcd(self.channels, self.pitch)

    def at(self, row: Part, step: Part) -> tuple[Expr, Expr]:
        """The element of a pixel, if that is inside."""
        y, x = row.y + step.y, row.x + step.x  # type: ignore[operator]
        inside = [
            *(row.there, step.there),
            *(y >= 0, y < self.height, x >= 0, x < self.width),
        ]
        place = row.place + step.place + (y * self.width + x) * self.pitch
        return place, grid.all_of(inside)

    def _first(self, image: Expr) -> Expr:
        return image * (self.height * self.width * self.pitch)


class Windows(Image):
    """The rows are results of a correlation, k goes over taps, then channels."""

    def __init__(
        self, array: Array, channels: int, axes: tuple[Lines, Lines], phases: tuple[Phase, Phase]
    ) -> None:
        super().__init__(array, channels)
        self.axes, self.phases = axes, phases
        self.results = [self.images, *(phase.count for phase in phases)]
        self.rows = self.results[0] * self.results[1] * self.results[2]
        self.steps = phases[0].taps * phases[1].taps * channels
        self.along, self.across, self.adjacent = self.together, 1, False

    def row(self, z: Expr, row: Expr) -> Part:
        """The pixel of the first tap."""
        image, *results = grid.unravel(row, self.results)
        y, x = (
            result * lines.stride + phase.offset
            for result, lines, phase in zip(results, self.axes, self.phases, strict=True)
        )
        return Part(self._first(image) + z * self.channels, row < self.rows, y, x)

    def step(self, z: Expr, k: Expr) -> Part:
        """How far on a tap is, and its channel."""
        taps = [phase.taps for phase in self.phases]
        y, x, channel = grid.unravel(k, [*taps, self.channels])
        return Part(channel, k < self.steps, y * self.axes[0].spacing, x * self.axes[1].spacing)


class Taps(Image):
    """The rows are taps, then channels; k goes over the results of a convolution: what the
    gradient of a weight is multiplied with. Results are pixels: with `per_byte` 2 a byte of a tile
    has what a tap meets at two of them, which lie in one byte nowhere in memory."""

    def __init__(self, array: Array, geometry: Geometry, per_byte: int = 1) -> None:
        super().__init__(array, geometry.inputs, per_byte)
        self.geometry = geometry
        self.axes: tuple[Axis, Axis] = (geometry.rows, geometry.columns)
        self.rows = geometry.taps * self.channels
        self.steps = self.images * geometry.rows.out * geometry.columns.out
        self.along, self.across, self.adjacent = 1, self.together, True

    def row(self, z: Expr, row: Expr) -> Part:
        """How far a tap is from a result's corner, and its channel."""
        y, x, channel = grid.unravel(row, [*(one.kernel for one in self.axes), self.channels])
        y, x = (
            tap * axis.dilation - axis.padding for tap, axis in zip((y, x), self.axes, strict=True)
        )
        return Part(z * self.channels + channel, row < self.rows, y, x)

    def step(self, z: Expr, k: Expr) -> Part:
        """The corner of a result."""
        image, y, x = grid.unravel(k, [self.images, *(one.out for one in self.axes)])
        y, x = (at * axis.stride for at, axis in zip((y, x), self.axes, strict=True))
        return Part(self._first(image), k < self.steps, y, x)


class Kernel:
    """Weights (O, C / groups, KH, KW) as a correlation reads them: the rows are the channels of its
    results, k goes over a phase's taps, then the channels that are summed. sizes: of rows, of
    channels, and of channels as the image has them, with zeros behind. Steps in memory: `row_step`
    from a row to the next, `channel_step` from a channel, `z_step` from a group."""

    per_byte, along, across, adjacent = 1, 1, 1, False

    def __init__(
        self,
        array: Array,
        axes: tuple[Lines, Lines],
        phases: tuple[Phase, Phase],
        sizes: tuple[int, int, int],
        steps: tuple[int, int, int],
    ) -> None:
        self.array, self.axes, self.phases = array, axes, phases
        self.rows, self.there, self.channels = sizes
        self.z_step, self.row_step, self.channel_step = steps
        self.taps = [phase.taps for phase in phases]
        self.steps = self.taps[0] * self.taps[1] * self.channels

    def row(self, z: Expr, row: Expr) -> Part:
        """A channel of results."""
        return Part(z * self.z_step + row * self.row_step, row < self.rows)

    def step(self, z: Expr, k: Expr) -> Part:
        """A pixel of the kernel, and a channel."""
        *taps, channel = grid.unravel(k, [*self.taps, self.channels])
        y, x = (
            tap * lines.kernel_step + phase.kernel
            for tap, lines, phase in zip(taps, self.axes, self.phases, strict=True)
        )
        width = self.array.shape[3]
        inside = k < self.steps
        if self.there != self.channels:
            inside = tirx.And(inside, channel < self.there)
        return Part(channel * self.channel_step + y * width + x, inside)

    def at(self, row: Part, step: Part) -> tuple[Expr, Expr]:
        """Their sum."""
        return row.place + step.place, tirx.And(row.there, step.there)
