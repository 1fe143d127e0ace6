"""A graph as plain data: what every node is, reads and gives, for pictures and programs."""

from typing import Any, NamedTuple

from torch.fx import GraphModule, Node

from sqcompile import _torch_compat as compat
from sqcompile.passes.editing import tainted
from sqcompile.passes.printing import annotation, op_name, source_line


class Outline(NamedTuple):
    """One node.

    op: `sq.quantize`, or placeholder, get_attr, output; inputs: names of the nodes that it reads,
    each once; value: `f32[8, 16]`; bits: of the integers, 0 where they are not known; module:
    dotted path, "" for the model's own forward; line: the user's; port: of a placeholder,
    `param:weight`; backward: depends on an incoming gradient.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    value: str
    bits: int
    role: str
    module: str
    line: str
    port: str
    backward: bool


def outline(graph: GraphModule) -> list[Outline]:
    """Every node, in order."""
    behind = tainted(graph)
    return [_outlined(node, node in behind) for node in graph.graph.nodes]


def _outlined(node: Node, backward: bool) -> Outline:
    port: Any = node.meta.get("port")
    return Outline(
        node.name,
        op_name(node) if node.op == "call_function" else node.op,
        tuple(source.name for source in node.all_input_nodes),
        "" if node.op == "output" else annotation(node),
        int(node.meta.get("bits", 0)),
        str(node.meta.get("role", "")),
        str(node.meta.get("module") or compat.module_path(node)),
        source_line(node),
        "" if port is None else f"{port.kind}:{port.name}",
        backward,
    )
