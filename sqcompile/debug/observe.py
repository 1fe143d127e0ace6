"""A variant's reference graphs run node by node, so that every value can be looked at."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from sqcompile.errors import UsageError
from sqcompile.passes.editing import arguments
from sqcompile.passes.partition import Partition
from sqcompile.passes.printing import op_name, source_line

if TYPE_CHECKING:
    from sqcompile.runtime.variant import Variant

Tangents = Sequence[Tensor] | Callable[[list[Tensor]], Sequence[Tensor]]
"""The gradients of forward's outputs, or a function from forward's outputs to them."""


@dataclass(frozen=True)
class Observed:
    """One node's value while the graph runs.

    pass_: "forward" or "backward"; value: a tensor, or a tuple of them; given: the arguments of an
    operator by name, with tensors for nodes (empty for placeholders and constants).
    """

    pass_: str
    node: Node
    value: Any
    given: dict[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """The node's name, unique in its graph."""
        return self.node.name

    @property
    def op(self) -> str:
        """`sq.quantize`; "placeholder" or "get_attr" for what is not computed."""
        return op_name(self.node) if self.node.op == "call_function" else self.node.op

    @property
    def module(self) -> str:
        """Dotted path of the module that the node belongs to, "" where none is known."""
        return str(self.node.meta.get("module", ""))

    @property
    def role(self) -> str:
        """ "fprop", "dgrad", "wgrad" or ""."""
        return str(self.node.meta.get("role", ""))

    @property
    def line(self) -> str:
        """The user's line, `model.py:12  x = self.conv(x)`, or ""."""
        return source_line(self.node)


def walk(
    graph: GraphModule, inputs: Sequence[Tensor], pass_: str = "forward"
) -> Generator[Observed, None, list[Tensor]]:
    """Run a graph node by node: yields an Observed for every node but the output; the generator's
    result (`yield from`) is the list of the graph's outputs. A value is let go of behind its last
    reader, so the memory is that of running the graph."""
    given = iter(inputs)
    values: dict[Node, Any] = {}
    readers = {node: len(node.users) for node in graph.graph.nodes}
    for node in graph.graph.nodes:
        if node.op == "output":
            return [values[one] for one in node.args[0]]
        named: dict[str, Any] = {}
        if node.op == "placeholder":
            values[node] = next(given)
        elif node.op == "get_attr":
            values[node] = _attribute(graph, node.target)
        else:
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            if isinstance(node.target, torch._ops.OpOverload):
                named = map_arg(arguments(node), values.__getitem__)
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)
        yield Observed(pass_, node, values[node], named)
        for source in node.all_input_nodes:
            readers[source] -= 1
            if not readers[source]:
                del values[source]
        if not readers[node]:
            del values[node]
    return []


def program(variant: "Variant") -> Partition:
    """The graphs of a variant that was compiled here. Raises UsageError for a loaded one."""
    if variant.forward is None:
        raise UsageError("a loaded artifact has no reference graph: give the model file")
    signature = variant.signature
    return Partition(
        variant.forward,
        variant.backward,
        list(signature.inputs),
        list(signature.outputs),
        list(signature.saved),
        list(signature.tangents),
        list(signature.gradients),
    )


def observe(
    graphs: Partition, inputs: Sequence[Tensor], rng: Tensor, tangents: Tangents = ()
) -> Iterator[Observed]:
    """Every node of forward, then of backward, for the values that forward reads (what
    `step.values_of(variant, args, {})` gives), the state of the draws, int64 (seed, step,
    micro_step, rank), and the gradients of the outputs. Without tangents only forward runs."""
    values = [value.detach().cpu() for value in inputs]
    results = yield from walk(graphs.forward, [*values, rng])
    if graphs.backward is None or (not callable(tangents) and not tangents):
        return
    outputs, saved = handed_on(graphs, values, results)
    given = tangents(outputs) if callable(tangents) else tangents
    yield from walk(graphs.backward, [*saved, rng, *given], "backward")


def handed_on(
    graphs: Partition, inputs: Sequence[Tensor], results: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Forward's results -> (outputs in the order of the tangents, what backward reads)."""
    named = {
        port.name: results[place]
        for place, port in enumerate(graphs.outputs)
        if port.kind == "output"
    }
    outputs = [named[port.name] for port in graphs.tangents]
    given = {
        f"{port.kind}:{port.name}": value for port, value in zip(graphs.inputs, inputs, strict=True)
    }
    computed = iter(results[len(graphs.outputs) :])
    saved = [given[name] if name in given else next(computed) for name in graphs.saved]
    return outputs, saved


def drawn_tangents(graphs: Partition, seed: int = 0) -> list[Tensor]:
    """Normal draws in place of a loss's gradient, for every output that has one."""
    if graphs.backward is None:
        return []
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(node.meta["val"].shape, generator=generator)
        for node in graphs.backward.graph.find_nodes(op="placeholder")
        if (port := node.meta.get("port")) is not None and port.kind == "tangent"
    ]


def _attribute(graph: GraphModule, target: str) -> Any:
    value: Any = graph
    for part in target.split("."):
        value = getattr(value, part)
    return value
