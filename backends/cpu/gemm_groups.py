"""Group shifts of a reduction, as tables that packing reads.

`Factors` shift an operand's values: bytes are multiplied in pairs, because no x86 CPU shifts
bytes one by one.
"""

from dataclasses import dataclass

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.gemm_shape import RUN, rounded
from sqcompile.backends.cpu.machine import Dot
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.sweep import broadcast


@dataclass(frozen=True)
class Exponents:
    """Exponents along k; `batches` is 1 when every batch has the same."""

    array: Array
    groups: int
    batches: int
    batch_step: int
    step: int

    @classmethod
    def of(cls, array: Array, groups: int, a: Array, transposed: bool) -> "Exponents":
        """The exponents of a product's operand a."""
        steps = broadcast(a.shape, array.shape)
        batch_step = steps[0] if len(steps) == 3 else 0
        batches = a.shape[0] if batch_step else 1
        return cls(array, groups, batches, batch_step, steps[-2] if transposed else steps[-1])

    def at(self, batch: Expr, k: Expr) -> Expr:
        """The exponent of step k as int32."""
        return nest.cast(self.array[batch * self.batch_step + k * self.step], "int32")

    def batch(self, batch: Expr) -> Expr:
        """The batch whose tables serve `batch`."""
        return batch if self.batches > 1 else 0


@dataclass(frozen=True)
class Factors:
    """2 ** shift for every step of k, in the order in which packed values are multiplied.

    Words: one factor each. Bytes: `low` for those at even places of a quad, `high` for odd ones.
    """

    dot: Dot
    low: Array
    high: Array | None
    length: int
    batches: int

    @classmethod
    def of(cls, exponents: Exponents, dot: Dot, k: int, shifts: tuple[int, int]) -> "Factors":
        """For the operand whose part of a shift s is what lies between shifts[0] and shifts[1]."""
        length = rounded(k, RUN * dot.depth)
        size = exponents.batches * length
        kind = "uint16" if dot.bytes else "int16"
        low = nest.scratch(size // 2 if dot.bytes else size, kind)
        high = nest.scratch(size // 2, kind) if dot.bytes else None
        first, last = shifts

        def factor(batch: Expr, k: Expr) -> Expr:
            s = exponents.groups - 1 - exponents.at(batch, k)
            own = tirx.max(tirx.min(s, last) - first, 0)
            return nest.cast(tirx.shift_left(nest.const(1, "int32"), own), kind)

        with nest.parallel(exponents.batches, size, "batch") as batch:
            if high is None:
                with nest.serial(k, "k") as i:
                    low.store(batch * length + i, factor(batch, i))
            else:
                with nest.serial(k // 2, "pair") as pair:
                    at = batch * (length // 2) + pair
                    low.store(at, factor(batch, pair * 2))
                    high.store(at, factor(batch, pair * 2 + 1))
                if k % 2:
                    low.store(batch * (length // 2) + k // 2, factor(batch, k - 1))
        return cls(dot, low, high, length, exponents.batches)

    def scaled(self, vector: Expr, batch: Expr, k: Expr) -> Expr:
        """A packed vector whose lanes hold steps k ... k + depth - 1, shifted."""
        at = k if self.batches == 1 else batch * self.length + k
        if self.high is None:
            return vector * self._pattern(self.low, at, 2)
        lanes = self.dot.lanes * 2
        words = tirx.reinterpret(f"uint16x{lanes}", vector)
        even, odd = (nest.splat(nest.const(bits, "uint16"), lanes) for bits in (0x00FF, 0xFF00))
        half = tirx.floordiv(at, 2)
        low = tirx.bitwise_and(words * self._pattern(self.low, half, 2), even)
        high = tirx.bitwise_and(words, odd) * self._pattern(self.high, half, 2)
        return tirx.reinterpret(vector.ty.dtype, tirx.bitwise_or(low, high))

    def _pattern(self, table: Array, at: Expr, count: int) -> Expr:
        word = tirx.reinterpret("int32", table[nest.ramp(at, count)])
        return tirx.reinterpret(
            f"{table.dtype}x{self.dot.lanes * 2}", nest.splat(word, self.dot.lanes)
        )
