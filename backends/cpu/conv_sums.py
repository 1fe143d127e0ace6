"""Sums of wgrad on their way from vectors of (column tap, channel) pairs to weights OIHW."""

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import TYPE_CHECKING

from tvm import tirx

from sqcompile.backends.conv_geometry import Geometry
from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.epilogue import Epilogue
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.sweep import broadcast
from sqcompile.backends.kernels import KernelSpec, TensorSpec

if TYPE_CHECKING:
    from sqcompile.backends.cpu.conv_wgrad import Slices


FEW_TAPS = 16
"""Kernel pixels up to which vectors of sums are transposed in registers."""


class Rows(Epilogue):
    """An epilogue that sees weights (O, C, KH, KW) as rows (O, C * KH * KW). Scales of input
    channels are written out for a row."""

    def __init__(self, spec: KernelSpec, f: nest.Function) -> None:
        super().__init__(spec, f)
        self.taps = prod(self.shape[2:])
        self.wide: list[Array] = []
        self.scales = [self._written_out(one) for one in self.scales]
        self.shape = (self.shape[0], self.out.size // self.shape[0])

    def _written_out(self, scale: Array) -> Array:
        _, channel, *_ = super().steps(scale)
        if not channel:
            return scale
        wide = nest.scratch(scale.size * self.taps, "float32")
        with nest.loops([scale.size, self.taps], "s") as (c, tap):
            wide.store(c * self.taps + tap, scale[c])
        self.wide.append(wide)
        return wide

    @staticmethod
    def fits(shape: Sequence[int], operands: Iterable[tuple[str, TensorSpec]]) -> bool:
        """Whether scales and bias of weights of `shape` vary along O alone, or scales along C
        alone."""
        kept = {
            name: {axis for axis, step in enumerate(broadcast(shape, one.shape)) if step}
            for name, one in operands
            if name.startswith(("scales", "bias"))
        }
        return all(axes <= {0} or (axes == {1} and name != "bias") for name, axes in kept.items())

    def steps(self, operand: Array) -> list[int]:
        """The strides with which a scale is read as rows: one value a row, one for all, or one a
        column."""
        if any(operand is one for one in self.wide):
            return [0, 1]
        return [int(operand.size > 1), 0]


class Sums:
    """[slice][output channel][kernel line][vector][lanes], int32 or int64."""

    def __init__(
        self,
        spec: KernelSpec,
        f: nest.Function,
        g: Geometry,
        slices: "Slices",
        tile: int,
        kind: str,
    ) -> None:
        self.g, self.slices, self.kind = g, slices, kind
        self.epilogue = Epilogue(spec, f)
        fits = Rows.fits(self.epilogue.shape, spec.tensors())
        self.rows = Rows(spec, f) if fits else None
        self.channels = -(-g.outputs // tile) * tile
        self.each = g.rows.kernel * slices.vectors * slices.lanes
        self.size = self.channels * self.each

    def scratch(self, count: int) -> Array:
        """Memory for the sums of `count` slices."""
        return nest.scratch(count * self.size, self.kind)

    def clear(self, sums: Array, start: Expr) -> None:
        """Zeros for a slice."""
        lanes = self.slices.lanes
        with nest.serial(self.size // lanes, "clear") as i:
            zero = nest.splat(nest.zero(self.kind), lanes)
            sums.store(nest.ramp(start + i * lanes, lanes), zero)

    def add(
        self, sums: Array, start: Expr, place: tuple[Expr, Expr, int], part: Expr, once: bool
    ) -> None:
        """Add int32 lanes at (output channel, kernel line, vector), or store them when `once`."""
        channel, tap, vector = place
        lanes, vectors = self.slices.lanes, self.slices.vectors
        index = start + channel * self.each + (tap * vectors + vector) * lanes
        if self.kind != "int32":
            part = nest.cast(part, self.kind, lanes)
        ramp = nest.ramp(index, lanes)
        sums.store(ramp, part if once else sums[ramp] + part)

    def write(self, sums: Array, parts: int, offset: Array | None) -> None:
        """The weights, from `parts` sets of sums of all slices."""
        count = self.g.groups * self.slices.count
        work = parts * count * self.size
        with nest.parallel(count * self.g.outputs, work, "row") as row:
            index, channel = tirx.floordiv(row, self.g.outputs), tirx.floormod(row, self.g.outputs)
            starts = [(part * count + index) * self.size for part in range(parts)]
            self._channel(sums, starts, index, channel, offset)

    def write_slice(self, sums: Array, parts: int, index: Expr, offset: Array | None) -> None:
        """The weights of one slice, whose sums `sums` holds."""
        with nest.serial(self.g.outputs, "channel") as channel:
            self._channel(sums, [0], index, channel, offset)

    def _channel(
        self, sums: Array, starts: Sequence[Expr], index: Expr, channel: Expr, offset: Array | None
    ) -> None:
        slices, g = self.slices, self.g
        group, piece = tirx.floordiv(index, slices.count), tirx.floormod(index, slices.count)
        out = group * g.outputs + channel
        kind = self.epilogue.out.dtype if self.epilogue.out.dtype != "float32" else self.kind

        def total(at: Expr, lanes: int) -> Expr:
            places = [start + channel * self.each + at for start in starts]
            value = sums[nest.ramp(places[0], lanes)]
            for place in places[1:]:
                value = value + sums[nest.ramp(place, lanes)]
            if offset is not None:
                value = value - nest.splat(offset[out], lanes)
            return value if kind == self.kind else nest.cast(value, kind, lanes)

        if self.rows is not None and slices.whole and g.taps <= FEW_TAPS:
            self._turned(self.rows, total, piece, out)
            return
        row = nest.scratch(slices.lanes, kind)
        with nest.loops([g.rows.kernel, slices.vectors], "v") as (tap, vector):
            at = (tap * slices.vectors + vector) * slices.lanes
            row.store(nest.ramp(0, slices.lanes), total(at, slices.lanes))
            with nest.serial(slices.lanes, "lane") as lane:
                kw, c = slices.pair(piece, vector, lane)
                with nest.when(tirx.all(kw < g.columns.kernel, c < g.inputs)):
                    self.epilogue.element(row[lane], [out, c, tap, kw])

    def _turned(
        self, rows: Rows, total: Callable[[int, int], Expr], piece: Expr, out: Expr
    ) -> None:
        """`lanes` channels of all taps at a time: the transpose of vectors of one tap each is a
        stretch of the output."""
        lanes, taps = self.slices.lanes, self.g.taps
        together = self.slices.vectors // self.g.columns.kernel
        for part in range(together):
            vectors = [total((tap * together + part) * lanes, lanes) for tap in range(taps)]
            first = (self.slices.first(piece) + part * lanes) * taps
            for j in range(taps):
                order = [(i % taps) * lanes + i // taps for i in range(j * lanes, (j + 1) * lanes)]
                turned = tirx.Shuffle(vectors, [tirx.const(i, "int32") for i in order])
                rows.vector(turned, [out, first + j * lanes], lanes)

    def nothing(self) -> None:
        """Zeros through the epilogue: there are no tokens."""
        with nest.loops(self.epilogue.shape, "w") as place:
            self.epilogue.element(nest.zero("int32"), place)
