"""What an op quantises: the float tensor, the integers' worth, and the grid, by op.

A fused op is unfolded by the references that it is composed of.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sqcompile.ops import (
    activation,
    norm,
    norm_fused,
    norm_gradient,
    norm_residual,
    quantize,
    quantize_pair,
    softmax,
)
from sqcompile.ops.pack import unpack_int4
from sqcompile.ops.quantize import TINY, limits

Given = Mapping[str, Any]


@dataclass(frozen=True)
class Quantised:
    """A tensor as an op quantises it.

    kind: "weight or activation", "gradient", "softmax", "slope", "norm input", "norm gradient" or
    "normalised" (what a norm keeps for backward); place: which output of the op holds the integers,
    None where they stay inside it; role: "dgrad" or "wgrad" where one op serves both.
    x float32: what is quantised; value: what the integers are worth, like x; integers: as on
    the grid `low`..`high`, without shifts; step: of the grid, broadcastable to x.
    r: the range of the grid's end, None where nothing is measured; outer: the absmax by which x is
    divided first; channel: the absmax (behind outer) of every index that could have a group;
    exponent: its group.
    """

    kind: str
    place: int | None
    x: Tensor
    value: Tensor
    integers: Tensor
    step: Tensor
    bits: int
    signed: bool
    low: int
    high: int
    r: Tensor | None = None
    outer: Tensor | None = None
    channel: Tensor | None = None
    exponent: Tensor | None = None
    groups: int = 1
    stochastic: bool = False
    role: str = ""


def quantised(target: object, given: Given, value: Any) -> list[Quantised]:
    """What a call of `target` quantised, from its arguments by name and its result; most ops
    quantise nothing."""
    unfold = _UNFOLD.get(target)
    return unfold(given, value) if unfold else []


def quantising(target: object) -> bool:
    """Whether the op quantises something."""
    return target in _UNFOLD


def _grid_step(r: Tensor, high: int, exponent: Tensor | None, outer: Tensor | None) -> Tensor:
    step = torch.where(r < TINY, torch.ones_like(r), r / float(high))
    if exponent is not None and exponent.numel():
        step = step * torch.exp2(-exponent.to(torch.float32))
    return step if outer is None else step * torch.where(outer < TINY, 1.0, outer)


def _on_grid(
    kind: str,
    place: int | None,
    x: Tensor,
    q: Tensor,
    r: Tensor,
    bits: int,
    signed: bool,
    **more: Any,
) -> Quantised:
    low, high = limits(bits, signed)
    step = _grid_step(r, high, more.get("exponent"), more.get("outer"))
    integers = q.to(torch.float32)
    return Quantised(
        kind, place, x, integers * step, integers, step, bits, signed, low, high, r, **more
    )


def _channel(x: Tensor, outer: Tensor | None, exponent: Tensor) -> Tensor:
    """The absmax of every index that has an exponent of its own."""
    axes = [axis for axis in range(x.dim()) if exponent.shape[axis] == 1]
    return quantize.absmax.reference(x, outer, axes)


def _quantize(given: Given, q: Tensor) -> list[Quantised]:
    x, exponent, groups = given["x"], given["exponent"], given["shift_groups"]
    more: dict[str, Any] = {}
    if exponent is not None:
        channel = _channel(x, None, exponent)
        count = max(groups, int(exponent.max()) + 1)
        more = {"exponent": exponent, "channel": channel, "groups": count}
        if groups > 1:
            q = q.to(torch.float32) * torch.exp2(exponent.to(torch.float32) - (groups - 1))
    kind = "weight or activation"
    return [_on_grid(kind, None, x, q, given["r"], given["bits"], given["signed"], **more)]


def _rows(given: Given, value: Any) -> list[Quantised]:
    q, _, r = value
    return [_on_grid("weight or activation", 0, given["x"], q, r, given["bits"], given["signed"])]


def _stochastic(given: Given, q: Tensor) -> list[Quantised]:
    x, outer, exponent = given["x"], given["outer"], given["exponent"]
    more: dict[str, Any] = {"outer": outer, "stochastic": True}
    if exponent is not None:
        count = int(exponent.max()) + 1
        more |= {"exponent": exponent, "channel": _channel(x, outer, exponent), "groups": count}
    return [_on_grid("gradient", None, x, q, given["r"], given["bits"], True, **more)]


def _shift(
    x: Tensor,
    outputs: Sequence[Tensor],
    bits: int,
    groups: int,
    axes: tuple[Sequence[int], Sequence[int]],
    **more: Any,
) -> Quantised:
    """One ShiftQuant, from q, exponent, scale, outer scale and r; axes: outer and inner."""
    q, exponent, _, back, r = outputs
    outer_axes, inner_axes = axes
    outer = back if outer_axes else None
    rest = [axis for axis in range(x.dim()) if axis not in inner_axes]
    channel = quantize.absmax.reference(x, outer, rest) if inner_axes else None
    more |= {"outer": outer, "channel": channel, "exponent": exponent, "groups": groups}
    return _on_grid("gradient", more.pop("place"), x, q, r, bits, True, stochastic=True, **more)


def _shift_quantize(given: Given, value: Any) -> list[Quantised]:
    x, factor = given["x"], given["factor"]
    x = x if factor is None else x * factor
    axes = given["outer_axes"], given["inner_axes"]
    return [_shift(x, value, given["bits"], given["groups"], axes, place=0)]


def _pair(given: Given, value: Any) -> list[Quantised]:
    x, factor = given["x"], given["factor"]
    channel, rows = [x.dim() - 1], list(range(x.dim() - 1))
    size, rest = quantize_pair.PER_QUANTIZER, (given["bits"], given["groups"])
    first, second = ([0], channel) if given["outer"] else ([], [])
    scaled = x if factor is None else x * factor
    return [
        _shift(scaled, value[:size], *rest, (first, channel), place=0, role="dgrad"),
        _shift(x, value[size : 2 * size], *rest, (second, rows), place=size, role="wgrad"),
    ]


def _softmax(given: Given, value: Any) -> list[Quantised]:
    q, scale = value
    x = softmax.softmax.reference(given["x"])
    low, high = limits(given["bits"], given["signed"])
    integers = q.to(torch.float32)
    rest = (given["bits"], given["signed"], low, high)
    return [Quantised("softmax", 0, x, integers * scale, integers, scale, *rest)]


def _slope(given: Given, q: Tensor) -> list[Quantised]:
    low, high = given["low"], given["high"]
    step = torch.tensor(1.0 / given["unit"])
    integers = q.to(torch.float32) + low
    rest = ((high - low).bit_length(), low < 0, low, high)
    return [Quantised("slope", None, given["slope"], integers * step, integers, step, *rest)]


def _normalised(x: Tensor, k: Tensor, bits: int, step: float, place: int) -> Quantised:
    """What a norm keeps for backward: (k + 1/2) * step, k from -2^(bits - 1) on."""
    if k.dtype == torch.uint8:
        k = unpack_int4.reference(k, list(x.shape), True)
    integers, width = k.to(torch.float32), torch.tensor(step)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    value = (integers + 0.5) * width
    return Quantised("normalised", place, x, value, integers, width, bits, True, low, high)


def _bare(entry: Any, given: Given, **given_first: Any) -> Tensor:
    """The normalised value itself: y of a norm without gamma and beta."""
    names = [argument.name for argument in entry.target._schema.arguments]
    values = {**given, "gamma": None, "beta": None, **given_first}
    y: Tensor = entry.reference(*(values[name] for name in names))[0]
    return y


def _l1(entry: Any, place: int = 1) -> Callable[[Given, Any], list[Quantised]]:
    def unfold(given: Given, value: Any) -> list[Quantised]:
        x = _bare(entry, given)
        return [_normalised(x, value[place], given["bits"], given["step"], place)]

    return unfold


def _batch_norm_quantize(given: Given, value: Any) -> list[Quantised]:
    q, r, xhat, exponent = value[0], value[1], value[2], value[7]
    names = [argument.name for argument in norm.l1_batch_norm.target._schema.arguments]
    y = norm.l1_batch_norm.reference(*(given[name] for name in names))[0]
    y = torch.relu(y) if given["relu"] else y
    more: dict[str, Any] = {}
    if given["groups"] > 1:
        more = {"exponent": exponent, "groups": given["groups"]}
        more["channel"] = _channel(y, None, exponent)
    rest = (given["out_bits"], given["signed"])
    return [
        _on_grid("weight or activation", 0, y, q, r, *rest, **more),
        _normalised(_bare(norm.l1_batch_norm, given), xhat, given["bits"], given["step"], 2),
    ]


def _layer_norm_input(given: Given, value: Any) -> list[Quantised]:
    x, bits, r = given["x"], given["in_bits"], value[3]
    q = quantize.quantize.reference(x, r, bits, True)
    scale = quantize.quant_scale.reference(r, bits, True, 1)
    xhat = _bare(norm.l1_layer_norm, given, x=q, scale=scale)
    return [
        _on_grid("norm input", None, x, q, r, bits, True),
        _normalised(xhat, value[1], given["bits"], given["step"], 1),
    ]


def _layer_norm_gradient(given: Given, value: Any) -> list[Quantised]:
    g, gamma, bits, r = given["g"], given["gamma"], given["in_bits"], value[1]
    h = g if gamma is None else g * gamma
    q = quantize.quantize_stochastic.reference(
        h, r, None, None, given["rng"], bits, given["stream"]
    )
    return [_on_grid("norm gradient", None, h, q, r, bits, True, stochastic=True)]


def _batch_norm_gradient(given: Given, value: Any) -> list[Quantised]:
    k = given["xhat"]
    if k.dtype == torch.uint8:
        k = unpack_int4.reference(k, list(given["g"].shape), True)
    values = {**given, "xhat": k}
    names = [argument.name for argument in norm.l1_batch_norm_backward.target._schema.arguments]
    dx = norm.l1_batch_norm_backward.reference(*(values[name] for name in names))[0]
    return _pair({**given, "x": dx}, value)


_UNFOLD: dict[object, Callable[[Given, Any], list[Quantised]]] = {
    quantize.quantize.target: _quantize,
    quantize.quantize_rows.target: _rows,
    quantize.quantize_stochastic.target: _stochastic,
    quantize.shift_quantize.target: _shift_quantize,
    quantize_pair.shift_quantize_pair.target: _pair,
    softmax.softmax_quantize.target: _softmax,
    activation.quantize_slope.target: _slope,
    norm.l1_batch_norm.target: _l1(norm.l1_batch_norm),
    norm.l1_layer_norm.target: _l1(norm.l1_layer_norm),
    norm.l1_group_norm.target: _l1(norm.l1_group_norm),
    norm_residual.l1_batch_norm_add_relu.target: _l1(norm.l1_batch_norm, 2),
    norm_fused.l1_batch_norm_relu_quantize.target: _batch_norm_quantize,
    norm_fused.quantize_l1_layer_norm.target: _layer_norm_input,
    norm_fused.quantize_l1_layer_norm_backward.target: _layer_norm_gradient,
    norm_gradient.l1_batch_norm_backward_quantize.target: _batch_norm_gradient,
}
"""How to find what is quantised, by op: an op that quantises and is missing here shows in no table
(tests/debug/test_statistics.py looks for that)."""
