"""A tensor times small broadcast factors, read in vectors: what absmax and the quantisers see.

Factors (1 / outer, qmax / r, 2^exponent, a folded weight scale) are computed once into scratch,
so an inner loop only multiplies. Extents are merged: heads, then the innermost axis.
"""

from collections.abc import Callable, Sequence

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import LANES, Array, Expr
from sqcompile.backends.cpu.sweep import contiguous, merge, refined


class Factor:
    """f(array) in scratch, read with `steps` along the merged axes."""

    def __init__(self, size: int, steps: Sequence[int]) -> None:
        self.size, self.steps = size, list(steps)
        self.held = nest.scratch(size, "float32")

    @classmethod
    def of(cls, size: int, steps: Sequence[int], value: Callable[[Expr], Expr]) -> "Factor":
        """The factor with value(i) in place i."""
        made = cls(size, steps)
        with nest.serial(size, "f") as i:
            made.store(i, value(i))
        return made

    def store(self, index: Expr, value: Expr) -> None:
        """Put a value in place `index`."""
        self.held.store(index, value)

    def __getitem__(self, index: Expr) -> Expr:
        return self.held[index]

    def wide(self, size: int) -> "Factor":
        """With `size` places, all alike when there is one."""
        if self.size == size:
            return self
        return Factor.of(size, [], lambda _: self[0])

    def vector(self, index: Expr) -> Expr:
        """LANES values from place `index` on."""
        return self.held[nest.ramp(index)]

    def read(self, heads: Sequence[Expr], column: Expr, lanes: int) -> Expr:
        """The values at `column`, ... of the row `heads`."""
        first = nest.linear(heads, self.steps[:-1])
        if self.steps[-1] == 0:
            one = self.held[first]
            return one if lanes == 1 else nest.splat(one, lanes)
        index = nest.linear([column], self.steps[-1:], first)
        return self.held[index] if lanes == 1 else self.held[nest.ramp(index, lanes)]


def hoisted(
    x: Array,
    operands: Sequence[tuple[Array, Callable[[Expr], Expr]]],
    *others: Sequence[int],
) -> tuple["Scaled", list[Factor], list[list[int]]]:
    """(x over merged axes, a factor value(operand) for each operand, steps of tensors of the shapes
    `others`), all broadcast to x's shape."""
    shapes = [*(array.shape for array, _ in operands), *others]
    extents, (own, *steps) = merge(*refined(x, *shapes))

    def factor(array: Array, value: Callable[[Expr], Expr], step: list[int]) -> Factor:
        return Factor.of(array.size, step, lambda i: value(array[i]))

    factors = [factor(*pair, step) for pair, step in zip(operands, steps, strict=False)]
    return Scaled(x, extents, [], own), factors, steps[len(operands) :]


class Scaled:
    """x * factor * factor ..., each product rounded once, from left to right; `strides`: those of x
    in memory, if it does not lie there as it is read."""

    def __init__(
        self,
        x: Array,
        extents: Sequence[int],
        factors: Sequence[Factor],
        strides: Sequence[int] | None = None,
    ) -> None:
        self.x, self.extents, self.factors = x, list(extents), list(factors)
        self.strides = list(strides or contiguous(extents))

    def times(self, *factors: Factor) -> "Scaled":
        """With further factors."""
        return Scaled(self.x, self.extents, [*self.factors, *factors], self.strides)

    def plain(self) -> "Scaled":
        """Without factors."""
        return Scaled(self.x, self.extents, [], self.strides)

    def place(self, index: Expr) -> Expr:
        """Where an element lies that stands at a row-major index; where those of a vector begin, if
        rows are of whole vectors."""
        if self.strides == contiguous(self.extents):
            return self.x.walk.begin + index
        return nest.linear(nest.unravel(index, self.extents), self.strides, self.x.walk.begin)

    def read(self, heads: Sequence[Expr], column: Expr, lanes: int = LANES) -> Expr:
        """`lanes` values of the row `heads` from `column` on."""
        index = nest.linear([*heads, column], self.strides, self.x.walk.begin)
        value = self.x[index] if lanes == 1 else self.x[nest.ramp(index, lanes)]
        for factor in self.factors:
            value = value * factor.read(heads, column, lanes)
        return value
