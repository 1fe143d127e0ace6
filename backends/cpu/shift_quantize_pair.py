"""ShiftQuant of a gradient for dgrad and wgrad in one kernel.

The maxima of rows and columns come out of one read. A second one takes 16 rows at a time: finds
the groups that they have for wgrad and, while they are in the cache, rounds them twice. Rows that
are no whole vectors are read a third time instead.
"""

from math import prod

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.absmax import Block, widest
from sqcompile.backends.cpu.nest import LANES, Array
from sqcompile.backends.cpu.philox import Philox
from sqcompile.backends.cpu.quantize_tokens import Tokens
from sqcompile.backends.cpu.scaled import Factor, Scaled
from sqcompile.backends.cpu.shift_quantize import Quantizer, by_rows
from sqcompile.backends.cpu.stochastic import quantize_runs
from sqcompile.backends.cpu.sweep import in_whole_vectors
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.ops.quantize_pair import PER_QUANTIZER


@KERNELS.kernel("sq::shift_quantize_pair", run_time=("stream",), views={"x": in_whole_vectors})
def shift_quantize_pair(spec: KernelSpec) -> object:
    """The maxima of both, then runs of rows."""
    with nest.function(spec, ("stream",)) as f:
        pair(f, spec, f["x"])
    return f.result


def pair(f: nest.Function, spec: KernelSpec, x: Array) -> None:
    """The ten outputs of shift_quantize_pair, f's first ones, of x."""
    factor = f.get("factor")
    dgrad = Quantizer(x, factor, f.outputs[:PER_QUANTIZER])
    wgrad = Quantizer(x, None, f.outputs[PER_QUANTIZER : 2 * PER_QUANTIZER])
    philox = Philox.of(f["rng"], f.scalars["stream"])
    bits, groups, channels = spec["bits"], spec["groups"], x.shape[-1]
    if spec["outer"] and dgrad.rows_outside and dgrad.scaled.extents[-1] == channels:
        by_rows(dgrad, wgrad.store_outer)
        if groups > 1 and channels % LANES == 0 and channels_only(factor):
            _tokens(x, factor, dgrad, wgrad, bits, groups).run(philox)
            return
        wgrad.measure_channels()
    else:
        for one in (dgrad, wgrad):
            one.measure(spec["outer"])
    quantize_runs([one.rounding(bits, groups) for one in (dgrad, wgrad)], philox, bits)


def channels_only(factor: Array | None) -> bool:
    """Whether a factor is absent or differs by channel alone."""
    return factor is None or prod(factor.shape[:-1]) == 1


def folded(factor: Array | None, channels: int) -> Factor | None:
    """The factor of every channel."""
    if factor is None:
        return None
    return Factor.of(channels, [], lambda c: factor[0 if factor.size == 1 else c])


def _tokens(
    x: Array, factor: Array | None, dgrad: Quantizer, wgrad: Quantizer, bits: int, groups: int
) -> Tokens:
    """The second read of x; all scales but wgrad's groups are known."""
    channels = x.shape[-1]
    found = Scaled(dgrad.channel, [channels], [])
    dgrad.settle(widest(found, Block([], [])), bits, groups)
    wgrad.settle(wgrad.largest_after(), bits, groups)
    return Tokens(
        (x.shape[0], prod(x.shape[1:-1]), channels),
        lambda at, column: x[nest.ramp(dgrad.scaled.place(at))],
        folded(factor, channels),
        dgrad,
        wgrad,
        wgrad.inverses,
        dgrad.steps(dgrad.channel, groups, []),
        bits,
        groups,
        computed=False,
    )
