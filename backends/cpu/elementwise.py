"""Ops of one rounding per element, with broadcasting: a table of what an element is.

Scalar arguments are constants of the kernel. Loops run along the result's merged axes, in parallel
over the outer ones. Every kernel is a single op, so no product meets a sum, except in `ema`,
which fences it.
"""

from collections.abc import Callable
from typing import Any

import torch
from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Expr
from sqcompile.backends.cpu.sweep import broadcast, contiguous, sweep
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec, TensorSpec

Expression = Callable[..., Expr]


def _promoted(spec: KernelSpec, arguments: tuple[str, ...]) -> str:
    """The dtype that torch promotes the arguments to."""
    values: list[Any] = []
    for name, operand in spec.inputs:
        if name in arguments and isinstance(operand, TensorSpec):
            dtype = getattr(torch, operand.dtype)
            values.append(torch.empty(operand.shape, dtype=dtype, device="meta"))
    values += [value for name, value in spec.attributes if name in arguments and value is not None]
    return str(torch.result_type(values[0], values[-1]))[6:]


def _elementwise(
    spec: KernelSpec, arguments: tuple[str, ...], expression: Expression, dtype: str
) -> object:
    """out[i] = expression(argument[i], ...): tensors converted to `dtype`, scalars constants of
    it, absent arguments None; a condition stays bool."""
    with nest.function(spec) as f:
        (out,) = f.outputs
        present = {name: f[name] for name in arguments if name in f.tensors}

        def constant(name: str) -> Expr:
            value = spec.get(name)
            if value is None:
                return None
            return nest.literal(value) if dtype == "float32" else nest.const(value, dtype)

        def element(name: str, index: Expr) -> Expr:
            value = present[name][index]
            same = present[name].dtype == dtype or name == "condition"
            return value if same else nest.cast(value, dtype)

        def one(at: list[Expr]) -> None:
            index = dict(zip(present, at[1:], strict=True))
            chosen = [element(n, index[n]) if n in index else constant(n) for n in arguments]
            out.store(at[0], expression(*chosen))

        steps = [broadcast(out.shape, a.shape) for a in present.values()]
        sweep(out.shape, [contiguous(out.shape), *steps], one)
    return f.result


def _arithmetic(*arguments: str, of: Expression) -> Callable[[KernelSpec], object]:
    """Computed in the dtype of the result."""

    def generate(spec: KernelSpec) -> object:
        """Along the result's merged axes, operands broadcast."""
        return _elementwise(spec, arguments, of, spec.outputs[0].dtype)

    return generate


def _comparison(*arguments: str, of: Expression) -> Callable[[KernelSpec], object]:
    """Computed in the dtype that torch promotes the operands to; the result is bool."""

    def generate(spec: KernelSpec) -> object:
        """Along the result's merged axes, operands broadcast."""
        return _elementwise(spec, arguments, of, _promoted(spec, arguments))

    return generate


def _zero(x: Expr) -> Expr:
    return nest.zero(nest.dtype_of(x))


def _negative(x: Expr) -> Expr:
    """-x; for floats a flipped sign bit, because 0 - x is not -x at zero."""
    if "float" not in nest.dtype_of(x):
        return _zero(x) - x
    flipped = tirx.bitwise_xor(nest.bits_of(x, "int32"), nest.const(-(2**31), "int32"))
    return nest.bits_of(flipped, "float32")


def _magnitude(x: Expr) -> Expr:
    if "float" not in nest.dtype_of(x):
        return nest.select(x < _zero(x), _zero(x) - x, x)
    cleared = tirx.bitwise_and(nest.bits_of(x, "int32"), nest.const(0x7FFFFFFF, "int32"))
    return nest.bits_of(cleared, "float32")


def _clamp(x: Expr, low: Expr, high: Expr) -> Expr:
    """NaN stays, and so does -0.0 at a limit of 0.0, as in torch."""
    raised = x if low is None else nest.select(x < low, low, x)
    return raised if high is None else nest.select(raised > high, high, raised)


def _hardtanh_backward(g: Expr, x: Expr, low: Expr, high: Expr) -> Expr:
    return nest.select(tirx.any(x <= low, x >= high), _zero(g), g)


def _sign(x: Expr) -> Expr:
    """1, 0 or -1; 0 for NaN, as in torch."""
    dtype = nest.dtype_of(x)
    zero, one = _zero(x), nest.const(1, dtype)
    return nest.select(x > zero, one, nest.select(x < zero, nest.const(-1, dtype), zero))


