"""What quantising does to every tensor of a step: ranges, scales, groups, errors, as plain data."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isfinite, log10
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node

from sqcompile.debug.layers import Objective, tangents_of
from sqcompile.debug.observe import Observed, Tangents, drawn_tangents, observe, program
from sqcompile.debug.quantisers import Quantised, quantised
from sqcompile.ops.quantize import TINY, group_exponent, limits
from sqcompile.passes.editing import arguments, parameter
from sqcompile.passes.partition import Partition
from sqcompile.passes.printing import op_name

if TYPE_CHECKING:
    from sqcompile.runtime.step import CompiledStep

CHANNELS = 128
"""Absmaxes listed for a tensor: of more channels, that many in descending order."""
SAMPLE = 8192
"""Elements that the errors at other bits and groups are estimated from."""
BITS, GROUPS = (2, 3, 4, 5, 6, 7, 8), (1, 2, 3, 4, 6, 8)
BINS = 64
"""Bars of the histogram of integers, at most."""


def tensors(
    graphs: Partition, inputs: Sequence[Tensor], rng: Tensor, tangents: Tangents = ()
) -> list[dict[str, Any]]:
    """A row for every tensor that forward and backward quantise, in order; see `observe` for the
    arguments and `row` for what is in it."""
    return [row(one, part) for one, part in _quantised(observe(graphs, inputs, rng, tangents))]


def tensors_of(
    step: "CompiledStep",
    args: Sequence[Any],
    *,
    seed: int = 0,
    objective: Objective | None = None,
) -> list[dict[str, Any]]:
    """`tensors` of a step, on the CPU, for a call with `args`, with draws of `seed` for rounding.
    The outputs' gradients are those of `objective`, from what the model returns to a scalar;
    without one, normal draws. Raises UsageError for a loaded step, which has no graphs."""
    variant = step.prepare(*args)
    graphs = program(variant)
    rng = torch.tensor([seed & 0xFFFFFFFF, 0, 0, 0])
    values = step.values_of(variant, args, {})
    if objective is None:
        return tensors(graphs, values, rng, drawn_tangents(graphs, seed))
    spec = variant.signature.out_spec
    return tensors(graphs, values, rng, lambda outs: tangents_of(outs, spec, objective)[1])


def _quantised(found: Iterator[Observed]) -> Iterator[tuple[Observed, Quantised]]:
    for one in found:
        for part in quantised(one.node.target, one.given, one.value):
            yield one, part


def row(one: Observed, part: Quantised) -> dict[str, Any]:
    """The statistics of one quantised tensor; floats have four digits.

    name: of the node whose value the integers are, `node` where they stay inside it; of: the node
    that is quantised, "" where the op computes it; kind: "weight", "activation", "gradient",
    "softmax", "slope", "norm input", "norm gradient" or "normalised" (what a norm keeps for
    backward); min, max, absmax: of the float tensor.
    zeros, clipped: shares of the elements that come to 0, and that lie beyond the grid's end by
    more than half a step. error: squared, relative to the squares of the float tensor, over all
    elements; sqnr_db: the same in decibels, None where there is no error.
    scales: of the grid's steps; outer: of the absmaxes by which it is divided first; exponents: how
    many channels each of `groups` has; integers: how often each stands, from `low` on, or in equal
    bins; channels: see `_channels`; errors: see `_errors`.
    """
    x, holder = part.x, _holder(one.node, part.place)
    role = part.role or str(holder.meta.get("role", one.role))
    part = replace(part, groups=max(part.groups, _groups(one.node)))
    return {
        "name": holder.name,
        "node": one.name,
        "of": _source(one.node),
        "pass": one.pass_,
        "op": one.op,
        "kind": _kind(one.node, part.kind, role),
        "role": role,
        "module": str(holder.meta.get("module", one.module)),
        "line": one.line,
        "shape": list(x.shape),
        "bits": part.bits,
        "signed": part.signed,
        "rounding": "stochastic" if part.stochastic else "nearest",
        "min": _short(x.min()),
        "max": _short(x.max()),
        "absmax": _short(x.abs().max()),
        **_losses(part),
        "scales": _spread(part.step),
        "outer": None if part.outer is None else _spread(part.outer),
        "groups": part.groups,
        "exponents": _exponents(part),
        "integers": _histogram(part),
        "channels": _channels(part),
        "errors": _errors(part),
    }


def _holder(node: Node, place: int | None) -> Node:
    items = [user for user in node.users if place is not None and user.args[1:] == (place,)]
    return items[0] if items else node


def _source(node: Node) -> str:
    """The node whose value a quantiser reads; "" where an op computes what it quantises."""
    return "" if op_name(node).startswith(("sq.l1_", "sq.softmax")) else str(node.args[0])


def _groups(node: Node) -> int:
    """The groups that the exponents of a quantiser were measured for: not all need be taken."""
    found = arguments(node).get("exponent")
    while isinstance(found, Node):
        if found.op != "call_function":
            return 1
        given = arguments(found) if isinstance(found.target, torch._ops.OpOverload) else {}
        if "groups" in given:
            return int(given["groups"])
        found = found.all_input_nodes[0]
    return 1


def _kind(node: Node, kind: str, role: str) -> str:
    if kind == "weight or activation":
        source = node.all_input_nodes[0]
        if parameter(source) is not None or source.op == "get_attr":
            return "weight"
        return "activation" if role else "norm input"
    return "norm gradient" if kind == "gradient" and not role else kind


def _losses(part: Quantised) -> dict[str, Any]:
    x = part.x.to(torch.float64)
    power = float(x.square().sum())
    error = float((part.value.to(torch.float64) - x).square().sum())
    half = 0.5 if part.kind == "normalised" else 0.0
    top, bottom = part.high + half + 0.5, part.low + half - 0.5
    beyond = (x > part.step * top) | (x < part.step * bottom)
    zeros = (part.integers == 0) & (part.kind != "normalised")
    return {
        "zeros": _short(zeros.to(torch.float32).mean()),
        "clipped": _short(beyond.to(torch.float32).mean()),
        "error": _short(error / power) if power else 0.0,
        "sqnr_db": _short(10 * log10(power / error)) if error and power else None,
    }


def _spread(values: Tensor) -> dict[str, Any]:
    flat = values.flatten()
    return {
        "count": flat.numel(),
        "least": _short(flat.min()),
        "median": _short(flat.median()),
        "largest": _short(flat.max()),
    }


def _exponents(part: Quantised) -> list[int] | None:
    if part.exponent is None or part.groups == 1:
        return None
    counts = torch.bincount(part.exponent.flatten().to(torch.int64), minlength=part.groups)
    return [int(count) for count in counts]


def _histogram(part: Quantised) -> dict[str, Any]:
    bins = min(part.high - part.low + 1, BINS)
    counts = torch.histc(part.integers, bins, part.low - 0.5, part.high + 0.5)
    return {"low": part.low, "high": part.high, "counts": [int(count) for count in counts]}


def _channels(part: Quantised) -> dict[str, Any] | None:
    """Absmaxes of channels and the borders between groups: a channel at most so large is in a finer
    group."""
    if part.channel is None:
        return None
    values = part.channel.flatten()
    largest, count = float(values.max()), values.numel()
    ordered = count > CHANNELS
    if ordered:
        places = torch.linspace(0, count - 1, CHANNELS).round().to(torch.int64)
        values = values.sort(descending=True).values[places]
    return {
        "count": count,
        "sorted": ordered,
        "absmax": [_short(value) for value in values.tolist()],
        "borders": [_short(largest * 2.0**-j) for j in range(1, part.groups)],
    }


def _errors(part: Quantised) -> dict[str, Any] | None:
    """Relative squared error with other numbers of bits and groups, as rows of groups by bits, on
    at most SAMPLE elements, ranges and groups as measured on all; of stochastic rounding the mean
    over all draws. None where the grid's range is not measured."""
    if part.r is None:
        return None
    groups = GROUPS if part.channel is not None else (1,)
    x, picked = _sampled(part.x)
    power = float(x.square().sum())
    rows = []
    for count in groups:
        exponent = None
        if count > 1 and part.channel is not None:
            exponent = group_exponent.reference(part.channel, count)
        unit = _unit(part, exponent, picked)
        rows.append(
            [_short(_error(x, unit, part, bits) / power if power else 0.0) for bits in BITS]
        )
    return {"bits": list(BITS), "groups": list(groups), "relative": rows}


