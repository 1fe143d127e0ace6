"""The activations of `sqcompile.ops.activation` as entries of the table of elementwise ops, which
is complete here."""

from functools import partial
from typing import Any

from tvm import tirx

from sqcompile.backends import builder, functions
from sqcompile.backends.builder import Expr
from sqcompile.backends.elements import ELEMENTS, enter
from sqcompile.backends.exact import fence, literal
from sqcompile.backends.functions import Keep, constant, product, times
from sqcompile.backends.rounding import clamp, rounded
from sqcompile.ops import activation as definition
from sqcompile.ops.functions import LOG2_E

__all__ = ["ELEMENTS"]

_enter = partial(enter, held=True)


def _tanh_argument(x: Expr) -> Expr:
    cube = product(product(x, x), x)
    return times(x + times(cube, definition.TANH_CUBE), definition.TANH_SLOPE)


def _cdf(x: Expr, approximate: bool, keep: Keep) -> Expr:
    x = keep(x)
    if approximate:
        spread = functions.tanh(_tanh_argument(x), keep)
    else:
        spread = functions.erf(times(x, definition.SQRT_HALF), keep)
    return times(spread + constant(1.0, x), 0.5)


def _gelu_slope(x: Expr, cdf: Expr, approximate: bool, keep: Keep) -> Expr:
    x = keep(clamp(x, -definition.FLAT, definition.FLAT))
    cdf, one = keep(cdf), constant(1.0, x)
    square = product(x, x)
    if approximate:
        curve = times(times(square, 3.0 * definition.TANH_CUBE) + one, 2.0 * definition.TANH_SLOPE)
        return cdf + product(x, product(product(cdf, one - cdf), curve))
    z = keep(times(square, -0.5 * LOG2_E))
    n = keep(rounded(z))
    curve = functions.polynomial(definition.DENSITY, keep(z - builder.cast(n, "float32")))
    moved = builder.bits_of(curve, "int32") + tirx.shift_left(n, builder.const(23, "int32"))
    return cdf + product(x, builder.bits_of(moved, "float32"))


def _silu_slope(x: Expr, s: Expr, keep: Keep) -> Expr:
    x = functions.clamped(keep(x), -definition.SILU_FLAT, definition.SILU_FLAT)
    s, one = keep(s), constant(1.0, s)
    return product(s, product(x, one - s) + one)


def _hardswish_slope(raised: Expr, keep: Keep) -> Expr:
    raised = keep(raised)
    zero, one = constant(0.0, raised), constant(1.0, raised)
    inside = fence(raised / constant(3.0, raised)) - constant(0.5, raised)
    above = builder.select(raised < constant(6.0, raised), inside, one)
    return builder.select(raised <= zero, zero, above)


def _tanh_slope(y: Expr, keep: Keep) -> Expr:
    y = keep(y)
    return constant(1.0, y) - product(y, y)


def _sigmoid_slope(y: Expr, keep: Keep) -> Expr:
    y = keep(y)
    return product(constant(1.0, y) - y, y)


def _elu(x: Expr, alpha: float, scale: float, input_scale: float, keep: Keep) -> Expr:
    x = keep(x)
    below = times(functions.expm1(times(x, input_scale), keep), alpha * scale)
    return builder.select(x > constant(0.0, x), times(x, scale), below)


def _elu_slope(
    value: Expr, alpha: float, scale: float, input_scale: float, is_result: bool, keep: Keep
) -> Expr:
    value = keep(value)
    if is_result:
        below = times(value + literal(alpha * scale), input_scale)
    else:
        curve = functions.exp(times(value, input_scale), keep)
        below = times(curve, alpha * scale * input_scale)
    return builder.select(value > constant(0.0, value), constant(scale, value), below)


def _quantized(slope: Expr, unit: float, low: int, high: int) -> Expr:
    q = rounded(clamp(times(slope, unit), low, high))
    return builder.cast(q - builder.const(low, "int32"), "uint8")


def _slope_backward(g: Expr, q: Expr, low: int, step: float) -> Expr:
    level = q + constant(float(low), q) if low else q
    return product(g, times(level, step))


for _name in ("exp", "expm1", "log", "erf", "tanh", "sigmoid"):
    _enter(f"sq::{_name}", of=getattr(functions, _name), arguments=("x",))

_ELU: tuple[str, ...] = ("alpha", "scale", "input_scale")
_FORMS: dict[str, tuple[Any, tuple[str, ...], tuple[str, ...]]] = {
    "gelu_cdf": (_cdf, ("x",), ("approximate",)),
    "gelu_slope": (_gelu_slope, ("x", "cdf"), ("approximate",)),
    "silu_slope": (_silu_slope, ("x", "s"), ()),
    "hardswish_slope": (_hardswish_slope, ("raised",), ()),
    "tanh_slope": (_tanh_slope, ("y",), ()),
    "sigmoid_slope": (_sigmoid_slope, ("y",), ()),
    "elu": (_elu, ("x",), _ELU),
    "elu_slope": (_elu_slope, ("value",), (*_ELU, "is_result")),
}
for _name, (_of, _tensors, _options) in _FORMS.items():
    _enter(f"sq::{_name}", of=_of, arguments=_tensors, options=_options)

enter(
    "sq::quantize_slope",
    of=_quantized,
    arguments=("slope",),
    options=("unit", "low", "high"),
    promoted=True,
)
enter("sq::slope_backward", of=_slope_backward, arguments=("g", "q"), options=("low", "step"))
