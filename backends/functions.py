"""The float functions of `sqcompile.ops.functions` as expressions, of a scalar inside a vector
loop or of a whole vector.

`keep(value)` holds a value that stands more than once; its result may be used freely. Every
product that feeds a sum is fenced.
"""

from collections.abc import Callable, Sequence
from functools import partial

from tvm import tirx

from sqcompile.backends import builder
from sqcompile.backends.builder import Expr
from sqcompile.backends.exact import fence
from sqcompile.backends.rounding import bits_of, cast, lanes_of, power, same
from sqcompile.ops import functions as definition

Keep = Callable[[Expr], Expr]


def product(a: Expr, b: Expr) -> Expr:
    """a * b with a rounding of its own."""
    return fence(a * b, lanes_of(a))


def constant(value: float, x: Expr) -> Expr:
    """A float32 constant in every lane of x."""
    return same(value, "float32", x)


def times(x: Expr, factor: float) -> Expr:
    """x times a constant, rounded."""
    return product(x, constant(factor, x))


def integer(value: int, x: Expr) -> Expr:
    """An int32 constant in every lane of x."""
    return same(value, "int32", x)


def clamped(x: Expr, low: float, high: float) -> Expr:
    """x within [low, high]; NaN stays."""
    raised = builder.select(x < constant(low, x), constant(low, x), x)
    return builder.select(raised > constant(high, x), constant(high, x), raised)


def magnitude(x: Expr) -> Expr:
    """|x|."""
    cleared = tirx.bitwise_and(bits_of(x, "int32"), integer(0x7FFFFFFF, x))
    return bits_of(cleared, "float32")


def polynomial(coefficients: Sequence[float], x: Expr) -> Expr:
    """Horner's rule, highest power first; x is held."""
    total = constant(coefficients[0], x)
    for coefficient in coefficients[1:]:
        total = product(total, x) + constant(coefficient, x)
    return total


def _split(x: Expr, keep: Keep) -> tuple[Expr, Expr]:
    x = keep(clamped(keep(x), definition.EXP_LOWEST, definition.EXP_HIGHEST))
    moved = times(x, definition.LOG2_E) + constant(definition.ROUNDER, x)
    n = keep(bits_of(moved, "int32") - integer(definition.ROUNDER_BITS, x))
    whole = keep(cast(n, "float32"))
    r = keep((x - times(whole, definition.LN2_HIGH)) - times(whole, definition.LN2_LOW))
    return n, product(product(r, r), polynomial(definition.EXP, r)) + r


def _joined(n: Expr, q: Expr, keep: Keep) -> Expr:
    half = keep(tirx.shift_right(n, integer(1, n)))
    return product(product(q + constant(1.0, q), power(half)), power(n - half))


def exp(x: Expr, keep: Keep) -> Expr:
    """sq::exp."""
    n, q = _split(x, keep)
    return _joined(n, q, keep)


def expm1(x: Expr, keep: Keep) -> Expr:
    """sq::expm1."""
    n, q = _split(x, keep)
    q = keep(q)
    whole = _joined(n, q, keep) - constant(1.0, q)
    return builder.select(tirx.EQ(n, integer(0, n)), q, whole)


def log(x: Expr, keep: Keep) -> Expr:
    """sq::log."""
    x = keep(x)
    small = x < constant(definition.SMALLEST_NORMAL, x)
    scaled = builder.select(small, times(x, 2.0**definition.SCALED_EXPONENT), x)
    bits = keep(bits_of(magnitude(scaled), "int32"))
    e = keep(tirx.shift_right(bits - integer(definition.SQRT_HALF_BITS, bits), integer(23, bits)))
    mantissa = bits - tirx.shift_left(e, integer(23, e))
    z = keep(bits_of(mantissa, "float32") - constant(1.0, x))
    shifted = builder.select(small, integer(definition.SCALED_EXPONENT, e), integer(0, e))
    exponent = keep(cast(e - shifted, "float32"))
    square = keep(product(z, z))
    cubic = product(product(square, z), polynomial(definition.LOG, z))
    y = cubic + times(exponent, definition.LN2_LOW)
    y = (z + (y - times(square, 0.5))) + times(exponent, definition.LN2_HIGH)
    not_a_number = bits_of(integer(0x7FC00000, x), "float32")
    zero = constant(0.0, x)
    y = builder.select(tirx.EQ(x, zero), constant(-float("inf"), x), y)
    y = builder.select(x < zero, not_a_number, y)
    return builder.select(x < constant(float("inf"), x), y, x)


def _odd_quotient(
    x: Expr, keep: Keep, highest: float, above: Sequence[float], below: Sequence[float]
) -> Expr:
    x = keep(clamped(keep(x), -highest, highest))
    square = keep(product(x, x))
    quotient = keep(product(x, polynomial(above, square)) / polynomial(below, square))
    return clamped(quotient, -1.0, 1.0)


erf = partial(
    _odd_quotient,
    highest=definition.ERF_HIGHEST,
    above=definition.ERF_ABOVE,
    below=definition.ERF_BELOW,
)
tanh = partial(
    _odd_quotient,
    highest=definition.TANH_HIGHEST,
    above=definition.TANH_ABOVE,
    below=definition.TANH_BELOW,
)


def sigmoid(x: Expr, keep: Keep) -> Expr:
    """sq::sigmoid."""
    x = keep(x)
    sign = integer(-(2**31), x)
    negative = bits_of(tirx.bitwise_or(bits_of(x, "int32"), sign), "float32")
    e = keep(exp(negative, keep))
    one = constant(1.0, e)
    return builder.select(x < constant(0.0, x), e, one) / (e + one)
