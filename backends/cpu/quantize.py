"""Quantisers and what they need: absmax, group exponents, scales.

Rounding never calls a library: a value clamped to the grid is rounded to nearest even by adding
1.5 * 2^23, whose sum has the integer in its low bits, and floored by truncating and correcting.
Clamping first gives the same integer, since the limits are integers, and keeps NaN and infinity
out of the conversion.
"""

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.philox import BLOCK, Philox
from sqcompile.backends.cpu.sweep import broadcast, merge, sweep
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.ops.quantize import TINY, limits

_ROUNDER = 1.5 * 2**23
_ROUNDER_BITS = 0x4B400000


def _f(value: float) -> Expr:
    return nest.const(value, "float32")


def is_tiny(r: Expr) -> Expr:
    """An absmax that counts as zero."""
    return r < _f(TINY)


def inverse(outer: Expr) -> Expr:
    """1 / outer, or 1 where outer counts as zero."""
    return nest.select(is_tiny(outer), _f(1.0), _f(1.0) / outer)


def clamp(value: Expr, low: float, high: float) -> Expr:
    """value within [low, high]; NaN becomes a limit."""
    return tirx.min(tirx.max(value, _f(low)), _f(high))


def floor_to(value: Expr, dtype: str) -> Expr:
    """A float32 within the range of dtype -> its floor as dtype."""
    truncated = nest.cast(value, "int32")
    above = nest.cast(truncated, "float32") > value
    return nest.cast(truncated - nest.cast(above, "int32"), dtype)


def rounded(value: Expr) -> Expr:
    """A float32 below 2^21 in magnitude -> the nearest int32, ties to even."""
    return nest.bits_of(value + _f(_ROUNDER), "int32") - nest.const(_ROUNDER_BITS, "int32")


def quotient(bits: int, signed: bool, r: Expr) -> Expr:
    """qmax / r, one rounding."""
    return _f(limits(bits, signed)[1]) / r


@KERNELS.kernel("sq::quantize")
def quantize(spec: KernelSpec) -> object:
    """Elementwise over x; r is broadcast. The inner loop runs along x's last merged axis."""
    bits, signed = spec["bits"], spec["signed"]
    low, high = limits(bits, signed)
    with nest.function(spec) as f:
        x, r, (q,) = f["x"], f["r"], f.outputs

        def one(at: list[Expr]) -> None:
            absmax = r[at[1]]
            clamped = clamp(x[at[0]] * quotient(bits, signed, absmax), low, high)
            value = nest.select(is_tiny(absmax), nest.zero("int32"), rounded(clamped))
            q.store(at[0], nest.cast(value, q.dtype))

        sweep(x.shape, [broadcast(x.shape, x.shape), broadcast(x.shape, r.shape)], one)
    return f.result


