"""L1 layer norm of float rows: absmax, quantisation, statistics and result while a few rows and
their integers lie in the L1 cache."""

from collections.abc import Callable
from functools import partial

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.bit_packing import nibbles
from sqcompile.backends.cpu.layer_norm import Row, row_blocks, row_spread, whole_bytes
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.norm import held
from sqcompile.backends.cpu.rounding import rounded, step, steps_per_unit
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.ops.norm_fused import PACKED_BITS


def _packs(spec: KernelSpec) -> bool:
    return bool(spec["bits"] <= PACKED_BITS)


def _limit(spec: KernelSpec) -> str:
    return whole_bytes(spec) if _packs(spec) else ""


def row_absmax(value: Callable[[Expr], Expr], length: int) -> Expr:
    """The largest magnitude of value(0), ..., value(length - 1), by its bits."""

    def magnitude(i: Expr) -> Expr:
        bits = nest.bits_of(value(i), "int32")
        return tirx.bitwise_and(bits, nest.const(0x7FFFFFFF, "int32"))

    lanes, best = nest.scratch(LANES, "int32"), nest.scratch(1, "int32")
    with nest.lanes() as lane:
        lanes.store(lane, nest.zero("int32"))
    with nest.serial(length // LANES, "v") as v, nest.lanes() as lane:
        lanes.store(lane, tirx.max(lanes[lane], magnitude(v * LANES + lane)))
    largest = tirx.call_llvm_pure_intrin("int32", "llvm.vector.reduce.smax", lanes[nest.ramp(0)])
    best.store(0, largest)
    with nest.serial(length, "i", length - length % LANES) as i:
        best.store(0, tirx.max(best[0], magnitude(i)))
    return held(nest.bits_of(best[0], "float32"))


def _element(x: Array, start: Expr, i: Expr) -> Expr:
    return x[start + i]


@KERNELS.kernel("sq::quantize_l1_layer_norm", limit=_limit)
def quantize_l1_layer_norm(spec: KernelSpec) -> object:
    """No element is beyond the absmax of its row, so nothing is clamped."""
    bits = spec["in_bits"]
    with nest.function(spec) as f:
        x, (y, xhat, coefficient, absmax) = f["x"], f.outputs
        rows, length = x.shape
        with row_blocks(rows, length, length * 8) as (most, first, count):
            q = nest.workspace(max(most * length, nest.STACK), "int8")
            factors, means = nest.scratch(most, "float32"), nest.scratch(most, "int32")
            origin = first * length
            with nest.serial(count, "row") as row:
                read = partial(_element, x, origin + row * length)
                absmax.store(first + row, row_absmax(read, length))
            with nest.serial(count, "row") as row:
                start, r = row * length, held(absmax[first + row])
                steps = held(steps_per_unit(bits, True, r))

                def quantize(i: Expr) -> None:
                    value = rounded(nest.fence(x[origin + start + i] * steps))
                    q.store(start + i, nest.cast(value, "int8"))

                nest.vectors(length, quantize)
            with nest.serial(count, "row") as row:
                m = first + row
                spread, mean = row_spread(spec, q, row * length, step(bits, True, 1, absmax[m]))
                coefficient.store(m, spread.coefficient)
                factors.store(row, spread.factor)
                means.store(row, mean)
            with nest.serial(count, "row") as row:
                factor, mean = held(factors[row]), held(means[row], "int32")
                one = Row(spec, q, row * length, factor, mean, f.get("gamma"), f.get("beta"))
                packed = xhat if _packs(spec) else None
                _write(one, y, packed, xhat, (first + row) * length, length)
    return f.result


def _write(row: Row, y: Array, packed: Array | None, xhat: Array, start: Expr, length: int) -> None:
    """y and xhat of a row, in vectors and then in pairs."""

    def one(i: Expr) -> Expr:
        value, k = row.element(i)
        y.store(start + i, value)
        if packed is None:
            xhat.store(start + i, nest.cast(k, "int8"))
        return k

    if packed is None:
        nest.vectors(length, one)
        return
    ks = nest.scratch(LANES, "int32")
    with nest.serial(length // LANES, "v") as v:
        with nest.lanes() as lane:
            ks.store(lane, one(v * LANES + lane))
        byte = tirx.floordiv(start, 2) + v * (LANES // 2)
        packed.store(nest.ramp(byte, LANES // 2), nibbles(ks[nest.ramp(0)]))
    rest = length % LANES
    with nest.serial(rest // 2, "pair") as pair:
        first = pair * 2 + (length - rest)
        low, high = (tirx.bitwise_and(one(first + j), nest.const(0xF, "int32")) for j in (0, 1))
        byte = tirx.bitwise_or(low, tirx.shift_left(high, nest.const(4, "int32")))
        packed.store(tirx.floordiv(start + first, 2), nest.cast(byte, "uint8"))