def _truth(x: Expr) -> Expr:
    return x if nest.dtype_of(x) == "bool" else tirx.Not(tirx.EQ(x, _zero(x)))


def _scaled(spec: KernelSpec) -> str:
    return "" if spec["alpha"] == 1 else f"alpha = {spec['alpha']}; only 1 has a kernel"


def _to_integers(spec: KernelSpec) -> str:
    source, result = spec.tensor("self").dtype, spec.outputs[0].dtype
    floats = source == "float32" != result and result != "bool"
    return "float to integer conversion" if floats or "float64" in (source, result) else ""


for _name, _of in {"add": lambda a, b: a + b, "sub": lambda a, b: a - b}.items():
    _generate = _arithmetic("self", "other", of=_of)
    KERNELS.kernel(f"aten::{_name}.Tensor", f"aten::{_name}.Scalar", limit=_scaled)(_generate)

for _name, _of in {"mul": lambda a, b: a * b, "div": lambda a, b: a / b}.items():
    _generate = _arithmetic("self", "other", of=_of)
    KERNELS.kernel(f"aten::{_name}.Tensor", f"aten::{_name}.Scalar")(_generate)

for _name, _of in {
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "eq": tirx.EQ,
    "ne": lambda a, b: tirx.Not(tirx.EQ(a, b)),
    "logical_and": lambda a, b: tirx.And(_truth(a), _truth(b)),
    "logical_or": lambda a, b: tirx.Or(_truth(a), _truth(b)),
}.items():
    _overloads = ("default",) if _name.startswith("logical") else ("Tensor", "Scalar")
    _generate = _comparison("self", "other", of=_of)
    KERNELS.kernel(*(f"aten::{_name}.{overload}" for overload in _overloads))(_generate)

KERNELS.kernel("aten::logical_not.default")(_comparison("self", of=lambda x: tirx.Not(_truth(x))))
KERNELS.kernel("aten::sgn.default", "aten::sign.default")(_arithmetic("self", of=_sign))
KERNELS.kernel("aten::neg.default")(_arithmetic("self", of=_negative))
KERNELS.kernel("aten::abs.default")(_arithmetic("self", of=_magnitude))
KERNELS.kernel("sq::sqrt")(_arithmetic("x", of=tirx.sqrt))
KERNELS.kernel("aten::clone.default")(_arithmetic("self", of=lambda x: x))
KERNELS.kernel("aten::_to_copy.default", limit=_to_integers)(_arithmetic("self", of=lambda x: x))
KERNELS.kernel("aten::relu.default")(
    _arithmetic("self", of=lambda x: nest.select(x < _zero(x), _zero(x), x))
)
KERNELS.kernel("aten::threshold_backward.default")(
    _arithmetic(
        "grad_output",
        "self",
        "threshold",
        of=lambda g, x, limit: nest.select(x <= limit, _zero(g), g),
    )
)
KERNELS.kernel("aten::leaky_relu.default")(
    _arithmetic(
        "self", "negative_slope", of=lambda x, slope: nest.select(x > _zero(x), x, x * slope)
    )
)
KERNELS.kernel("aten::leaky_relu_backward.default")(
    _arithmetic(
        "grad_output",
        "self",
        "negative_slope",
        of=lambda g, x, slope: nest.select(x > _zero(x), g, g * slope),
    )
)
KERNELS.kernel("aten::hardtanh.default")(_arithmetic("self", "min_val", "max_val", of=_clamp))
KERNELS.kernel("aten::hardtanh_backward.default")(
    _arithmetic("grad_output", "self", "min_val", "max_val", of=_hardtanh_backward)
)
KERNELS.kernel("aten::clamp.default")(_arithmetic("self", "min", "max", of=_clamp))
KERNELS.kernel("aten::reciprocal.default")(
    _arithmetic("self", of=lambda x: nest.const(1, nest.dtype_of(x)) / x)
)
KERNELS.kernel("aten::where.self", "aten::where.ScalarOther")(
    _arithmetic("condition", "self", "other", of=nest.select)
)


@KERNELS.kernel("sq::ema")
def ema(spec: KernelSpec) -> object:
    """Elementwise, in vectors: two rounded products, one rounded sum."""
    momentum = spec["momentum"]
    with nest.function(spec) as f:
        old, new, (out,) = f["old"], f["new"], f.outputs
        kept, added = nest.literal(1.0 - momentum), nest.literal(momentum)

        def one(at: list[Expr]) -> None:
            i = at[0]
            out.store(i, nest.fence(old[i] * kept) + nest.fence(new[i] * added))

        sweep([out.size], [[1]], one, explicit=True)
    return f.result
