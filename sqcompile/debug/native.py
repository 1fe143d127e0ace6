"""The values that a compiled step's kernels give, by the nodes of its graph that they stand for,
held against the reference graph node by node."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from sqcompile.debug.difference import NodeApart, apart, bits
from sqcompile.debug.observe import Observed, handed_on, program, walk

if TYPE_CHECKING:
    from sqcompile.runtime.variant import Variant


class Kernels:
    """An instrument of a virtual machine that keeps what every kernel writes.

    A kernel that serves several nodes is called once for each, in the order in which they were
    lowered; kernels that the target hands to other code have no node and are left out.
    """

    def __init__(self, variant: "Variant", pass_: str, graph: GraphModule) -> None:
        nodes = {node.name: node for node in graph.graph.nodes}
        self.values: dict[str, Tensor] = {}
        self._waiting: dict[str, list[list[tuple[str, int | None]]]] = {}
        for record in variant.kernels:
            labels = [one.partition("/")[2] for one in record.nodes if one.startswith(f"{pass_}/")]
            self._waiting[record.name] = [
                _written([nodes[name] for name in label.split("+") if name in nodes])
                for label in labels
            ]

    def instrument(self, _function: Any, symbol: str, before: bool, *rest: Any) -> int:
        """What the machine calls around every kernel; its outputs are its last arguments."""
        waiting = self._waiting.get(str(symbol))
        if before or not waiting:
            return 0
        written = waiting.pop(0)
        tensors = [_tensor(one) for one in rest[1:]]
        given = [one for one in tensors if one is not None]
        for (name, place), value in zip(written, given[len(given) - len(written) :], strict=False):
            self.values[name if place is None else f"{name}[{place}]"] = value.clone()
        return 0


def _written(nodes: Sequence[Node]) -> list[tuple[str, int | None]]:
    """(node, which output) of everything that the kernel of these nodes writes, in order."""
    members = set(nodes)
    found: list[tuple[str, int | None]] = []
    for node in nodes:
        value = node.meta["val"]
        if isinstance(value, tuple | list):
            found += [(node.name, place) for place in range(len(value))]
        elif len(nodes) == 1 or any(user not in members for user in node.users):
            found.append((node.name, None))
    return found


def _tensor(value: Any) -> Tensor | None:
    if not hasattr(value, "__dlpack__"):
        return None
    return torch.utils.dlpack.from_dlpack(value)


def differing(
    variant: "Variant", inputs: Sequence[Tensor], rng: Tensor, tangents: Sequence[Tensor]
) -> Iterator[NodeApart]:
    """Every node whose kernel does not give the reference's bits, in order, forward first. Both
    go their own way from the inputs on: behind the first one, all that follows from it differs."""
    from sqcompile.runtime.executable import Executable

    graphs = program(variant)
    executable = Executable(variant.executable.binary)
    watched = Kernels(variant, "forward", graphs.forward)
    values = [value.detach() for value in inputs]
    hooks = [watched]
    executable.instrument(lambda *given: hooks[-1].instrument(*given))
    results = executable.function("forward")(*values, rng)
    expected = yield from _held(walk(graphs.forward, [*values, rng]), watched)
    if graphs.backward is None:
        return
    hooks.append(Kernels(variant, "backward", graphs.backward))
    _, saved = handed_on(graphs, values, results)
    executable.function("backward")(*saved, rng, *tangents)
    _, wanted = handed_on(graphs, values, expected)
    given = [*wanted, rng, *tangents]
    yield from _held(walk(graphs.backward, given, "backward"), hooks[-1])


def _held(nodes: Any, watched: Kernels) -> Any:
    """Compare every value that a kernel wrote -> the reference's results."""
    while True:
        try:
            one = next(nodes)
        except StopIteration as end:
            return end.value
        several = isinstance(one.value, tuple | list)
        for place, value in enumerate(one.value if several else [one.value]):
            actual = watched.values.pop(f"{one.name}[{place}]" if several else one.name, None)
            if actual is None or actual.shape != value.shape or actual.dtype != value.dtype:
                continue  # a view, a part of a whole, or another target's own form
            if not torch.equal(bits(value), bits(actual)):
                yield _differs(one, place if several else None, value, actual)


def _differs(one: Observed, place: int | None, value: Tensor, actual: Tensor) -> NodeApart:
    return NodeApart(
        one.name,
        one.pass_,
        one.op,
        one.module,
        one.role,
        one.line,
        tuple(value.shape),
        place,
        apart(value, actual),
    )
