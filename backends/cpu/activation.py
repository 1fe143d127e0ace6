"""The activations of `sqcompile.ops.activation` as entries of the table of elementwise ops."""

from functools import partial
from typing import Any

from sqcompile.backends.cpu import functions, nest
from sqcompile.backends.cpu.elementwise import enter
from sqcompile.backends.cpu.functions import Keep, constant, product, times
from sqcompile.backends.cpu.nest import Expr
from sqcompile.ops import activation as definition

_enter = partial(enter, held=True)


def _tanh_argument(x: Expr) -> Expr:
    cube = product(product(x, x), x)
    return times(x + times(cube, definition.TANH_CUBE), definition.TANH_SLOPE)


def _gelu(x: Expr, approximate: bool, keep: Keep) -> Expr:
    x = keep(x)
    one = constant(1.0, x)
    if approximate:
        spread = functions.tanh(_tanh_argument(x), keep)
    else:
        spread = functions.erf(times(x, definition.SQRT_HALF), keep)
    return product(times(x, 0.5), spread + one)


def _gelu_backward(g: Expr, x: Expr, approximate: bool, keep: Keep) -> Expr:
    x = keep(x)
    one = constant(1.0, x)
    if approximate:
        t = keep(functions.tanh(_tanh_argument(x), keep))
        curve = times(product(x, x), 3.0 * definition.TANH_CUBE) + one
        slope = times(curve, definition.TANH_SLOPE)
        bend = product(product(times(x, 0.5), one - product(t, t)), slope)
        return product(g, times(t + one, 0.5) + bend)
    cdf = times(functions.erf(times(x, definition.SQRT_HALF), keep) + one, 0.5)
    density = times(functions.exp(times(product(x, x), -0.5), keep), definition.DENSITY)
    return product(g, cdf + product(x, density))


def _silu(x: Expr, keep: Keep) -> Expr:
    x = keep(x)
    return product(x, functions.sigmoid(x, keep))


def _silu_backward(g: Expr, x: Expr, keep: Keep) -> Expr:
    x = keep(x)
    s = keep(functions.sigmoid(x, keep))
    one = constant(1.0, x)
    return product(g, product(s, product(x, one - s) + one))


def _hardswish(x: Expr, keep: Keep) -> Expr:
    x = keep(x)
    raised = keep(x + constant(3.0, x))
    return product(x, functions.clamped(raised, 0.0, 6.0)) / constant(6.0, x)


def _hardswish_backward(g: Expr, x: Expr, keep: Keep) -> Expr:
    g, x = keep(g), keep(x)
    three = constant(3.0, x)
    inside = product(g, nest.fence(x / three) + constant(0.5, x))
    above = nest.select(x < three, inside, g)
    return nest.select(x <= constant(-3.0, x), constant(0.0, x), above)


def _elu(x: Expr, alpha: float, scale: float, input_scale: float, keep: Keep) -> Expr:
    x = keep(x)
    below = times(functions.expm1(times(x, input_scale), keep), alpha * scale)
    return nest.select(x > constant(0.0, x), times(x, scale), below)


def _elu_backward(
    g: Expr,
    value: Expr,
    alpha: float,
    scale: float,
    input_scale: float,
    is_result: bool,
    keep: Keep,
) -> Expr:
    g, value = keep(g), keep(value)
    if is_result:
        below = product(g, times(value + nest.literal(alpha * scale), input_scale))
    else:
        curve = functions.exp(times(value, input_scale), keep)
        below = product(g, times(curve, alpha * scale * input_scale))
    return nest.select(value > constant(0.0, value), times(g, scale), below)


for _name in ("exp", "expm1", "log", "erf", "tanh", "sigmoid"):
    _enter(f"sq::{_name}", of=getattr(functions, _name), arguments=("x",))

_ELU: tuple[str, ...] = ("alpha", "scale", "input_scale")
_FORMS: dict[str, tuple[Any, tuple[str, ...], tuple[str, ...]]] = {
    "gelu": (_gelu, ("x",), ("approximate",)),
    "gelu_backward": (_gelu_backward, ("g", "x"), ("approximate",)),
    "silu": (_silu, ("x",), ()),
    "silu_backward": (_silu_backward, ("g", "x"), ()),
    "hardswish": (_hardswish, ("x",), ()),
    "hardswish_backward": (_hardswish_backward, ("g", "x"), ()),
    "elu": (_elu, ("x",), _ELU),
    "elu_backward": (_elu_backward, ("g", "value"), (*_ELU, "is_result")),
}
for _name, (_of, _tensors, _options) in _FORMS.items():
    _enter(f"sq::{_name}", of=_of, arguments=_tensors, options=_options)
