"""Cut the joint graph into a forward and a backward graph."""

from dataclasses import dataclass

import torch
from torch.fx import Graph, GraphModule, Node

from sqcompile import _torch_compat as compat
from sqcompile._torch_compat import Port
from sqcompile.passes.editing import copy_graph, finish, tainted

aten = torch.ops.aten
_VIEWS = {
    aten.view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.expand.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.transpose.int,
    aten.slice.Tensor,
    aten.select.int,
}


@dataclass(frozen=True)
class Partition:
    """Forward and backward of one step.

    forward(*inputs, rng) -> outputs + saved; backward(*saved, rng, *tangents) -> gradients.
    `inputs` and `outputs` name forward's, without rng and without the saved values; `saved` names
    what backward reads, in order: a node of forward, or an input ("param:name") that is passed
    on; `tangents` and `gradients` name backward's. backward is None when nothing needs one.
    """

    forward: GraphModule
    backward: GraphModule | None
    inputs: list[Port]
    outputs: list[Port]
    saved: list[str]
    tangents: list[Port]
    gradients: list[Port]


def partition(module: GraphModule, ports: list[Port], *, inference: bool = False) -> Partition:
    """Backward is what depends on an incoming gradient; all else is forward. A value that both
    read is saved, a view of a saved or input value is taken again in backward, and so is a
    constant. With
    `inference` nothing is saved and there is no backward."""
    graph = copy_graph(module)
    _views_into_backward(graph)
    output = graph.graph.output_node()
    results = list(output.args[0])  # type: ignore[arg-type]
    forward_ports = [i for i, port in enumerate(ports) if port.kind != "grad"]
    backward_ports = [i for i, port in enumerate(ports) if port.kind == "grad"]
    backward = set() if inference else tainted(graph)
    saved = [
        node
        for node in graph.graph.nodes
        if node not in backward
        and node.name != "rng"
        and not _constant(node)
        and any(u in backward for u in node.users)
    ]
    gradient_sources = [results[i] for i in backward_ports]
    if not inference:
        saved += [n for n in dict.fromkeys(gradient_sources) if n not in backward | set(saved)]
    placeholders = graph.graph.find_nodes(op="placeholder")
    rng = [node for node in placeholders if node.name == "rng"]
    inputs = [n for n in placeholders if n not in backward and n not in rng and n.meta.get("port")]
    inputs = [n for n in inputs if n.meta["port"].kind != "tangent"]
    tangents = [n for n in placeholders if n.meta.get("port") and n.meta["port"].kind == "tangent"]
    computed = [node for node in saved if node.op != "placeholder"]
    forward = _extract(graph, [*inputs, *rng], [results[i] for i in forward_ports] + computed)
    second = None
    if backward and backward_ports and not inference:
        second = _extract(graph, [*saved, *rng, *tangents], gradient_sources)
    return Partition(
        forward,
        second,
        [node.meta["port"] for node in inputs],
        [ports[i] for i in forward_ports],
        [_saved_name(node) for node in saved] if second else [],
        [node.meta["port"] for node in tangents],
        [ports[i] for i in backward_ports] if second else [],
    )


def _constant(node: Node) -> bool:
    """Whether a value depends on nothing: both graphs hold it."""
    return node.op == "get_attr" or (node.op == "call_function" and not node.all_input_nodes)


def _saved_name(node: Node) -> str:
    port = node.meta.get("port")
    return node.name if port is None else f"{port.kind}:{port.name}"


def _views_into_backward(graph: GraphModule) -> None:
    """Give backward its own copy of every view of a forward value that it reads."""
    backward = tainted(graph)
    for node in reversed(list(graph.graph.nodes)):
        if node in backward or node.op != "call_function" or node.target not in _VIEWS:
            continue
        readers = [user for user in node.users if user in backward]
        if not readers:
            continue
        order = {n: i for i, n in enumerate(graph.graph.nodes)}
        with graph.graph.inserting_before(min(readers, key=order.__getitem__)):
            copy = graph.graph.node_copy(node, lambda n: n)
        backward.add(copy)
        for reader in readers:
            reader.replace_input_with(node, copy)
        copy.meta["backward"] = True


def _extract(module: GraphModule, inputs: list[Node], outputs: list[Node]) -> GraphModule:
    """The graph that computes `outputs` from `inputs`, which become its placeholders."""
    graph = Graph()
    values: dict[Node, Node] = {}
    for node in inputs:
        placeholder = graph.placeholder(node.name)
        placeholder.meta.update(node.meta)
        values[node] = placeholder
    wanted = _ancestors(outputs, set(inputs))
    for node in module.graph.nodes:
        if node in wanted and node not in values:
            values[node] = graph.node_copy(node, values.__getitem__)
    graph.output(tuple(values[node] for node in outputs))
    return finish(compat.lazy_graph_module(module, graph))


def _ancestors(nodes: list[Node], stop: set[Node]) -> set[Node]:
    found: set[Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        if node not in stop:
            waiting += node.all_input_nodes
    return found
