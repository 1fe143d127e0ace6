"""Inputs on which every kernel must give the reference's bits: shapes, bits, groups and edges.

A case is an op and its arguments. Values come from a generator seeded with the case's name, so a
case is the same alone and among others.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode

from sqcompile.backends.kernels import KernelSpec, spec_of
from sqcompile.passes.assign_precision import Operand

F32, I8, U8, I32, I64 = torch.float32, torch.int8, torch.uint8, torch.int32, torch.int64

Made = Iterator[tuple[str, str, Callable[["Source"], list[Any]]]]
"""Op, label and arguments of cases."""


class Source:
    """Random tensors of one case."""

    def __init__(self, name: str) -> None:
        self.generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = I8) -> Tensor:
        """Uniform in [low, high]."""
        return torch.randint(low, high + 1, shape, generator=self.generator, dtype=dtype)

    def grid(self, dtype: torch.dtype, *shape: int) -> Tensor:
        """Any 8-bit quantised value."""
        low, high = (-127, 127) if dtype == I8 else (0, 255)
        return self.integers(low, high, *shape, dtype=dtype)

    def mask(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) > 0.5

    def edges(self, *shape: int) -> Tensor:
        """Normal values among zeros of both signs, denormals, tiny and huge numbers."""
        x = self.normal(*shape)
        special = torch.tensor([0.0, -0.0, 1e-40, -3e-42, 2.0**-101, -(2.0**-99), 3e38, -1e30])
        place = torch.randint(0, 24, shape, generator=self.generator)
        return torch.where(place < 8, special[place.clamp(max=7)], x)


@dataclass(frozen=True)
class Ranged:
    """Arguments of a product whose passes know (bits, signed) of both operands."""

    make: Callable[[Source], list[Any]]
    operands: tuple[tuple[int, bool], tuple[int, bool]]

    def __call__(self, source: Source) -> list[Any]:
        return self.make(source)


@dataclass(frozen=True)
class Case:
    """One op on one set of arguments."""

    name: str
    target: torch._ops.OpOverload
    reference: Callable[..., Any]
    make: Callable[[Source], list[Any]]
    keywords: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> list[Any]:
        """Fresh arguments, always the same."""
        return self.make(Source(self.name))

    def expected(self, arguments: list[Any]) -> list[Tensor]:
        """What the reference gives."""
        result = self.reference(*arguments, **self.keywords)
        return list(result) if isinstance(result, (tuple, list)) else [result]

    def spec(self) -> KernelSpec:
        """The kernel that a graph with this call asks for."""
        return self._spec

    @cached_property
    def _spec(self) -> KernelSpec:
        node = call_node(self.target, self.arguments(), self.keywords)
        if isinstance(self.make, Ranged):
            operands = tuple(Operand("activation", b, s) for b, s in self.make.operands)
            node.meta["sq"] = SimpleNamespace(operands=operands)
        return spec_of(node)[0]


def call_node(
    target: torch._ops.OpOverload, arguments: list[Any], keywords: dict[str, Any]
) -> fx.Node:
    """A node that calls `target`, with metadata as capture leaves it."""
    graph, mode = fx.Graph(), FakeTensorMode()

    def lifted(value: Any) -> Any:
        if isinstance(value, Tensor):
            node = graph.placeholder(f"arg{len(graph.nodes)}")
            node.meta["val"] = mode.from_tensor(value)
            return node
        if isinstance(value, list):
            return [lifted(one) for one in value]
        return value

    def fake(value: Any) -> Any:
        if isinstance(value, list):
            return [fake(one) for one in value]
        return value.meta["val"] if isinstance(value, fx.Node) else value

    nodes = [lifted(value) for value in arguments]
    call = graph.call_function(target, tuple(nodes), keywords)
    with mode:
        call.meta["val"] = target(*[fake(node) for node in nodes], **keywords)
    return call


def tensors(arguments: list[Any]) -> list[Tensor]:
    """The tensors among arguments, lists flattened, as kernels take them."""
    found = []
    for value in arguments:
        if isinstance(value, Tensor):
            found.append(value.contiguous())
        elif isinstance(value, list):
            found += tensors(value)
    return found


def sized(shape: Any) -> str:
    return "x".join(map(str, shape))
