"""What batch norms share that pack xhat and the mask of a ReLU as they write their result."""

from collections.abc import Callable

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.batch_norm import Elements, Forms, Normalizer
from sqcompile.backends.cpu.bit_packing import mask_bytes, nibbles
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.rounding import group_of
from sqcompile.backends.cpu.saved_xhat import saved
from sqcompile.backends.kernels import KernelSpec
from sqcompile.ops.norm_fused import PACKED_BITS

Put = Callable[[Expr, Expr, Expr], None]


class PackedNorm:
    """A batch norm's elements, behind a residual sum and a ReLU where the op has them, and where
    xhat and mask go: outputs 2 and 3 of the op. The last output is for the exponents."""

    def __init__(self, spec: KernelSpec, f: nest.Function) -> None:
        self.spec = spec
        self.xhat, self.mask, *statistics, self.exponent = f.outputs[2:]
        self.normal = Normalizer(spec, f, True, statistics)
        self.residual = f.get("residual")
        self.groups = spec["groups"]
        self.forms = Forms(self.normal)
        self.general = self.forms.general
        self.packed = spec["bits"] <= PACKED_BITS

    def values(
        self, elements: Elements, i: Expr, arrays: list[Array | None], c: Expr
    ) -> tuple[Expr, Expr]:
        """(y, k) of element i."""
        added = None if self.residual is None else self.residual[i]
        return self.values_of(elements, self.normal.x[i], arrays, c, added)

    def values_of(
        self,
        elements: Elements,
        x: Expr,
        arrays: list[Array | None],
        c: Expr,
        added: Expr | None = None,
    ) -> tuple[Expr, Expr]:
        """(y, k) of an integer x."""
        xhat = elements.xhat(x, arrays, c)
        y = elements.y(xhat, arrays, c)
        if added is not None:
            y = nest.fence(y) + added
        if self.spec["relu"]:
            y = nest.select(y < nest.zero("float32"), nest.zero("float32"), y)
        return y, saved(xhat, self.spec["bits"], self.spec["step"])

    def vector(self, elements: Elements, index: Expr, first: Expr, put: Put) -> Array:
        """The index-th 16 elements, at `first` in their period: put(offset, place in the period,
        y) of each in a vectorised loop; returns their y."""
        start = index * LANES
        values, ks = nest.scratch(LANES, "float32"), nest.scratch(LANES, "int32")
        with nest.lanes() as lane:
            y, k = self.values(elements, start + lane, elements.lanes, first + lane)
            values.store(lane, y)
            ks.store(lane, k)
            put(start + lane, first + lane, values[lane])
            if not self.packed:
                self.xhat.store(start + lane, nest.cast(ks[lane], "int8"))
        if self.packed:
            self.xhat.store(nest.ramp(index * 8, 8), nibbles(ks[nest.ramp(0)]))
        if self.spec["relu"]:
            positive = values[nest.ramp(0)] > nest.splat(nest.zero("float32"))
            self.mask.store(nest.ramp(index * 2, 2), mask_bytes(positive))
        return values

    def left(self, put: Put) -> None:
        """The rows that fill no period, element by element: put(offset, channel, y)."""
        periods = self.normal.periods
        start = periods.left.start * periods.channels
        count = len(periods.left) * periods.channels
        if not count:
            return
        ks, positive = nest.scratch(count, "uint8"), nest.scratch(count, "uint8")
        with periods.leftover() as (i, c):
            y, k = self.values(self.general, i, self.general.channels, c)
            put(i, c, y)
            ks.store(i - start, nest.cast(k, "uint8"))
            positive.store(i - start, nest.cast(y > nest.zero("float32"), "uint8"))
            if not self.packed:
                self.xhat.store(i, nest.cast(k, "int8"))
        if self.packed:
            _pack(ks, self.xhat, start // 2, 2)
        if self.spec["relu"]:
            _pack(positive, self.mask, start // 8, 8)

    def write_exponents(self, channel: Array, largest: Expr) -> None:
        """The groups of channels whose absmaxes are the bits `channel`, the largest `largest`."""
        with nest.serial(channel.size, "c") as c:
            r = nest.bits_of(channel[c], "float32")
            self.exponent.store(c, group_of(r, largest, self.groups))


def _pack(source: Array, out: Array, first: int, per_byte: int) -> None:
    """out[first ...] = the low bits of source, `per_byte` elements to a byte."""
    bits = 8 // per_byte
    low = nest.const(2**bits - 1, "uint8")

    def byte(index: Expr, count: int) -> None:
        value = nest.zero("uint8")
        for j in range(count):
            part = tirx.bitwise_and(source[index * per_byte + j], low)
            value = tirx.bitwise_or(value, tirx.shift_left(part, nest.const(bits * j, "uint8")))
        out.store(index + first, value)

    whole, rest = divmod(source.size, per_byte)
    with nest.serial(whole, "byte") as index:
        byte(index, per_byte)
    if rest:
        byte(whole, rest)
