"""Gradients of L1 batch norm whose dx is quantised for dgrad and wgrad.

Two passes over 1.5 bytes an element: the integer sums and extremes, from which all scales but
wgrad's groups follow, then 16 tokens at a time, computed and rounded out of the L1 cache. The
float gradient is never in memory. Where rows are no whole vectors, or samples are rows, it is:
then the ops run one after the other.
"""

from math import prod

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.absmax import Block, widest
from sqcompile.backends.cpu.batch_norm_backward import (
    channel_constants,
    difference,
    input_gradient,
    saved_of,
)
from sqcompile.backends.cpu.channel_extremes import Extremes
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.philox import Philox
from sqcompile.backends.cpu.quantize_tokens import Tokens
from sqcompile.backends.cpu.rounding import bits_of, magnitude
from sqcompile.backends.cpu.scaled import Factor, Scaled
from sqcompile.backends.cpu.shift_quantize import Scales
from sqcompile.backends.cpu.shift_quantize_pair import channels_only, folded, pair
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec, TensorSpec
from sqcompile.ops.quantize_pair import PER_QUANTIZER

FEWEST_TOKENS = 8
"""Tokens of a sample from which on its extremes are worth a pass: they are 4 bytes a channel."""


@KERNELS.kernel("sq::l1_batch_norm_backward_quantize", run_time=("stream",))
def l1_batch_norm_backward_quantize(spec: KernelSpec) -> object:
    """Sums, extremes and scales, then tokens."""
    with nest.function(spec, ("stream",)) as f:
        g = f["g"]
        *_, dgamma, dbeta = f.outputs
        constants = channel_constants(f, spec, dgamma, dbeta)
        tokens, channels = prod(g.shape[1:-1]), g.shape[-1]
        extremes = Extremes(g, saved_of(f), tokens, channels)
        plain = channels_only(f.get("factor"))
        if plain and channels % LANES == 0 and tokens >= FEWEST_TOKENS and extremes.fits:
            _Fused(spec, f, extremes, constants).run()
        else:
            flat = nest.scratch(g.size, "float32")
            dx = Array(flat.buffer, TensorSpec(g.shape, "float32"))
            input_gradient(f, dx, constants)
            pair(f, spec, dx)
    return f.result


class _Fused:
    """The case of samples of several tokens, in whole vectors of channels."""

    def __init__(
        self, spec: KernelSpec, f: nest.Function, extremes: Extremes, constants: list[Array]
    ) -> None:
        self.f, self.extremes, self.constants = f, extremes, constants
        self.outer, self.bits, self.groups = spec["outer"], spec["bits"], spec["groups"]
        self.samples = f["g"].shape[0]
        self.channels = f["g"].shape[-1]
        self.dgrad = Scales(f.outputs[:PER_QUANTIZER])
        self.wgrad = Scales(f.outputs[PER_QUANTIZER : 2 * PER_QUANTIZER])
        self.folded = folded(f.get("factor"), self.channels)

    def run(self) -> None:
        """All maxima, then the tokens."""
        table = nest.scratch(self.samples * self.channels, "int32")
        self._samples(table)
        channel = self._channels(table)
        self.dgrad.settle(self._largest(channel), self.bits, self.groups)
        self.wgrad.settle(self.wgrad.largest_after(), self.bits, self.groups)
        g, saved = self.f["g"], self.extremes.saved

        def load(at: Expr, column: Expr) -> Expr:
            return difference(g, saved, at, [a[nest.ramp(column)] for a in self.constants])

        tokens = Tokens(
            (self.samples, self.extremes.tokens, self.channels),
            load,
            self.folded,
            self.dgrad,
            self.wgrad,
            self.wgrad.inverses.wide(self.channels),
            self._powers(channel),
            self.bits,
            self.groups,
        )
        tokens.run(Philox.of(self.f["rng"], self.f.scalars["stream"]))

    def _samples(self, table: Array) -> None:
        """The absmax (bits) of every sample and channel, and dgrad's outer scales."""
        lanes = nest.ramp(0)
        with nest.parallel(self.samples, self.f["g"].size, "sample") as n:
            extremes = self.extremes.measure(n)
            best = nest.scratch(LANES, "int32")
            best.store(lanes, nest.splat(nest.zero("int32")))
            with nest.serial(self.channels // LANES, "c") as c:
                place = nest.ramp(n * self.channels + c * LANES)
                table.store(place, self.extremes.absmax(extremes, c * LANES, self.constants))
                scaled = magnitude(self._scaled(table[place], c * LANES))
                best.store(lanes, tirx.max(best[lanes], scaled))
            if self.outer:
                row = nest.scratch(LANES, "float32")
                row.store(lanes, bits_of(best[lanes], "float32"))
                found = nest.scratch(1, "float32")
                bits = widest(Scaled(row, [LANES], []), Block([], []))
                found.store(0, nest.bits_of(bits, "float32"))
                self.dgrad.store_outer(n, found[0])

    def _scaled(self, bits: Expr, column: Expr) -> Expr:
        """An absmax of 16 channels times the weight's scales."""
        value = bits_of(bits, "float32")
        return value if self.folded is None else value * self.folded.vector(column)

    def _channels(self, table: Array) -> Array:
        """wgrad's outer scales -> dgrad's absmax of every channel."""
        whole = nest.workspace(max(self.channels, nest.STACK), "float32")
        channel = nest.workspace(max(self.channels, nest.STACK), "float32")
        lanes = nest.ramp(0)
        with nest.serial(self.channels // LANES, "c") as c:
            best = [nest.scratch(LANES, "int32") for _ in range(2)]
            for slot in best:
                slot.store(lanes, nest.splat(nest.zero("int32")))
            with nest.serial(self.samples, "n") as n:
                bits = table[nest.ramp(n * self.channels + c * LANES)]
                divided = self._scaled(bits, c * LANES)
                if self.outer:
                    divided = divided * nest.splat(self.dgrad.inverses[n])
                for slot, value in zip(best, (bits, magnitude(divided)), strict=True):
                    slot.store(lanes, tirx.max(slot[lanes], value))
            for slot, array in zip(best, (whole, channel), strict=True):
                array.store(nest.ramp(c * LANES), bits_of(slot[lanes], "float32"))
        if self.outer:
            with nest.serial(self.channels, "c") as c:
                self.wgrad.store_outer(c, whole[c])
        else:
            for scales in (self.dgrad, self.wgrad):
                scales.no_outer()
            self.wgrad.found.store(0, nest.bits_of(self._largest(whole), "float32"))
        return channel

    def _largest(self, values: Array) -> Expr:
        """The largest magnitude (bits) among those of the channels."""
        return widest(Scaled(values, [self.channels], []), Block([], []))

    def _powers(self, channel: Array) -> Factor:
        """dgrad's exponents -> (qmax / r) * 2^exponent of every channel."""
        if self.groups > 1:
            return self.dgrad.steps(channel, self.groups, [])
        for scales in (self.dgrad, self.wgrad):
            scales.exponent.store(0, nest.zero("int8"))
        return Factor.of(self.channels, [], lambda c: self.dgrad.units[0])
