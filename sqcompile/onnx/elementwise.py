"""Emitters of ATen's elementwise ops: one ONNX op for one rounding."""

from functools import partial
from typing import Any

import torch

from sqcompile.onnx.body import Body, Value
from sqcompile.onnx.dtypes import ONNX_TYPES
from sqcompile.onnx.table import EMITTERS, Call, NoForm, cast, emits

aten = torch.ops.aten

_ARITHMETIC = {
    "Add": (aten.add.Tensor, aten.add.Scalar),
    "Sub": (aten.sub.Tensor, aten.sub.Scalar),
    "Mul": (aten.mul.Tensor, aten.mul.Scalar),
    "Div": (aten.div.Tensor, aten.div.Scalar),
    "Max": (aten.maximum.default,),
    "Min": (aten.minimum.default,),
}
_COMPARISONS = {
    "Less": (aten.lt.Tensor, aten.lt.Scalar),
    "LessOrEqual": (aten.le.Tensor, aten.le.Scalar),
    "Greater": (aten.gt.Tensor, aten.gt.Scalar),
    "GreaterOrEqual": (aten.ge.Tensor, aten.ge.Scalar),
    "Equal": (aten.eq.Tensor, aten.eq.Scalar),
    "NotEqual": (aten.ne.Tensor, aten.ne.Scalar),
}
_BITWISE = {
    "And": (aten.bitwise_and.Tensor, aten.bitwise_and.Scalar, aten.logical_and.default),
    "Or": (aten.bitwise_or.Tensor, aten.bitwise_or.Scalar, aten.logical_or.default),
    "Xor": (aten.bitwise_xor.Tensor, aten.bitwise_xor.Scalar, aten.logical_xor.default),
}
_UNARY = {
    "Abs": aten.abs.default,
    "Neg": aten.neg.default,
    "Floor": aten.floor.default,
    "Round": aten.round.default,  # to even, in both
    "Sqrt": aten.sqrt.default,
    "Relu": aten.relu.default,
    "Sign": aten.sign.default,
}
_SAME = (
    aten.clone.default,
    aten.detach.default,
    aten.alias.default,
    aten.lift_fresh_copy.default,
    aten.contiguous.default,
)


def _pair(call: Call) -> tuple[Any, Any]:
    names = list(call.arguments)
    return call[names[0]], call[names[1]]


def _arithmetic(op: str, call: Call) -> Value:
    if call.arguments.get("alpha", 1) != 1:
        raise NoForm("alpha other than 1")
    left, right = (call.value(one, call.dtype) for one in _pair(call))
    return call.body.call(op, left, right)


def _comparison(op: str, call: Call) -> Value:
    a, b = _pair(call)
    stands_for = [
        torch.empty(v.shape, dtype=v.dtype, device="meta") if _is(v) else v for v in (a, b)
    ]
    dtype = torch.result_type(*stands_for)
    left, right = (call.value(one, dtype) for one in (a, b))
    if op == "NotEqual":
        return call.body.call("Not", call.body.call("Equal", left, right, dtype=torch.bool))
    return call.body.call(op, left, right, dtype=torch.bool)


def _is(value: Any) -> bool:
    return isinstance(value, Value)


def _bitwise(op: str, call: Call) -> Value:
    left, right = (call.value(one, call.dtype) for one in _pair(call))
    return call.body.call(op if call.dtype == torch.bool else f"Bitwise{op}", left, right)


def _unary(op: str, call: Call) -> Value:
    return call.body.call(op, call.value(call.first, call.dtype))


for _op, _targets in _ARITHMETIC.items():
    emits(*_targets)(partial(_arithmetic, _op))
for _op, _targets in _COMPARISONS.items():
    emits(*_targets)(partial(_comparison, _op))
for _op, _targets in _BITWISE.items():
    emits(*_targets)(partial(_bitwise, _op))
for _op, _target in _UNARY.items():
    emits(_target)(partial(_unary, _op))
EMITTERS[aten.sgn.default] = EMITTERS[aten.sign.default]


@emits(*_SAME)
def _(call: Call) -> Value:
    return call.first


@emits(aten._to_copy.default)
def _(call: Call) -> Value:
    return cast(call.body, call.first, call.dtype)


@emits(aten.view.dtype)
def _(call: Call) -> Value:
    """The same bits as another type of the same size."""
    return call.body.call("BitCast", call.first, dtype=call.dtype, to=ONNX_TYPES[call.dtype])


@emits(aten.logical_not.default, aten.bitwise_not.default)
def _(call: Call) -> Value:
    if call.first.dtype != torch.bool:
        raise NoForm(f"not of {call.first.dtype}")
    return call.body.call("Not", call.first)


@emits(aten.reciprocal.default)
def _(call: Call) -> Value:
    """One division: what an engine's Reciprocal approximates is left open."""
    return call.body.call("Div", call.body.constant(1.0, call.dtype), call.first)


@emits(aten.rsub.Scalar, aten.rsub.Tensor)
def _(call: Call) -> Value:
    left, right = (call.value(one, call.dtype) for one in _pair(call))
    return call.body.call("Sub", right, left)


