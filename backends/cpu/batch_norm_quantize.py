"""Batch norm, ReLU, quantisation and packing in one pass: y never reaches memory.

Along a channel y is monotone in the integer x, every rounding included, so its absmax is found at
the largest and the smallest x of each channel, which the pass before finds on its way.
"""

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.batch_norm import Elements, Forms, Normalizer
from sqcompile.backends.cpu.bit_packing import mask_bytes, nibbles
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.norm import f32
from sqcompile.backends.cpu.rounding import is_tiny, rounded, steps_per_unit
from sqcompile.backends.cpu.saved_xhat import saved
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.ops.norm_fused import PACKED_BITS


class _Fused:
    """Elements of the fused kernel: their y, q and k."""

    def __init__(self, spec: KernelSpec, f: nest.Function) -> None:
        self.spec = spec
        self.normal = Normalizer(spec, f, extremes=True)
        self.q, self.r, self.xhat, self.mask = f.outputs[:4]
        self.forms = Forms(self.normal)
        self.general = self.forms.general
        self.packed = spec["bits"] <= PACKED_BITS
        self.scale = nest.scratch(1, "float32")
        self._absmax()

    def _absmax(self) -> None:
        """r, and the factor qmax / r of y, zero where r counts as zero."""
        best = nest.scratch(1, "int32")
        best.store(0, nest.zero("int32"))
        with nest.serial(self.normal.periods.channels, "c") as c:
            for extreme in self.normal.extremes.result:
                y, _ = self.values(self.general, extreme[c], self.general.channels, c)
                bits = nest.bits_of(y, "int32")
                magnitude = tirx.bitwise_and(bits, nest.const(0x7FFFFFFF, "int32"))
                best.store(0, tirx.max(best[0], magnitude))
        self.r.store(0, nest.bits_of(best[0], "float32"))
        scale = steps_per_unit(self.spec["out_bits"], self.spec["signed"], self.r[0])
        self.scale.store(0, nest.select(is_tiny(self.r[0]), f32(0.0), scale))

    def values(
        self, elements: Elements, x: Expr, arrays: list[Array | None], c: Expr
    ) -> tuple[Expr, Expr]:
        """(y behind the ReLU, k)."""
        xhat = elements.xhat(x, arrays, c)
        y = elements.y(xhat, arrays, c)
        if self.spec["relu"]:
            y = nest.select(y < nest.zero("float32"), nest.zero("float32"), y)
        return y, saved(xhat, self.spec["bits"], self.spec["step"])

    def quantized(self, y: Expr) -> Expr:
        """y within r rounds to at most qmax: only an unsigned grid below zero is clamped."""
        scaled = nest.fence(y * self.scale[0])
        if not self.spec["signed"] and not self.spec["relu"]:
            scaled = tirx.max(scaled, f32(0.0))
        return nest.cast(rounded(scaled), self.q.dtype)

    def vector(self, elements: Elements, index: Expr, first: Expr) -> None:
        """The index-th 16 elements, at `first` in their period."""
        start = index * LANES
        values, ks = nest.scratch(LANES, "float32"), nest.scratch(LANES, "int32")
        with nest.lanes() as lane:
            x = self.normal.x[start + lane]
            y, k = self.values(elements, x, elements.lanes, first + lane)
            values.store(lane, y)
            ks.store(lane, k)
            self.q.store(start + lane, self.quantized(values[lane]))
            if not self.packed:
                self.xhat.store(start + lane, nest.cast(ks[lane], "int8"))
        if self.packed:
            self.xhat.store(nest.ramp(index * 8, 8), nibbles(ks[nest.ramp(0)]))
        if self.spec["relu"]:
            positive = values[nest.ramp(0)] > nest.splat(nest.zero("float32"))
            self.mask.store(nest.ramp(index * 2, 2), mask_bytes(positive))

    def left(self) -> None:
        """The rows that fill no period, element by element."""
        periods = self.normal.periods
        start = periods.left.start * periods.channels
        count = len(periods.left) * periods.channels
        if not count:
            return
        ks, positive = nest.scratch(count, "uint8"), nest.scratch(count, "uint8")
        with periods.leftover() as (i, c):
            y, k = self.values(self.general, self.normal.x[i], self.general.channels, c)
            self.q.store(i, self.quantized(y))
            ks.store(i - start, nest.cast(k, "uint8"))
            positive.store(i - start, nest.cast(y > nest.zero("float32"), "uint8"))
            if not self.packed:
                self.xhat.store(i, nest.cast(k, "int8"))
        if self.packed:
            _pack(ks, self.xhat, start // 2, 2)
        if self.spec["relu"]:
            _pack(positive, self.mask, start // 8, 8)


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


@KERNELS.kernel("sq::l1_batch_norm_relu_quantize")
def l1_batch_norm_relu_quantize(spec: KernelSpec) -> object:
    """The third pass writes 1 + 1/2 + 1/8 bytes an element."""
    with nest.function(spec) as f:
        fused = _Fused(spec, f)
        fused.forms.vectors(fused.vector)
        fused.left()
    return f.result