@KERNELS.kernel("sq::quantize_stochastic", run_time=("stream",))
def quantize_stochastic(spec: KernelSpec) -> object:
    """Parallel over blocks of 128 elements, each with one Philox call of 16 counters.

    In vectors of 16 where the last merged axis is a multiple of 16, so that no vector crosses a
    row; element by element otherwise and in the last block.
    """
    with nest.function(spec, ("stream",)) as f:
        quantizer = _Stochastic(spec, f)
        size = f["x"].size
        philox = Philox.of(f["rng"], f.scalars["stream"])
        whole = size // BLOCK if quantizer.in_vectors else 0
        if whole:
            with nest.parallel(whole, size * 8, "block") as block:
                for index, draw in enumerate(philox.draws(block)):
                    quantizer.vector(block * BLOCK + index * nest.LANES, draw)
        if size > whole * BLOCK:
            blocks = -(-(size - whole * BLOCK) // BLOCK)
            with nest.parallel(blocks, blocks * BLOCK * 8, "block") as task:
                block = task + whole if whole else task
                held = nest.scratch(BLOCK, "int32")
                for index, draw in enumerate(philox.draws(block)):
                    held.store(nest.ramp(index * nest.LANES), nest.cast(draw, "int32", nest.LANES))
                with nest.serial(tirx.min(BLOCK, size - block * BLOCK), "e") as e:
                    quantizer.scalar(block * BLOCK + e, held[e])
    return f.result


class _Stochastic:
    """One element, or 16 in a row, of the stochastic quantiser."""

    def __init__(self, spec: KernelSpec, f: nest.Function) -> None:
        self.bits = spec["bits"]
        self.x, self.r, (self.q,) = f["x"], f["r"], f.outputs
        self.outer, self.exponent = f.get("outer"), f.get("exponent")
        operands = [a for a in (self.x, self.r, self.outer, self.exponent) if a is not None]
        shape = self.x.shape
        self.extents, steps = merge(shape, [broadcast(shape, a.shape) for a in operands])
        self.steps = {id(a): step for a, step in zip(operands, steps, strict=True)}
        self.in_vectors = self.extents[-1] % nest.LANES == 0 or len(self.extents) == 1

    def _offset(self, operand: Array, at: list[Expr]) -> Expr:
        return nest.linear(at, self.steps[id(operand)])

    def _value(self, index: Expr, at: list[Expr], uniform: Expr) -> Expr:
        absmax = self.r[self._offset(self.r, at)]
        scale = quotient(self.bits, True, absmax)
        if self.exponent is not None:
            e = nest.cast(self.exponent[self._offset(self.exponent, at)], "int32")
            power = tirx.shift_left(e + nest.const(127, "int32"), nest.const(23, "int32"))
            scale = scale * nest.bits_of(power, "float32")
        value = self.x[index]
        if self.outer is not None:
            value = value * inverse(self.outer[self._offset(self.outer, at)])
        low, high = limits(self.bits, True)
        moved = clamp(nest.fence(value * scale) + uniform, low, high)
        floored = floor_to(moved, "int32")
        return nest.cast(nest.select(is_tiny(absmax), nest.zero("int32"), floored), "int8")

    def vector(self, start: Expr, draw: Expr) -> None:
        """Elements start..start+15, which lie in one row; draw is uint32x16."""
        uniform = nest.scratch(nest.LANES, "float32")
        uniform.store(nest.ramp(0), _uniform(nest.cast(draw, "int32", nest.LANES), nest.LANES))
        *head, inner = nest.unravel(start, self.extents)
        with nest.lanes() as lane:
            value = self._value(start + lane, [*head, inner + lane], uniform[lane])
            self.q.store(start + lane, value)

    def scalar(self, index: Expr, draw: Expr) -> None:
        """One element; draw is int32."""
        value = self._value(index, nest.unravel(index, self.extents), _uniform(draw, 1))
        self.q.store(index, value)


def _uniform(draw: Expr, lanes: int) -> Expr:
    """(draw + 1/2) * 2^-16, exactly: the draw in the top of a mantissa makes 1 + u."""

    def same(value: int, dtype: str) -> Expr:
        scalar = nest.const(value, dtype)
        return scalar if lanes == 1 else nest.splat(scalar, lanes)

    mantissa = tirx.shift_left(draw, same(7, "int32"))
    number = tirx.bitwise_or(mantissa, same(0x3F800040, "int32"))
    float_type = "float32" if lanes == 1 else f"float32x{lanes}"
    return tirx.reinterpret(float_type, number) - same(1, "float32")


@KERNELS.kernel("sq::quant_scale")
def quant_scale(spec: KernelSpec) -> object:
    """Elementwise over r."""
    qmax = limits(spec["bits"], spec["signed"])[1]
    with nest.function(spec) as f:
        r, (scale,) = f["r"], f.outputs

        def one(at: list[Expr]) -> None:
            value = (r[at[0]] / _f(qmax)) * _f(2.0 ** -(spec["groups"] - 1))
            scale.store(at[0], nest.select(is_tiny(r[at[0]]), _f(1.0), value))

        sweep([r.size], [[1]], one)
    return f.result


@KERNELS.kernel("sq::outer_scale")
def outer_scale(spec: KernelSpec) -> object:
    """Elementwise over r."""
    with nest.function(spec) as f:
        r, (scale,) = f["r"], f.outputs

        def one(at: list[Expr]) -> None:
            scale.store(at[0], nest.select(is_tiny(r[at[0]]), _f(1.0), r[at[0]]))

        sweep([r.size], [[1]], one)
    return f.result


@KERNELS.kernel("sq::group_exponent")
def group_exponent(spec: KernelSpec) -> object:
    """The maximum of r (serial: r has one element per channel or row), then elementwise."""
    with nest.function(spec) as f:
        r, (exponent,) = f["r"], f.outputs
        largest = nest.scratch(1, "float32")
        largest.store(0, r[0])
        with nest.serial(r.size, "i") as i:
            largest.store(0, tirx.max(largest[0], r[i]))

        def one(at: list[Expr]) -> None:
            e = nest.zero("int8")
            for j in range(1, spec["groups"]):
                e = e + nest.cast(r[at[0]] <= largest[0] * _f(2.0**-j), "int8")
            exponent.store(at[0], e)

        sweep([r.size], [[1]], one)
    return f.result
