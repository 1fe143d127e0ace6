"""Largest elements of rows, by integers that order like the floats: exact in any order."""

from tvm import tirx

from sqcompile.backends.cpu import nest, rows
from sqcompile.backends.cpu.nest import LANES, Expr
from sqcompile.backends.cpu.rounding import bits_of, same
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec


def _ordered(bits: Expr) -> Expr:
    sign = tirx.shift_right(bits, same(31, "int32", bits))
    return tirx.bitwise_xor(bits, tirx.bitwise_and(sign, same(0x7FFFFFFF, "int32", bits)))


@KERNELS.kernel("sq::amax")
def amax(spec: KernelSpec) -> object:
    """Rows in vectors; the end of a row is one too."""
    with nest.function(spec) as f:
        x, (out,) = f["x"], f.outputs
        length, place = x.shape[-1], nest.ramp(0)
        with rows.each_row(out.size, length) as row:
            best = nest.scratch(LANES, "int32")
            best.store(place, nest.splat(nest.const(-(2**31), "int32")))

            def body(at: Expr, last: bool) -> None:
                start = row * length
                if last:
                    one = rows.end(x, start, length, -float("inf"))
                else:
                    one = rows.whole(x, start + at)
                key = _ordered(rows.keep(bits_of(one, "int32")))
                best.store(place, tirx.max(best[place], key))

            rows.vectors(length, body)
            most = tirx.call_llvm_pure_intrin("int32", "llvm.vector.reduce.smax", best[place])
            out.store(row, nest.bits_of(_ordered(rows.keep(most)), "float32"))
    return f.result