@emits(aten.clamp.default, aten.hardtanh.default, aten.clamp_min.default, aten.clamp_max.default)
def _(call: Call) -> Value:
    given = call.arguments
    low, high = given.get("min", given.get("min_val")), given.get("max", given.get("max_val"))
    return clamped(call.body, call.value(call.first, call.dtype), low, high)


def clamped(body: Body, x: Value, low: float | None, high: float | None) -> Value:
    """Comparisons and choices: engines differ in the sign of a zero that Clip gives."""
    for comparison, bound in (("Less", low), ("Greater", high)):
        if bound is not None:
            end = body.constant(bound, x.dtype)
            x = chosen(body, body.call(comparison, x, end, dtype=torch.bool), end, x)
    return x


@emits(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
def _(call: Call) -> Value:
    left, right = (call.value(call[name], call.dtype) for name in ("self", "other"))
    return chosen(call.body, call["condition"], left, right)


def chosen(body: Body, condition: Value, one: Value, other: Value) -> Value:
    """Where, which onnxruntime has no kernel of for truth values."""
    if one.dtype != torch.bool:
        return body.call("Where", condition, one, other, dtype=one.dtype)
    taken = body.call("And", condition, one)
    return body.call("Or", taken, body.call("And", body.call("Not", condition), other))


@emits(aten.leaky_relu.default)
def _(call: Call) -> Value:
    body, x = call.body, call.first
    below = body.call("Mul", x, body.constant(call["negative_slope"], x.dtype))
    above = body.call("Greater", x, body.constant(0.0, x.dtype), dtype=torch.bool)
    return chosen(body, above, x, below)


def _passes(call: Call, x: Value, bound: float) -> Value:
    return call.body.call("Greater", x, call.body.constant(bound, x.dtype), dtype=torch.bool)


@emits(aten.threshold_backward.default)
def _(call: Call) -> Value:
    passes = _passes(call, call["self"], call["threshold"])
    return chosen(call.body, passes, call["grad_output"], call.body.constant(0.0, call.dtype))


@emits(aten.leaky_relu_backward.default)
def _(call: Call) -> Value:
    body, g = call.body, call["grad_output"]
    less = body.call("Mul", g, body.constant(call["negative_slope"], g.dtype))
    return chosen(body, _passes(call, call["self"], 0.0), g, less)


@emits(aten.hardtanh_backward.default)
def _(call: Call) -> Value:
    body, x = call.body, call["self"]
    above = _passes(call, x, call["min_val"])
    below = body.call("Less", x, body.constant(call["max_val"], x.dtype), dtype=torch.bool)
    inside = body.call("And", above, below)
    return chosen(body, inside, call["grad_output"], body.constant(0.0, call.dtype))


@emits(aten.div.Tensor_mode)
def _(call: Call) -> Value:
    if call["rounding_mode"] != "floor" or call.dtype.is_floating_point:
        raise NoForm(f"division of {call.dtype} rounded {call['rounding_mode']}")
    return floor_divided(call.body, call.first, call.value(call["other"], call.dtype))


@emits(aten.remainder.Scalar)
def _(call: Call) -> Value:
    """With the divisor's sign, as Mod has it for integers."""
    if call.dtype.is_floating_point:
        raise NoForm("remainder of floats")
    return call.body.call("Mod", call.first, call.value(call["other"], call.dtype))


def floor_divided(body: Body, x: Value, divisor: Value) -> Value:
    """Integers divided and rounded down; ONNX's Div rounds toward zero, so that the remainder,
    which has the divisor's sign, goes first."""
    return body.call("Div", body.call("Sub", x, body.call("Mod", x, divisor)), divisor)


@emits(aten.__rshift__.Scalar)
def _(call: Call) -> Value:
    """Arithmetic: rounded down. ONNX shifts unsigned integers only."""
    body, x, places = call.body, call.first, int(call["other"])
    if not x.dtype.is_signed:
        return body.call("BitShift", x, body.constant(places, x.dtype), direction="RIGHT")
    if places == 8 * x.dtype.itemsize - 1:
        negative = body.call("Less", x, body.constant(0, x.dtype), dtype=torch.bool)
        return chosen(body, negative, body.constant(-1, x.dtype), body.constant(0, x.dtype))
    return floor_divided(body, x, body.constant(1 << places, x.dtype))


@emits(aten.__rshift__.Tensor)
def _(call: Call) -> Value:
    if call.dtype.is_signed:
        raise NoForm(f"a right shift of {call.dtype} by a tensor")
    return call.body.call("BitShift", call.first, call["other"], direction="RIGHT")


@emits(aten.__lshift__.Scalar)
def _(call: Call) -> Value:
    power = call.body.constant(1 << int(call["other"]), call.dtype)
    return call.body.call("Mul", call.first, power)


@emits(aten.__lshift__.Tensor, aten.bitwise_left_shift.Scalar_Tensor)
def _(call: Call) -> Value:
    """By a product with a power of two."""
    left, places = _pair(call)
    power = powers(call.body, places, call.dtype)
    return call.body.call("Mul", call.value(left, call.dtype), power)


def powers(body: Body, places: Value, dtype: torch.dtype) -> Value:
    """2^places, places integers of 0 .. 31."""
    ones = body.constant(1, torch.uint32)
    shifted = body.call("BitShift", ones, cast(body, places, torch.uint32), direction="LEFT")
    return cast(body, shifted, dtype)
