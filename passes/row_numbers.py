"""Where a graph reads or adds rows by number, and which numbers their tables take."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.fx import GraphModule, Node

from sqcompile._torch_compat import Port
from sqcompile.ops.lookup import take, take_backward
from sqcompile.ops.loss import nll_loss
from sqcompile.passes.editing import arguments, calls, is_call, shape, target_of, value
from sqcompile.passes.intervals import SAME_NUMBERS

aten = torch.ops.aten


@dataclass(frozen=True)
class RowNumbers:
    """The call `reader` takes `numbers` in low .. rows - 1, of `unit` "row" or "class"; `ignored`
    is a number that counts for nothing. Two that differ in the reader alone are equal."""

    numbers: Node
    low: int
    rows: int
    unit: str
    ignored: int | None
    reader: Node = field(compare=False)

    @property
    def port(self) -> Port | None:
        """The input or buffer that the numbers are; None for those that the graph computes."""
        port: Port | None = self.numbers.meta.get("port")
        return port if port is not None and port.kind in ("input", "buffer") else None


def row_numbers(module: GraphModule) -> list[RowNumbers]:
    """Every use of numbers as rows or classes, in order. Numbers that count negative ones from the
    end are those from before, which may be negative."""
    found = []
    for node in calls(module, *_READERS):
        index, rows, unit, ignored = _READERS[node.target](node)
        numbers, low = _source(index), 0
        counted = _counted_from(numbers, rows)
        if counted is not None:
            numbers, low = _source(counted), -rows
        found.append(RowNumbers(numbers, low, rows, unit, ignored, node))
    return found


Read = tuple[Node, int, str, int | None]
"""The numbers of a reader, the size of its table, what it is of, and the number ignored."""


def _take(node: Node) -> Read:
    given = arguments(node)
    return given["index"], shape(given["x"])[given["axis"]], "row", None


def _take_backward(node: Node) -> Read:
    given = arguments(node)
    return given["index"], given["size"], "row", None


def _nll_loss(node: Node) -> Read:
    given = arguments(node)
    return given["target"], shape(given["x"])[1], "class", given["ignored"]


_READERS: dict[object, Callable[[Node], Read]] = {
    target_of(take): _take,
    target_of(take_backward): _take_backward,
    target_of(nll_loss): _nll_loss,
}


def _source(node: Node) -> Node:
    """The node whose numbers a view or a copy holds, all of them."""
    while is_call(node, *SAME_NUMBERS):
        source = node.all_input_nodes[0]
        if value(source).dtype.is_floating_point:
            break
        node = source
    return node


def _counted_from(node: Node, rows: int) -> Node | None:
    """i of where(i < 0, i + rows, i), as an index that counts from the end is written."""
    if not is_call(node, aten.where.self):
        return None
    negative, back, index = node.args
    assert isinstance(index, Node)
    below = is_call(negative, aten.lt.Scalar) and negative.args == (index, 0)  # type: ignore[union-attr]
    added = is_call(back, aten.add.Tensor) and back.args == (index, rows)  # type: ignore[union-attr]
    return index if below and added else None
