"""Readers of elementwise ops, reductions, softmax and products without weights of their own."""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor
from torch.fx import Node

from sqcompile.onnx.dtypes import TORCH_TYPES
from sqcompile.onnx.importer import Importer, OnnxNode, Read, reads

_TWO: dict[str, Callable[..., Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Equal": operator.eq,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
}
_LOGIC: dict[str, Callable[..., Any]] = {
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}
_ONE: dict[str, Callable[..., Any]] = {
    "Identity": lambda x: x,
    "Neg": operator.neg,
    "Abs": torch.abs,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal,
    "Erf": torch.erf,
    "Tanh": torch.tanh,
    "Sigmoid": torch.sigmoid,
    "Relu": F.relu,
    "HardSwish": F.hardswish,
    "Softplus": F.softplus,
    "Mish": F.mish,
    "Sign": torch.sign,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Not": torch.logical_not,
}
_ACTIVATIONS: dict[str, tuple[Callable[..., Any], str, float]] = {
    "LeakyRelu": (F.leaky_relu, "negative_slope", 0.01),
    "Elu": (F.elu, "alpha", 1.0),
    "Celu": (F.celu, "alpha", 1.0),
}
_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
}
_NARROWED = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
"""Floats that are float32 here, as weights are."""


def _two(function: Callable[..., Any], importer: Importer, node: OnnxNode) -> Any:
    return importer.call(function, *_numbers(importer.inputs(node)))


def _logic(function: Callable[..., Any], importer: Importer, node: OnnxNode) -> Any:
    return importer.call(function, *_tensors(importer, importer.inputs(node)))


def _tensors(importer: Importer, values: list[Read]) -> list[Read]:
    """Values for a function that takes no numbers: constants beside a node are nodes, too."""
    computed = any(isinstance(value, Node) for value in values)
    return [importer.node(value) for value in values] if computed else values


def _numbers(values: list[Read]) -> list[Any]:
    """Constants of one element as Python numbers, beside a node that is no smaller: passes know
    numbers."""
    rank = max(_rank(value) for value in values)
    if not any(isinstance(value, Node) and _rank(value) == rank for value in values):
        return list(values)
    return [
        value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        for value in values
    ]


def _one(function: Callable[..., Any], importer: Importer, node: OnnxNode) -> Any:
    x = importer.value(node.inputs[0])
    return x if node.op == "Identity" else importer.call(function, x)


for _op, _function in _TWO.items():
    reads(_op)(partial(_two, _function))
for _op, _function in _LOGIC.items():
    reads(_op)(partial(_logic, _function))
for _op, _function in _ONE.items():
    reads(_op)(partial(_one, _function))


@reads(*_ACTIVATIONS)
def _(importer: Importer, node: OnnxNode) -> Any:
    function, name, default = _ACTIVATIONS[node.op]
    return importer.call(function, importer.value(node.inputs[0]), node.get("alpha", default))


@reads("Selu")
def _(importer: Importer, node: OnnxNode) -> Any:
    if abs(node.get("alpha", 1.67326) - 1.67326) > 1e-5:
        raise node.refuse("alpha other than SELU's")
    if abs(node.get("gamma", 1.0507) - 1.0507) > 1e-5:
        raise node.refuse("gamma other than SELU's")
    return importer.call(F.selu, importer.value(node.inputs[0]))


@reads("HardSigmoid")
def _(importer: Importer, node: OnnxNode) -> Any:
    if abs(node.get("alpha", 0.2) - 1 / 6) > 1e-6 or node.get("beta", 0.5) != 0.5:
        raise node.refuse("alpha and beta other than 1/6 and 1/2")
    return importer.call(F.hardsigmoid, importer.value(node.inputs[0]))


@reads("Gelu")
def _(importer: Importer, node: OnnxNode) -> Any:
    how = node.get("approximate", "none")
    return importer.call(F.gelu, importer.value(node.inputs[0]), approximate=how)


@reads("Swish")
def _(importer: Importer, node: OnnxNode) -> Any:
    if node.get("alpha", 1.0) != 1.0:
        raise node.refuse("alpha other than 1")
    return importer.call(F.silu, importer.value(node.inputs[0]))


@reads("Div")
def _(importer: Importer, node: OnnxNode) -> Any:
    """Of integers toward zero, as ONNX has it."""
    whole = importer.inputs(node)
    left, right = _numbers(whole)
    if _dtype(whole[0]).is_floating_point:
        return importer.call(operator.truediv, left, right)
    return importer.call(torch.div, left, right, rounding_mode="trunc")


def _dtype(value: Read) -> torch.dtype:
    assert value is not None
    return value.meta["val"].dtype if isinstance(value, Node) else value.dtype


def _cast(importer: Importer, value: Read, dtype: torch.dtype) -> Any:
    return value if _dtype(value) == dtype else importer.method("to", value, dtype)


