"""IEEE 754 arithmetic by rational numbers, as slow and as plain as its definition."""

import math
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Format:
    """A binary float format: bits of the significand, exponents of normal numbers."""

    precision: int
    lowest: int
    highest: int

    @property
    def largest(self):
        return (2 - Fraction(2) ** (1 - self.precision)) * Fraction(2) ** self.highest


F16, F32, F64 = Format(11, -14, 15), Format(24, -126, 127), Format(53, -1022, 1023)


def up(mode, negative, rest, odd):
    """Whether a magnitude is rounded up: rest is the part below its last bit, in units of that."""
    return {
        "rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and odd),
        "rz": False,
        "rm": negative and rest > 0,
        "rp": not negative and rest > 0,
    }[mode]


def whole(value, mode):
    """A rational number rounded to an integer."""
    size = abs(value)
    floor = size.numerator // size.denominator
    floor += up(mode, value < 0, size - floor, floor % 2 == 1)
    return -floor if value < 0 else floor


def rounded(value, mode, form):
    """A rational number, not 0, rounded to a float of the format."""
    size, negative = abs(value), value < 0
    exponent = (
        math.frexp(size)[1] - 1 if Fraction(2) ** -1000 < size < Fraction(2) ** 1000 else None
    )
    if exponent is None:
        exponent = size.numerator.bit_length() - size.denominator.bit_length()
        exponent -= Fraction(2) ** exponent > size
    while Fraction(2) ** exponent > size:
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= size:
        exponent += 1
    last = Fraction(2) ** (max(exponent, form.lowest) - form.precision + 1)
    floor = (size / last).numerator // (size / last).denominator
    rest = size / last - floor
    result = (floor + up(mode, negative, rest, floor % 2 == 1)) * last
    if result > form.largest:
        infinite = mode == "rn" or mode == ("rm" if negative else "rp")
        return (-1 if negative else 1) * (math.inf if infinite else float(form.largest))
    return -float(result) if negative else float(result)


def special(*values):
    return any(math.isnan(value) or math.isinf(value) for value in values)


def signed_zero(negative):
    return -0.0 if negative else 0.0


def is_negative(value):
    return math.copysign(1, value) < 0


def add(a, b, mode, form):
    if special(a, b):
        return a + b
    total = Fraction(a) + Fraction(b)
    if total:
        return rounded(total, mode, form)
    if is_negative(a) == is_negative(b):
        return a
    return signed_zero(mode == "rm")


def sub(a, b, mode, form):
    return add(a, math.copysign(b, -math.copysign(1, b)) if b == b else b, mode, form)


def mul(a, b, mode, form):
    if special(a, b):
        return a * b
    if a == 0 or b == 0:
        return signed_zero(is_negative(a) != is_negative(b))
    return rounded(Fraction(a) * Fraction(b), mode, form)


def div(a, b, mode, form):
    negative = is_negative(a) != is_negative(b)
    if a != a or b != b or (a == 0 and b == 0) or (math.isinf(a) and math.isinf(b)):
        return math.nan
    if math.isinf(a) or b == 0:
        return -math.inf if negative else math.inf
    if math.isinf(b) or a == 0:
        return signed_zero(negative)
    return rounded(Fraction(a) / Fraction(b), mode, form)


def fma(a, b, c, mode, form):
    if special(a, b, c):
        product = math.nan if (math.isinf(a) and b == 0) or (a == 0 and math.isinf(b)) else a * b
        if not special(a, b):
            product = 0.0  # finite, whatever c is then decides
        return product + c
    product = Fraction(a) * Fraction(b)
    total = product + Fraction(c)
    if total:
        return rounded(total, mode, form)
    negative = is_negative(a) != is_negative(b)
    if product == 0 and c == 0 and negative == is_negative(c):
        return c
    return signed_zero(mode == "rm")


def sqrt(a, mode, form):
    if a != a or a < 0:
        return math.nan
    if a == 0 or math.isinf(a):
        return a
    value = Fraction(a)
    shift = 1200  # more bits than any format has; a root that is not exact gets a rest
    scaled = value * Fraction(2) ** (2 * shift)
    root = math.isqrt(scaled.numerator // scaled.denominator)
    exact = root * root == scaled
    root = Fraction(root) / Fraction(2) ** shift
    if not exact:
        root += Fraction(1, 2 ** (2 * shift))
    return rounded(root, mode, form)
