"""Products whose sums need 64 bits, as parts whose sums fit the accelerator's 32.

A pass has proven how many units of the reduction one accumulator holds (`k_chunk`); the host adds
the parts in int64, which gives the same sum.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from sqcompile.backends.kernels import KernelSpec, Operand, TensorSpec


class Part(NamedTuple):
    """A part of a product: `cut`, which elements of its operands it reads (`taken` in
    `sqcompile.runtime.vta`), and what it computes of those."""

    cut: str
    spec: KernelSpec


def parts(spec: KernelSpec) -> list[Part] | str:
    """The parts of a product, one with no cut where 32 bits hold its sums; or why it has none."""
    units = spec["k_chunk"]
    if not units:
        return [Part("", spec)]
    if spec.get("groups", 1) > 1 and spec.op != "sq::shift_matmul":
        return "its sums need 64 bits, and it has groups of channels"
    axes = _AXES[spec.op](spec)
    if spec.op == "sq::conv_wgrad":
        units //= spec.tensor("g").shape[1]  # from rows to images
        if not units:
            return "the sums of one image need 64 bits, and accumulators have 32"
    first = next(iter(axes))
    length = spec.tensor(first).shape[axes[first]]
    return [
        _part(spec, axes, start, min(start + units, length)) for start in range(0, length, units)
    ]


def _part(spec: KernelSpec, axes: Mapping[str, int], start: int, end: int) -> Part:
    inputs: list[tuple[str, Operand]] = []
    places: list[list[int] | None] = []
    for name, one in spec.inputs:
        if not isinstance(one, TensorSpec):
            inputs.append((name, one))
            continue
        axis = axes.get(name)
        if axis is None or one.shape[axis] == 1:
            inputs.append((name, one))
            places.append(None)
        else:
            sizes = (*one.shape[:axis], end - start, *one.shape[axis + 1 :])
            inputs.append((name, TensorSpec(sizes, one.dtype)))
            places.append([axis, start, end])
    attributes = tuple((name, 0 if name == "k_chunk" else one) for name, one in spec.attributes)
    outputs = tuple(TensorSpec(one.shape, "int32") for one in spec.outputs)
    made = replace(spec, inputs=tuple(inputs), attributes=attributes, outputs=outputs)
    return Part(json.dumps(places), made)


def _matrices(spec: KernelSpec) -> dict[str, int]:
    rank = len(spec.tensor("a").shape)
    a = rank - 2 if spec["transpose_a"] else rank - 1
    return {"a": a, "b": rank - 1 if spec["transpose_b"] else rank - 2, "exponent": a}


_AXES: dict[str, Callable[[KernelSpec], dict[str, int]]] = {
    "sq::shift_matmul": _matrices,
    "sq::conv_fprop": lambda spec: {"x": 3, "w": 1, "exponent": 3},
    "sq::conv_dgrad": lambda spec: {"g": 3, "w": 0, "exponent": 3},
    "sq::conv_wgrad": lambda spec: {"g": 0, "x": 0, "exponent": 0},
}
"""The axis of each operand that is summed over, and cut."""
