"""exp, expm1, log, erf, tanh, sigmoid: float32 operations in a written order, each rounded once.

No library computes them: two libraries differ in the last bit. Exponents are moved by integer
operations on the bits. The errors named here are in units of the last place, the largest of some
44 million float32 of all exponents (`tests/ops/test_functions.py`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sqcompile.ops.table import Op, op

LOG2_E = 1.44269504088896341
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
"""log 2 in two parts; the first has 9 bits, so that its products with exponents are exact."""
ROUNDER, ROUNDER_BITS = 1.5 * 2.0**23, 0x4B400000
"""A sum with ROUNDER has the nearest integer, ties to even, in its low bits."""
EXP_LOWEST, EXP_HIGHEST = -104.0, 89.0
"""Beyond these exp is 0 and infinity."""
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
"""(exp(r) - 1 - r) / r^2 for |r| <= log(2) / 2, highest power first (Cephes)."""

SMALLEST_NORMAL, SCALED_EXPONENT = 2.0**-126, 23
SQRT_HALF_BITS = 0x3F3504F3
LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
"""(log(1 + z) - z + z^2 / 2) / z^3 for sqrt(1/2) <= 1 + z < sqrt(2) (Cephes)."""

ERF_HIGHEST = 3.8325068
"""From here on erf is 1."""
ERF_ABOVE = (
    2.2905065861350646e-4, 3.4082910107109506e-3, 5.0955695062380861e-2, 1.8520832239976145e-1,
    1.128379143519084,
)  # fmt: skip
ERF_BELOW = (
    -1.1791602954361697e-7, 2.3547966471313185e-5, 1.0179625278914885e-3, 1.4070470171167667e-2,
    1.1098505178285362e-1, 4.9746925110067538e-1, 1.0,
)  # fmt: skip
"""erf(x) / x as a quotient of polynomials in x^2, highest power first (Eigen)."""

TANH_HIGHEST = 9.0
"""From here on tanh is 1."""
_SLOPE = 4.89352455891786e-3
TANH_ABOVE = tuple(
    one / _SLOPE
    for one in (
        -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-8,
        1.48572235717979e-5, 6.37261928875436e-4, _SLOPE,
    )
)  # fmt: skip
TANH_BELOW = tuple(
    one / _SLOPE
    for one in (1.19825839466702e-6, 1.18534705686654e-4, 2.26843463243900e-3, 4.89352518554385e-3)
)
"""tanh(x) / x as a quotient of polynomials in x^2 (Eigen), scaled so that tiny x lose no bits."""


def like(entry: Op) -> None:
    """The meta function of an op whose result is as its first argument."""

    @entry.meta
    def _(x: Tensor, *_: object) -> Tensor:
        return x.new_empty(x.shape)


def polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Horner's rule, highest power first: a product, then a sum, for every coefficient."""
    total = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total


def _power(n: Tensor) -> Tensor:
    """2^n of int32 in -126..127, by its exponent bits."""
    return ((n + 127) << 23).view(torch.float32)


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """x -> (n, q) with exp(x) = 2^n * (1 + q), n the nearest int32 to x / log(2)."""
    x = x.contiguous().clamp(EXP_LOWEST, EXP_HIGHEST)
    n = (x * LOG2_E + ROUNDER).view(torch.int32) - ROUNDER_BITS
    whole = n.to(torch.float32)
    r = (x - whole * LN2_HIGH) - whole * LN2_LOW
    return n, (r * r) * polynomial(EXP, r) + r


def _joined(n: Tensor, q: Tensor) -> Tensor:
    """2^n * (1 + q), in two steps because 2^n alone may be out of range."""
    half = n >> 1
    return ((q + 1.0) * _power(half)) * _power(n - half)


@op("sq::exp", doc="The exponential function.")
def exp(x: Tensor) -> Tensor:
    """x float32 -> float32, off by less than 1 ulp; exp(-inf) is 0, subnormal results included."""
    return _joined(*_split(x))


@op("sq::expm1", doc="exp(x) - 1, without cancellation near 0.")
def expm1(x: Tensor) -> Tensor:
    """x float32 -> float32, off by less than 4 ulp; -0.0 gives 0.0."""
    n, q = _split(x)
    return torch.where(n == 0, q, _joined(n, q) - 1.0)


@op("sq::log", doc="The natural logarithm.")
def log(x: Tensor) -> Tensor:
    """x float32 -> float32, off by less than 1 ulp; log(0) is -inf, of less than 0 NaN."""
    x = x.contiguous()
    small = x < SMALLEST_NORMAL
    scaled = torch.where(small, x * 2.0**SCALED_EXPONENT, x)
    bits = scaled.view(torch.int32) & 0x7FFFFFFF
    e = (bits - SQRT_HALF_BITS) >> 23
    z = (bits - (e << 23)).view(torch.float32) - 1.0
    exponent = (e - torch.where(small, SCALED_EXPONENT, 0)).to(torch.float32)
    square = z * z
    y = (square * z) * polynomial(LOG, z) + exponent * LN2_LOW
    y = (z + (y - square * 0.5)) + exponent * LN2_HIGH
    y = torch.where(x == 0.0, -torch.inf, y)
    y = torch.where(x < 0.0, torch.nan, y)
    return torch.where(x < torch.inf, y, x)


def _odd_quotient(
    x: Tensor, highest: float, above: Sequence[float], below: Sequence[float]
) -> Tensor:
    """x * above(x^2) / below(x^2), constant from `highest` on."""
    x = x.clamp(-highest, highest)
    square = x * x
    quotient = (x * polynomial(above, square)) / polynomial(below, square)
    return quotient.clamp(-1.0, 1.0)


@op("sq::erf", doc="The error function.")
def erf(x: Tensor) -> Tensor:
    """x float32 -> float32 in [-1, 1], off by less than 6 ulp."""
    return _odd_quotient(x, ERF_HIGHEST, ERF_ABOVE, ERF_BELOW)


@op("sq::tanh", doc="The hyperbolic tangent.")
def tanh(x: Tensor) -> Tensor:
    """x float32 -> float32 in [-1, 1], off by less than 6 ulp."""
    return _odd_quotient(x, TANH_HIGHEST, TANH_ABOVE, TANH_BELOW)


@op("sq::sigmoid", doc="1 / (1 + exp(-x)).")
def sigmoid(x: Tensor) -> Tensor:
    """x float32 -> float32 in [0, 1], off by less than 3 ulp: e / (1 + e) below 0 and 1 / (1 + e)
    above, with e = exp(-|x|)."""
    e = exp.reference(-x.abs())
    return torch.where(x < 0.0, e, 1.0) / (e + 1.0)


for _entry in (exp, expm1, log, erf, tanh, sigmoid):
    like(_entry)
