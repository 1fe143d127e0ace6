"""Which inputs of a step are row numbers, and of how many rows: looked at before every forward."""

import torch
from torch.fx import GraphModule, Node

from sqcompile.ops.lookup import take
from sqcompile.passes.editing import calls, is_call, shape
from sqcompile.passes.printing import source_line
from sqcompile.runtime.signature import IndexLimit

aten = torch.ops.aten

_SAME_NUMBERS = (
    aten.view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.permute.default,
    aten.transpose.int,
    aten.expand.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.clone.default,
    aten._to_copy.default,
)


def index_limits(graph: GraphModule) -> tuple[IndexLimit, ...]:
    """The limits of every sq.take whose numbers are those of an input or a buffer: as they are,
    or with negative ones counted from the end. Numbers that the graph computes are not looked at;
    a kernel takes the nearest row for one outside."""
    found: dict[tuple[str, int, int], IndexLimit] = {}
    for node in calls(graph, take):
        table, index, axis = node.args
        assert isinstance(table, Node) and isinstance(index, Node) and isinstance(axis, int)
        rows = shape(table)[axis]
        source, low = _source(index), 0
        if is_call(source, aten.where.self) and is_call(source.args[1], aten.add.Tensor):
            source, low = _source(source.args[2]), -rows  # type: ignore[arg-type]
        port = source.meta.get("port")
        if port is not None and port.kind in ("input", "buffer"):
            name = f"{port.kind}:{port.name}"
            limit = IndexLimit(name, low, rows, source_line(node))
            found.setdefault((name, low, rows), limit)
    return tuple(found.values())


def _source(node: Node) -> Node:
    """The node whose numbers a view or a copy holds."""
    while is_call(node, *_SAME_NUMBERS):
        node = node.all_input_nodes[0]
    return node
