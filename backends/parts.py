"""Calls that write their results straight into a part of a concatenation, for any target."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import fx

from sqcompile.backends.fusion import Plan
from sqcompile.backends.kernels import INTO, KernelSpec, KernelTable, ViewSpec

_CAT = "aten::cat.default"


@dataclass(frozen=True)
class Part:
    """A call whose result is a part of `whole`, and its spec as such: it gives the concatenation,
    of which it writes elements start + i // inner * length + i % inner, i counted in its own
    result, where the attribute `INTO` is (inner, length, start)."""

    whole: fx.Node
    spec: KernelSpec


def parts_of(plan: Plan, kernels: KernelTable) -> dict[fx.Node, Part]:
    """The calls of a plan that write parts: all that a concatenation puts together, when each is
    read by nothing else, views between them do not count, and its kernel can do so."""
    found: dict[fx.Node, Part] = {}
    for step in plan.steps:
        if isinstance(step, fx.Node) and plan.specs[step][0].op == _CAT:
            parts = dict(_parts(plan, step))
            if len(parts) == len(plan.specs[step][1]) and all(
                _can_write(plan, kernels, node, part) for node, part in parts.items()
            ):
                found |= parts
    return found


def _parts(plan: Plan, cat: fx.Node) -> Iterator[tuple[fx.Node, Part]]:
    """What a concatenation reads, as parts of it."""
    spec, nodes = plan.specs[cat]
    (whole,) = spec.outputs
    axis = spec["dim"] % len(whole.shape)
    length, first = prod(whole.shape[axis:]), 0
    for node, one in zip(nodes, spec.tensor("tensors"), strict=True):
        inner = prod(one.shape[axis:])
        writer = plan.memory[node]
        if writer in plan.specs and not isinstance(one, ViewSpec):
            own = plan.specs[writer][0]
            into = (INTO, (inner, length, first))
            yield (
                writer,
                Part(cat, KernelSpec(own.op, own.inputs, (*own.attributes, into), (whole,))),
            )
        first += inner


def _can_write(plan: Plan, kernels: KernelTable, node: fx.Node, part: Part) -> bool:
    """Whether a call can write its part, along whose border its result must be split."""
    spec, inner = plan.specs[node][0], part.spec[INTO][0]
    if node not in plan.steps or spec.op not in kernels or not kernels[spec.op].parts:
        return False
    shape = spec.outputs[0].shape
    borders = {prod(shape[axis:]) for axis in range(len(shape) + 1)}
    return len(spec.outputs) == 1 and inner in borders and _leads(plan, node, part.whole)


def _leads(plan: Plan, node: fx.Node, cat: fx.Node) -> bool:
    """Whether only `cat` reads a value, itself or through views."""
    users = list(node.users)
    if len(users) != 1:
        return False
    view = plan.memory.get(users[0]) is plan.memory[node]
    return users[0] is cat or (view and _leads(plan, users[0], cat))
