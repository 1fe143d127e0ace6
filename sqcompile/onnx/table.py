"""Which emitter writes which op: one entry an op, in one file a family."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from sqcompile.onnx.body import Body, Value
from sqcompile.passes.editing import target_of

Emitted = Value | tuple[Value, ...]
Emitter = Callable[["Call"], Emitted]

EMITTERS: dict[object, Emitter] = {}
"""By the overload that stands in a graph. Ops of the op table that are not here are written as
what their reference computes (sqcompile/onnx/functions.py)."""


class NoForm(Exception):
    """An op, or a case of it, that has no exact ONNX form; the text says why."""


@dataclass(frozen=True)
class Call:
    """One call to write: where to, its arguments by name with values for nodes, its result."""

    body: Body
    node: Node
    arguments: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    @property
    def first(self) -> Value:
        """The first argument, a value."""
        value = next(iter(self.arguments.values()))
        assert isinstance(value, Value), self.node.format_node()
        return value

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the result."""
        return self.node.meta["val"].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        return tuple(self.node.meta["val"].shape)

    def value(self, given: Any, dtype: torch.dtype) -> Value:
        """A value cast to `dtype`, or a number as one."""
        if isinstance(given, Value):
            return cast(self.body, given, dtype)
        return self.body.constant(given, dtype)


def cast(body: Body, value: Value, dtype: torch.dtype) -> Value:
    """A value in another dtype: floats to the nearest, or toward zero as integers."""
    if value.dtype == dtype:
        return value
    from sqcompile.onnx.dtypes import ONNX_TYPES

    return body.call("Cast", value, dtype=dtype, largest=value.largest, to=ONNX_TYPES[dtype])


def emits(*ops: object) -> Callable[[Emitter], Emitter]:
    """Enter an emitter for these ops (op-table entries or overloads)."""

    def enter(emitter: Emitter) -> Emitter:
        for op in ops:
            assert target_of(op) not in EMITTERS, op
            EMITTERS[target_of(op)] = emitter
        return emitter

    return enter
