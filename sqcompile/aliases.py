"""Outputs of a Dynamo graph that share memory with an input or with each other stay views.

A compiled function returns fresh tensors, but code after a graph break may write into a view.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from sqcompile.errors import CaptureError
from sqcompile.passes.editing import copy_graph


@dataclass(frozen=True)
class Alias:
    """An output as a view: the position of its base among the inputs, or among the computed
    results, and where in the base's memory it is."""

    base: int
    of_input: bool
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def view(self, inputs: Sequence[Any], results: Sequence[Any]) -> Tensor:
        """The output of a call."""
        base: Tensor = (inputs if self.of_input else results)[self.base]
        return base.as_strided(self.shape, self.strides, base.storage_offset() + self.offset)


@dataclass(frozen=True)
class Outputs:
    """The outputs of a graph in order: an Alias, or the position of a computed result."""

    places: tuple[int | Alias, ...]

    def of(self, inputs: Sequence[Any], results: Sequence[Any]) -> tuple[Any, ...]:
        """The outputs of a call from its inputs and what was computed."""
        return tuple(
            place.view(inputs, results) if isinstance(place, Alias) else results[place]
            for place in self.places
        )


def separate_aliases(module: GraphModule) -> tuple[GraphModule, Outputs]:
    """A copy of the graph that returns no views, and how to make the outputs from its results."""
    graph = copy_graph(module)
    inputs = {m: n for n in reversed(graph.graph.find_nodes(op="placeholder")) if (m := _memory(n))}
    positions = {node: i for i, node in enumerate(graph.graph.find_nodes(op="placeholder"))}
    output = graph.graph.output_node()
    wanted: Sequence[Any] = output.args[0]  # type: ignore[assignment]
    shared = Counter(memory for value in wanted if (memory := _memory(value)))
    owners = {m: node for node in reversed(list(graph.graph.nodes)) if (m := _memory(node))}
    results: list[Any] = []
    places: list[int | Alias] = []
    for value in wanted:
        memory = _memory(value)
        if memory in inputs:
            base = inputs[memory]
            places.append(_alias(value, base, positions[base], of_input=True))
        elif memory and shared[memory] > 1 and _row_major(owners[memory]):
            base = owners[memory]
            places.append(_alias(value, base, _place(results, base), of_input=False))
        else:
            results.append(value)
            places.append(len(results) - 1)
    output.args = (tuple(results),)
    graph.recompile()  # no dead code is dropped: to fx a write in place looks like that
    return graph, Outputs(tuple(places))


def _place(results: list[Any], node: Node) -> int:
    """The position of a node among the results, where it is put if it is not yet there."""
    if node not in results:
        results.append(node)
    return results.index(node)


def _memory(node: object) -> int | None:
    """What identifies the memory of a node's value."""
    value = node.meta.get("example_value") if isinstance(node, Node) else None
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return None
    return value.untyped_storage()._cdata


def _row_major(node: Node) -> bool:
    """Whether a value is what a compiled function returns in its place: all of its memory."""
    value = node.meta["example_value"]
    return value.is_contiguous() and int(value.storage_offset()) == 0


def _alias(node: Node, base: Node, position: int, *, of_input: bool) -> Alias:
    value, source = node.meta["example_value"], base.meta["example_value"]
    if value.dtype != source.dtype or value.is_conj() != source.is_conj():
        raise CaptureError(
            f"{node.meta.get('stack_trace', '')}\n  a view of {source.dtype} as {value.dtype} is "
            "returned\n  return a copy of it."
        )
    offset = int(value.storage_offset()) - int(source.storage_offset())
    shape, strides = map(int, value.shape), map(int, value.stride())
    return Alias(position, of_input, tuple(shape), tuple(strides), offset)
