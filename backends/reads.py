"""Which layout changes of a graph no kernel makes, because all that read them read through them.

A slice, select or permute is a copy where one of its readers wants its elements in a row. Kernels
that name an operand in `views` read it where it lies instead, along a `Walk`: a vector at a time
where a few elements stand in a row, so the quantisers of an attention's heads read the projection
itself. A copy reads along any walk: of a chain of layout changes only the last one is made.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import fx

from sqcompile.backends.kernels import (
    KernelSpec,
    KernelTable,
    Operand,
    TensorSpec,
    ViewSpec,
    tensor_spec,
)
from sqcompile.backends.views import is_view, lays, walked
from sqcompile.walks import Walk

Call = tuple[KernelSpec, list[fx.Node]]
"""What a node asks of a kernel, and the nodes of its tensor arguments."""


class Reads:
    """The chains of slices, selects, permutes and views in a graph: `root` and `walk` of a node are
    the tensor that its elements lie in and how."""

    def __init__(self, calls: Mapping[fx.Node, Call], kernels: KernelTable) -> None:
        self.calls, self.kernels = calls, kernels
        self.root: dict[fx.Node, fx.Node] = {}
        self.walk: dict[fx.Node, Walk] = {}
        for node, (spec, nodes) in calls.items():
            if len(nodes) == 1:
                source = nodes[0]
                before = self.walk.get(source) or Walk.whole(_spec(source).shape)
                after = walked(spec, before)
                if after is not None:
                    self.root[node], self.walk[node] = self.root.get(source, source), after
        self.through: set[fx.Node] = set()
        for node in reversed(list(self.walk)):
            if node.users and all(self._through(node, user) for user in node.users):
                self.through.add(node)

    def _through(self, node: fx.Node, user: fx.Node) -> bool:
        """Whether a user of a node reads its root, or has no kernel either."""
        if user in self.through:
            return True
        if user not in self.calls or (lays(self.calls[user][0]) and not self._copies(user)):
            return False
        return all(
            self._takes(user, name, one) for name, one in _operands(self.calls[user]) if one is node
        )

    def _copies(self, user: fx.Node) -> bool:
        """Whether a layout change is a copy, which can be one from the root of its argument."""
        return user in self.walk and not is_view(self.calls[user][0])

    def _takes(self, user: fx.Node, name: str, one: fx.Node) -> bool:
        op = self.calls[user][0].op
        return op in self.kernels and self.kernels[op].reads(name, self.walk[one])

    def call(self, node: fx.Node) -> Call:
        """What a node asks of a kernel, with the tensors that it reads where they lie."""
        spec, nodes = self.calls[node]
        if node in self.through or self.through.isdisjoint(nodes):
            return spec, nodes
        moved = {one for one in nodes if one in self.through and not self._as_it_is(one)}
        views = iter([self._view(one) if one in moved else _spec(one) for one in nodes])
        inputs: list[tuple[str, Operand]] = []
        for name, operand in spec.inputs:
            if isinstance(operand, tuple):
                inputs.append((name, tuple(next(views) for _ in operand)))
            else:
                inputs.append((name, None if operand is None else next(views)))
        found = [self.root[one] if one in moved else one for one in nodes]
        return replace(spec, inputs=tuple(inputs)), found

    def _as_it_is(self, node: fx.Node) -> bool:
        """Whether a node is its root under another shape."""
        return self.walk[node].in_order and _spec(node).size == _spec(self.root[node]).size

    def _view(self, node: fx.Node) -> TensorSpec:
        one = _spec(node)
        return ViewSpec(one.shape, one.dtype, _spec(self.root[node]), self.walk[node])


def _spec(node: fx.Node) -> TensorSpec:
    return tensor_spec(node.meta["val"])


def _operands(call: Call) -> Iterator[tuple[str, fx.Node]]:
    """The tensor arguments with their names in the schema."""
    spec, nodes = call
    left = iter(nodes)
    for name, operand in spec.inputs:
        count = len(operand) if isinstance(operand, tuple) else int(operand is not None)
        for _ in range(count):
            yield name, next(left)


def reads_views(spec: KernelSpec) -> bool:
    """Whether a kernel reads a tensor where it lies."""
    return any(isinstance(one, ViewSpec) for _, one in spec.tensors())
