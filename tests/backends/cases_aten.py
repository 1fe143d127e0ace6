"""The ATen ops that stay in integer graphs."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from tests.backends.cases import I64, Source

aten = torch.ops.aten


def aten_cases() -> Iterator[tuple[Any, str, Callable[[Source], list[Any]]]]:
    shape = (3, 5, 7)

    def pair(s: Source) -> list[Any]:
        return [s.edges(*shape), s.normal(5, 1)]

    for target in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor):
        yield target, "broadcast", pair
        yield target, "scalar", lambda s: [s.edges(*shape), 0.3]
        yield target, "zero", lambda s: [s.edges(*shape), 0.0]
    for target in (aten.mul.Scalar, aten.div.Scalar, aten.add.Scalar, aten.sub.Scalar):
        yield target, "scalar", lambda s: [s.edges(*shape), 1.7]
    yield aten.add.Tensor, "counter", lambda s: [torch.tensor(2**40), 1]
    yield aten.mul.Tensor, "mask", lambda s: [s.edges(*shape), s.mask(*shape)]
    yield aten.add.Tensor, "large", lambda s: [s.normal(130, 1000), s.normal(1000)]
    for name in ("gt", "ge", "lt", "le", "eq", "ne"):
        packet = getattr(aten, name)
        yield packet.Tensor, "broadcast", pair
        yield packet.Scalar, "zero", lambda s: [s.edges(*shape), 0]
        yield packet.Scalar, "int64", lambda s: [s.integers(0, 3, 9, dtype=I64), 2]
    for target in (aten.sgn.default, aten.sign.default):
        yield target, "edges", lambda s: [s.edges(*shape)]
    for target in (aten.neg.default, aten.abs.default, aten.relu.default, aten.clone.default):
        yield target, "edges", lambda s: [s.edges(*shape)]
    yield aten.neg.default, "int64", lambda s: [s.integers(-5, 5, 9, dtype=I64)]
    yield aten.abs.default, "int64", lambda s: [s.integers(-5, 5, 9, dtype=I64)]
    yield aten.reciprocal.default, "many", lambda s: [s.normal(1000)]
    for target in (aten.logical_and.default, aten.logical_or.default):
        yield target, "masks", lambda s: [s.mask(*shape), s.mask(*shape)]
        yield target, "floats", lambda s: [s.edges(*shape), s.edges(*shape)]
    yield aten.logical_not.default, "mask", lambda s: [s.mask(*shape)]
    yield aten.logical_not.default, "floats", lambda s: [s.edges(*shape)]
    backward = (aten.threshold_backward.default, aten.hardtanh_backward.default)
    for target, rest in zip(backward, ([0], [-0.5, 0.5]), strict=True):
        yield (
            target,
            "edges",
            lambda s, r=rest: [s.normal(*shape), s.edges(*shape), *r],
        )
    yield aten.leaky_relu.default, "edges", lambda s: [s.edges(*shape), 0.01]
    yield (
        aten.leaky_relu_backward.default,
        "edges",
        lambda s: [s.normal(*shape), s.edges(*shape), 0.01, False],
    )
    yield aten.hardtanh.default, "six", lambda s: [s.edges(*shape) * 9, 0, 6]
    yield aten.clamp.default, "low", lambda s: [s.edges(*shape), -0.5]
    yield aten.clamp.default, "high", lambda s: [s.edges(*shape), None, 0.0]
    yield aten.where.self, "broadcast", lambda s: [s.mask(*shape), s.normal(*shape), s.normal(7)]
    yield aten.where.self, "scalar", lambda s: [s.mask(*shape), s.normal(*shape), torch.tensor(0.0)]
    yield aten.where.Scalar, "mask", lambda s: [s.mask(*shape), 0.0, -torch.inf]
    yield aten.where.ScalarOther, "zero", lambda s: [s.mask(*shape), s.normal(*shape), 0.0]
    yield aten.permute.default, "rotate", lambda s: [s.normal(*shape), [2, 0, -2]]
    yield aten.transpose.int, "ends", lambda s: [s.normal(*shape), -1, 0]
    yield aten.t.default, "matrix", lambda s: [s.normal(70, 33)]
    yield aten.t.default, "short", lambda s: [s.normal(9, 8)]
    yield aten.t.default, "bytes", lambda s: [s.integers(-128, 127, 70, 33)]
    yield aten.t.default, "int64", lambda s: [s.integers(-128, 127, 70, 33, dtype=I64)]
    yield aten.t.default, "mask", lambda s: [s.mask(70, 33)]
    for channels in (3, 20):
        yield (
            aten.permute.default,
            f"channels-last-{channels}",
            lambda s, c=channels: [s.normal(2, c, 5, 9), [0, 2, 3, 1]],
        )
        yield (
            aten.permute.default,
            f"channels-first-{channels}",
            lambda s, c=channels: [s.normal(2, 5, 9, c), [0, 3, 1, 2]],
        )
    yield aten.permute.default, "heads", lambda s: [s.normal(2, 7, 3, 40), [0, 2, 1, 3]]
    yield aten.permute.default, "mask", lambda s: [s.mask(2, 7, 3, 40), [0, 2, 1, 3]]
    yield aten.slice.Tensor, "large", lambda s: [s.normal(9, 1000), 0, 2, 8]
    yield aten.expand.default, "rows", lambda s: [s.normal(5, 1), [3, -1, 7]]
    for axes in ([1], [0, 2], [-1], [0, 1, 2]):
        label = "-".join(map(str, axes))
        yield (
            aten.sum.dim_IntList,
            f"masks-{label}",
            lambda s, a=axes: [s.mask(3, 70, 20), a, len(a) == 1],
        )
    yield aten.sum.dim_IntList, "int64", lambda s: [s.integers(-9, 9, 5, 33, dtype=I64) << 40, [0]]
    yield aten.sum.default, "mask", lambda s: [s.mask(300, 33)]
    yield aten.flip.default, "last", lambda s: [s.normal(3, 5, 37), [-1]]
    yield aten.flip.default, "ends", lambda s: [s.normal(3, 5, 37), [0, 2]]
    yield aten.flip.default, "rows", lambda s: [s.normal(3, 5, 2, 40), [1]]
    yield aten.flip.default, "whole", lambda s: [s.integers(-9, 9, 3, 5, 7), [0, 1, 2]]
    yield aten.slice.Tensor, "step", lambda s: [s.normal(*shape), 1, 1, -1, 2]
    yield aten.slice.Tensor, "tail", lambda s: [s.normal(*shape), -1, 2]
    yield aten.select.int, "last", lambda s: [s.normal(*shape), 1, -1]
    yield (
        aten.cat.default,
        "columns",
        lambda s: [[s.normal(3, 4), s.normal(3, 1), s.normal(3, 9)], -1],
    )
    yield aten.constant_pad_nd.default, "pad", lambda s: [s.normal(*shape), [1, 2, 0, 3], 1.5]
    yield aten.constant_pad_nd.default, "crop", lambda s: [s.normal(*shape), [-1, 2, -2, -1]]
    yield aten.full.default, "seven", lambda s: [[3, 7], 7.0]


TO_COPY = aten._to_copy.default


def to_float() -> dict[str, Callable[[Source], list[Any]]]:
    """Conversions to float32."""
    return {
        "bool": lambda s: [s.mask(3, 50)],
        "int8": lambda s: [s.integers(-128, 127, 300)],
        "int64": lambda s: [s.integers(-(2**62), 2**62, 300, dtype=I64)],
    }
