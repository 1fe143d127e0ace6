"""How far two values are apart, and the first one of a step that differs."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, log10
from typing import Any

import torch
from torch import Tensor

from sqcompile.debug.layers import Point, Values


@dataclass(frozen=True)
class Apart:
    """relative: the norm of a - b over that of a; cosine of the angle between both; sqnr_db: the
    signal of a over the noise, in decibels, infinite for equal values; differing: elements whose
    bits differ, the first of them at `index` with the values `a` and `b`."""

    relative: float
    cosine: float
    sqnr_db: float
    differing: int
    index: tuple[int, ...] | None
    a: float | int | None
    b: float | int | None

    def to_json(self) -> dict[str, Any]:
        """As JSON-able data; an infinite ratio is None."""
        data = dict(vars(self))
        data["sqnr_db"] = None if self.sqnr_db == inf else self.sqnr_db
        data["index"] = None if self.index is None else list(self.index)
        return data


def apart(a: Tensor, b: Tensor) -> Apart:
    """a is what b is held against; both have the same elements, whatever their shapes."""
    b = b.reshape(a.shape)
    x, y = a.to(torch.float64).flatten(), b.to(torch.float64).flatten()
    power, noise = float(x.square().sum()), float((x - y).square().sum())
    lengths = (power * float(y.square().sum())) ** 0.5
    relative = (noise / power) ** 0.5 if power else (inf if noise else 0.0)
    different = (bits(a) != bits(b)).flatten().nonzero()
    index = None
    if len(different):
        index = tuple(int(i) for i in torch.unravel_index(different[0, 0], a.shape))
    return Apart(
        relative,
        float(x @ y) / lengths if lengths else 1.0,
        -20 * log10(relative) if 0 < relative < inf else (inf if not relative else -inf),
        len(different),
        index,
        None if index is None else a[index].item(),
        None if index is None else b[index].item(),
    )


def bits(value: Tensor) -> Tensor:
    """float32 as int32, so that -0.0 differs from 0.0 and a NaN equals itself."""
    value = value.contiguous()
    return value.view(torch.int32) if value.dtype == torch.float32 else value


def layers(a: Values, b: Values) -> Iterator[tuple[Point, Apart]]:
    """Every point that both runs have, in A's order."""
    for point, value in a.points.items():
        other = b.points.get(point)
        if other is not None and other.numel() == value.numel():
            yield point, apart(value, other)


def total(reference: Values, values: Values, kind: str) -> float:
    """The squared error of all points of a kind together, relative to their squares."""
    power = noise = 0.0
    for point, value in reference.points.items():
        other = values.points.get(point)
        if point.kind == kind and other is not None and other.numel() == value.numel():
            x, y = value.to(torch.float64), other.to(torch.float64).reshape(value.shape)
            power += float(x.square().sum())
            noise += float((x - y).square().sum())
    return noise / power if power else 0.0


@dataclass(frozen=True)
class NodeApart:
    """A node whose values differ: where it is, what it is, and by how much."""

    name: str
    pass_: str
    op: str
    module: str
    role: str
    line: str
    shape: tuple[int, ...]
    output: int | None
    apart: Apart

    def to_json(self) -> dict[str, Any]:
        """As JSON-able data."""
        data = {**vars(self), "shape": list(self.shape), "apart": self.apart.to_json()}
        data["pass"] = data.pop("pass_")
        return data
