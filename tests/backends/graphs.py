"""Graphs written by hand, with metadata as capture leaves it."""

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode

Call = Callable[..., fx.Node]
Build = Callable[..., Iterable[fx.Node]]


class Writer:
    """Adds nodes to a graph and computes their metadata."""

    def __init__(self) -> None:
        self.graph, self.mode = fx.Graph(), FakeTensorMode()

    def input(self, name: str, like: Tensor) -> fx.Node:
        node = self.graph.placeholder(name)
        node.meta["val"] = self.mode.from_tensor(like)
        return node

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        def fake(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return [fake(one) for one in value]
            return value.meta["val"] if isinstance(value, fx.Node) else value

        node = self.graph.call_function(target, args, kwargs)
        with self.mode:
            node.meta["val"] = target(*[fake(a) for a in args], **kwargs)
        node.meta["stack_trace"] = f'File "model.py", line {len(self.graph.nodes)}'
        node.meta["module"] = "block"
        return node

    def item(self, node: fx.Node, index: int) -> fx.Node:
        item = self.graph.call_function(operator.getitem, (node, index))
        item.meta["val"] = node.meta["val"][index]
        return item

    def module(self, *outputs: Any) -> fx.GraphModule:
        self.graph.output(tuple(outputs))
        return fx.GraphModule(torch.nn.Module(), self.graph)


def written(build: Build, *inputs: Tensor) -> fx.GraphModule:
    """The graph whose outputs `build(call, *input nodes)` gives."""
    writer = Writer()
    nodes = [writer.input(f"x{i}", one) for i, one in enumerate(inputs)]
    return writer.module(*build(writer.call, *nodes))