def _sampled(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(float64 elements at even distances, their indices by axis)."""
    places = torch.linspace(0, x.numel() - 1, min(SAMPLE, x.numel()), dtype=torch.float64)
    picked = torch.unravel_index(places.round().to(torch.int64), x.shape)
    return x[picked].to(torch.float64), picked


def _unit(part: Quantised, exponent: Tensor | None, picked: tuple[Tensor, ...]) -> Tensor:
    """The grid's end for every sampled element, float64."""

    def at(value: Tensor) -> Tensor:
        return value.expand(part.x.shape)[picked].to(torch.float64)

    assert part.r is not None
    unit = at(part.r)
    if exponent is not None:
        unit = unit * torch.exp2(-at(exponent))
    return unit if part.outer is None else unit * at(part.outer)


def _error(x: Tensor, unit: Tensor, part: Quantised, bits: int) -> float:
    low, high = limits(bits, part.signed)
    step = torch.where(unit < TINY, 1.0, unit / high)
    t = x / step
    inside = t.clamp(low, high)
    if part.stochastic:
        fraction = inside - inside.floor()
        squared = (t - inside).square() + fraction * (1 - fraction)
    else:
        squared = (t - inside.round()).square()
    return float((squared * step.square()).sum())


def _short(value: float | Tensor) -> float | None:
    """Four digits; None for what JSON does not have."""
    number = float(value)
    return float(f"{number:.4g}") if isfinite(number) else None