@reads("Pow")
def _(importer: Importer, node: OnnxNode) -> Any:
    """With a constant exponent: 2, 3 and 1/2 are what norms and GELU are made of. Of the base's
    dtype, whatever the exponent's."""
    x, exponent = importer.inputs(node)
    dtype = _dtype(x)
    if isinstance(x, Tensor):
        return _cast(importer, importer.call(operator.pow, x, exponent), dtype)
    if not isinstance(exponent, Tensor) or exponent.numel() != 1:
        raise node.refuse("an exponent that is no constant number")
    if exponent.dim() > _rank(x):
        x = importer.method("reshape", x, torch.broadcast_shapes(_shape(x), exponent.shape))
    power = exponent.item()
    whole = int(power) if isinstance(power, float) and power.is_integer() else power
    if whole == 0.5:
        return _cast(importer, importer.call(torch.sqrt, x), dtype)
    return _cast(importer, importer.call(operator.pow, x, whole), dtype)


@reads("Min", "Max")
def _(importer: Importer, node: OnnxNode) -> Any:
    """A constant number is an end of a clamp, on whichever side it stands."""
    function, end = (torch.minimum, "max") if node.op == "Min" else (torch.maximum, "min")
    total, *rest = importer.inputs(node)
    for value in rest:
        one, other = (value, total) if isinstance(total, Tensor) else (total, value)
        number = other.item() if isinstance(other, Tensor) and other.numel() == 1 else None
        if isinstance(one, Node) and number is not None and _rank(other) <= _rank(one):
            total = importer.call(torch.clamp, one, **{end: number})
        else:
            total = importer.call(function, *_tensors(importer, [one, other]))
    return total


@reads("Clip")
def _(importer: Importer, node: OnnxNode) -> Any:
    x, *bounds = importer.inputs(node)
    given = {}
    for name, bound in zip(("min", "max"), bounds, strict=False):
        if bound is not None:
            if not isinstance(bound, Tensor):
                raise node.refuse("a bound that is no constant")
            given[name] = bound.item()
    return importer.call(torch.clamp, x, **given) if given else x


@reads("Where")
def _(importer: Importer, node: OnnxNode) -> Any:
    """Of the dtype of its branches, which two numbers would lose."""
    condition, *branches = importer.inputs(node)
    if isinstance(condition, Tensor) and any(isinstance(one, Node) for one in branches):
        condition = importer.node(condition)
    return _cast(importer, importer.call(torch.where, condition, *branches), _dtype(branches[0]))


@reads("Cast")
def _(importer: Importer, node: OnnxNode) -> Any:
    """Half and double floats are float32 here, as weights are."""
    to = node["to"]
    dtype = torch.float32 if to in _NARROWED else TORCH_TYPES.get(to)
    if dtype is None:
        raise node.refuse(f"to {TensorProto.DataType.Name(to)}")
    return _cast(importer, importer.value(node.inputs[0]), dtype)


@reads("CastLike")
def _(importer: Importer, node: OnnxNode) -> Any:
    x, like = importer.inputs(node)
    return _cast(importer, x, _dtype(like))


@reads("Softmax", "LogSoftmax")
def _(importer: Importer, node: OnnxNode) -> Any:
    function = F.softmax if node.op == "Softmax" else F.log_softmax
    return importer.call(function, importer.value(node.inputs[0]), dim=node.get("axis", -1))


@reads(*_REDUCTIONS)
def _(importer: Importer, node: OnnxNode) -> Any:
    x, *rest = importer.inputs(node)
    axes = node.get("axes")
    if rest and rest[0] is not None:
        if not isinstance(rest[0], Tensor):
            raise node.refuse("axes that are no constant")
        axes = rest[0].tolist()
    if not axes and node.get("noop_with_empty_axes", 0):
        return x
    if node.op == "ReduceMean" and not _dtype(x).is_floating_point:
        raise node.refuse("a mean of integers")
    keepdim = bool(node.get("keepdims", 1))
    every = tuple(axes or range(_rank(x)))
    reduced = importer.call(_REDUCTIONS[node.op], x, dim=every, keepdim=keepdim)
    return _cast(importer, reduced, _dtype(x))


def _rank(value: Read) -> int:
    return len(_shape(value))


def _shape(value: Read) -> tuple[int, ...]:
    assert value is not None
    return tuple((value.meta["val"] if isinstance(value, Node) else value).shape)


@reads("Einsum")
def _(importer: Importer, node: OnnxNode) -> Any:
    return importer.call(torch.einsum, node.get("equation"), *importer.inputs(node))


@reads("Dropout")
def _(importer: Importer, node: OnnxNode) -> Any:
    """By its ratio while the module trains, whatever the file's own training flag."""
    ratio = importer.value(node.inputs[1]) if len(node.inputs) > 1 else None
    if isinstance(ratio, Node):
        raise node.refuse("a ratio that is no constant")
    share = 0.5 if ratio is None else float(ratio)
    layer = torch.nn.Dropout(share)
    return importer.layer(node, layer, "", importer.value(node.inputs[0]))
