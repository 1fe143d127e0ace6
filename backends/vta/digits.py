"""Integers that are too wide for a scratchpad's elements, or not centred: digits and an offset.

value = offset + sum_i digit_i * 2^(width * i), every digit a signed element. A product of
operands in digits is a sum of products of digits, each with a shift that the program applies to
its accumulators (Horner); an offset is made good on the host, from sums of the other operand.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqcompile.backends.vta.spec import Values


@dataclass(frozen=True)
class Digits:
    """How the values of one operand are written in signed elements of `width` bits."""

    width: int
    count: int
    offset: int

    @classmethod
    def of(cls, values: Values, width: int, centred: bool = False) -> "Digits":
        """The fewest digits that span the values, and the offset next to zero that does; 0 when
        `centred`, which may take a digit more."""
        count = 1
        while True:
            ones = sum(1 << width * place for place in range(count))
            least, most = -(ones << width - 1), (ones << width - 1) - ones
            offset = max(0, values.high - most) or min(0, values.low - least)
            spanned = values.high - values.low <= most - least
            if spanned and not (centred and offset):
                return cls(width, count, offset)
            count += 1

    def split(self, values: NDArray[Any]) -> NDArray[np.int8]:
        """(...) integers -> (count, ...), the lowest digit first."""
        half = 1 << self.width - 1
        rest = values.astype(np.int32) - self.offset
        digits = np.empty((self.count, *values.shape), np.int8)
        for digit in digits:
            digit[...] = ((rest + half) & (2 * half - 1)) - half
            rest = (rest - digit) >> self.width
        if rest.any():
            raise ValueError("an operand holds an integer outside the range that its spec gives")
        return digits
