"""Batch norm, ReLU, quantisation and packing in one pass: y never reaches memory.

Along a channel y is monotone in the integer x, every rounding included, so its absmax is found at
the largest and the smallest x of each channel, which the pass before finds on its way. So are the
absmaxes that put channels into groups.
"""

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.batch_norm import Elements
from sqcompile.backends.cpu.batch_norm_packed import PackedNorm
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.norm import f32, held
from sqcompile.backends.cpu.rounding import clamp, magnitude, power, rounded, steps_per_unit
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.ops.quantize import limits


class _Fused:
    """The elements of a norm and their integers q."""

    def __init__(self, spec: KernelSpec, f: nest.Function) -> None:
        self.spec = spec
        self.norm = PackedNorm(spec, f)
        self.q, self.r = f.outputs[:2]
        self.scale = self._scale()

    def _scale(self) -> Array:
        """Writes r. The factor qmax / r of y, zero where r counts as zero; where there are groups,
        that of each place in a period."""
        norm, general = self.norm, self.norm.general
        periods = norm.normal.periods
        channel, best = nest.scratch(periods.channels, "int32"), nest.scratch(1, "int32")
        best.store(0, nest.zero("int32"))
        with nest.serial(periods.channels, "c") as c:
            ends = []
            for extreme in norm.normal.extremes.result:
                y, _ = norm.values_of(general, extreme[c], general.channels, c)
                ends.append(magnitude(y))
            channel.store(c, tirx.max(*ends))
            best.store(0, tirx.max(best[0], channel[c]))
        largest = held(nest.bits_of(best[0], "float32"))
        self.r.store(0, largest * f32(self.spec["share"]))
        units = held(steps_per_unit(self.spec["out_bits"], self.spec["signed"], self.r[0]))
        scale = nest.scratch(1 if norm.groups == 1 else periods.channels, "float32")
        if norm.groups == 1:
            scale.store(0, units)
            return scale
        norm.write_exponents(channel, largest)
        with nest.serial(periods.channels, "c") as c:
            scale.store(c, units * power(nest.cast(norm.exponent[c], "int32")))
        return periods.spread(scale)

    def put(self, i: Expr, place: Expr, y: Expr) -> None:
        """q of element i."""
        self.q.store(i, self._quantized(y, place))

    def _quantized(self, y: Expr, place: Expr) -> Expr:
        """y within its absmax, and 2^exponent times y within that of its channel, round to at most
        qmax: only what a share of it, or an unsigned grid, leaves out is clamped."""
        low, high = limits(self.spec["out_bits"], self.spec["signed"])
        scaled = nest.fence(y * self.scale[place if self.norm.groups > 1 else 0])
        if self.spec["share"] != 1.0:
            scaled = clamp(scaled, low, high)
        elif low == 0 and not self.spec["relu"]:
            scaled = tirx.max(scaled, f32(0.0))
        return nest.cast(rounded(scaled), self.q.dtype)

    def vector(self, elements: Elements, index: Expr, first: Expr) -> None:
        """The index-th 16 elements, at `first` in their period."""
        self.norm.vector(elements, index, first, self.put)


@KERNELS.kernel("sq::l1_batch_norm_relu_quantize")
def l1_batch_norm_relu_quantize(spec: KernelSpec) -> object:
    """The third pass writes 1 + 1/2 + 1/8 bytes an element."""
    with nest.function(spec) as f:
        fused = _Fused(spec, f)
        fused.norm.forms.vectors(fused.vector)
        fused.norm.left(fused.put)
    return f.result
