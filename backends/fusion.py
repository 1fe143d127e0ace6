"""Which elementwise nodes of a graph become one kernel, for any target.

Nodes join along their edges when they have the same number of elements, when a common set of axes
serves all of them, and when no path leaves the group and comes back. Views between them do not
count. A group may also end in ops that reduce or pack one of its values. A target says which ops
may join or end (`KernelTable.joins`, `ends`) and generates the kernel from the group's spec.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import prod
from operator import getitem

from torch import fx

from sqcompile.backends.kernels import (
    FUSED,
    KernelSpec,
    KernelTable,
    TensorSpec,
    spec_of,
    tensor_spec,
)
from sqcompile.backends.reads import Reads, reads_views
from sqcompile.backends.views import is_view
from sqcompile.walks import common_axes

MOST_NODES = 16
"""Members of a group: its loop stays small enough to compile fast and to keep its values in
registers."""
MOST_TENSORS = 16
"""Tensors that a group reads and writes: more streams than that slow a core's prefetchers."""


@dataclass(frozen=True)
class Member:
    """An op of a group; `operands` are the numbers of its tensor arguments: the group's inputs
    come first, then its members' results."""

    spec: KernelSpec
    operands: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Nodes that one kernel computes, in graph order: its spec, the nodes whose values it reads,
    the members whose values others read."""

    nodes: tuple[fx.Node, ...]
    spec: KernelSpec
    inputs: tuple[fx.Node, ...]
    results: tuple[fx.Node, ...]


Step = fx.Node | Group


class Plan:
    """The steps of a graph, fused where possible, in an order in which everything is there when it
    is read: the order of the graph where nothing moves. Views and items of tuples are no steps, nor
    are layout changes that all their readers read through."""

    def __init__(self, graph: fx.Graph, kernels: KernelTable) -> None:
        self.specs: dict[fx.Node, tuple[KernelSpec, list[fx.Node]]] = {}
        self.memory: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            if node.op == "call_function" and node.target is not getitem:
                self.specs[node] = spec_of(node)
        reads = Reads(self.specs, kernels)
        self.specs = {node: reads.call(node) for node in self.specs}
        for node in graph.nodes:
            self.memory[node] = node
            if node in reads.through:
                self.memory[node] = self.memory[reads.root[node]]
            elif node in self.specs and is_view(self.specs[node][0]):
                self.memory[node] = self.memory[self.specs[node][1][0]]
        computed = [node for node in self.specs if self.memory[node] is node]
        specs = {
            node: self.specs[node][0] for node in computed if not reads_views(self.specs[node][0])
        }
        self.endings = {node for node, spec in specs.items() if kernels.ending(spec)}
        self.one_shape = {node for node, spec in specs.items() if kernels.one_shape(spec)}
        fusible = {node for node, spec in specs.items() if kernels.fusible(spec)}
        clusters = _Clusters(self, computed, fusible | self.endings)
        for node in computed:
            for producer in dict.fromkeys(self.memory[one] for one in self.specs[node][1]):
                if producer in clusters.of:
                    clusters.join(producer, node)
        self.steps = [self._step(nodes) for nodes in clusters.in_order()]

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The axes that a member loops over: those of what it reads when it is an ending."""
        spec = self.specs[node][0]
        walked = next(spec.tensors())[1] if node in self.endings else spec.outputs[0]
        return walked.shape

    def inputs(self, nodes: Sequence[fx.Node]) -> list[fx.Node]:
        """What nodes read from outside, views looked through."""
        inside = set(nodes)
        read = (self.memory[one] for node in nodes for one in self.specs[node][1])
        return [one for one in dict.fromkeys(read) if one not in inside]

    def results(self, nodes: Sequence[fx.Node]) -> list[fx.Node]:
        """The nodes whose values others than `nodes` read."""
        inside = set(nodes)

        def read_outside(node: fx.Node, owner: fx.Node) -> bool:
            for user in node.users:
                if user not in inside and (
                    self.memory[user] is not owner or read_outside(user, owner)
                ):
                    return True
            return False

        return [node for node in nodes if read_outside(node, node)]

    def _step(self, nodes: Sequence[fx.Node]) -> Step:
        if len(nodes) == 1:
            return nodes[0]
        inputs, results = self.inputs(nodes), self.results(nodes) or list(nodes[-1:])
        numbers = {node: index for index, node in enumerate([*inputs, *nodes])}
        members = []
        for node in nodes:
            spec, operands = self.specs[node]
            members.append(Member(spec, tuple(numbers[self.memory[one]] for one in operands)))
        spec = KernelSpec(
            FUSED + "+".join(member.spec.short_name for member in members),
            tuple((f"in_{index}", _spec(node)) for index, node in enumerate(inputs)),
            (("members", tuple(members)), ("results", tuple(numbers[node] for node in results))),
            tuple(_spec(node) for node in results),
        )
        return Group(tuple(nodes), spec, tuple(inputs), tuple(results))


@dataclass
class _Cluster:
    """Nodes that run as one; `level` is above that of everything it reads."""

    nodes: list[fx.Node]
    fusible: bool
    level: int
    before: "set[_Cluster]" = field(default_factory=set)
    after: "set[_Cluster]" = field(default_factory=set)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class _Clusters:
    """The graph with its groups contracted, free of cycles at any time."""

    def __init__(self, plan: Plan, nodes: Sequence[fx.Node], fusible: Collection[fx.Node]) -> None:
        self.plan = plan
        self.place = {node: index for index, node in enumerate(nodes)}
        self.of: dict[fx.Node, _Cluster] = {}
        for node in nodes:
            before = {self.of[one] for one in map(self._computes, node.all_input_nodes) if one}
            level = 1 + max((cluster.level for cluster in before), default=0)
            cluster = _Cluster([node], node in fusible, level, before)
            for one in before:
                one.after.add(cluster)
            self.of[node] = cluster

    def _computes(self, node: fx.Node) -> fx.Node | None:
        """The node that computes what stands in a value's memory; None for a graph's input."""
        found = self.plan.memory[node]
        while found.target is getitem:
            found = self.plan.memory[found.all_input_nodes[0]]
        return found if found.op == "call_function" else None

    def join(self, first: fx.Node, second: fx.Node) -> None:
        """Make one cluster of those of two nodes if that is legal."""
        a, b = self.of[first], self.of[second]
        if a is b or not self._fit(a, b) or self._around(a, b) or self._around(b, a):
            return
        a.nodes += b.nodes
        for node in b.nodes:
            self.of[node] = a
        for one in b.before:
            one.after.discard(b)
            one.after.add(a)
        for one in b.after:
            one.before.discard(b)
            one.before.add(a)
        a.before = (a.before | b.before) - {a, b}
        a.after = (a.after | b.after) - {a, b}
        self._raise(a, max(a.level, b.level))

    def in_order(self) -> Iterator[list[fx.Node]]:
        """The clusters, each after what it reads, in graph order of their last nodes else."""
        clusters = list(dict.fromkeys(self.of.values()))
        left = {cluster: len(cluster.before) for cluster in clusters}
        ready: list[tuple[int, int]] = []
        by_id = {id(cluster): cluster for cluster in clusters}

        def push(cluster: _Cluster) -> None:
            cluster.nodes.sort(key=self.place.__getitem__)
            heappush(ready, (self.place[cluster.nodes[-1]], id(cluster)))

        for cluster in clusters:
            if not left[cluster]:
                push(cluster)
        while ready:
            cluster = by_id[heappop(ready)[1]]
            yield cluster.nodes
            for one in cluster.after:
                left[one] -= 1
                if not left[one]:
                    push(one)

    def _fit(self, a: _Cluster, b: _Cluster) -> bool:
        if not (a.fusible and b.fusible) or len(a.nodes) + len(b.nodes) > MOST_NODES:
            return False
        shapes = {self.plan.shape(node) for node in (*a.nodes, *b.nodes)}
        axes = common_axes(list(shapes)) if len({prod(shape) for shape in shapes}) == 1 else None
        if axes is None:
            return False
        nodes = sorted((*a.nodes, *b.nodes), key=self.place.__getitem__)
        if not self.plan.one_shape.isdisjoint(nodes):
            read = {self.plan.memory[one] for node in nodes for one in self.plan.specs[node][1]}
            rows = {self.plan.shape(node)[-1:] for node in nodes if node in self.plan.one_shape}
            if len(shapes) > 1 and rows != {(axes[-1],)} or read & self.plan.endings & set(nodes):
                return False
        return len(self.plan.inputs(nodes)) + len(self.plan.results(nodes)) <= MOST_TENSORS

    def _around(self, a: _Cluster, b: _Cluster) -> bool:
        """Whether a path from a to b passes through another cluster."""
        left, seen = [one for one in b.before if one is not a], set()
        while left:
            cluster = left.pop()
            if cluster in seen or cluster.level <= a.level:
                continue
            seen.add(cluster)
            if a in cluster.before:
                return True
            left.extend(cluster.before)
        return False

    def _raise(self, cluster: _Cluster, level: int) -> None:
        left = [(cluster, level)]
        while left:
            one, least = left.pop()
            one.level = max(one.level, least)
            left.extend((next_, one.level + 1) for next_ in one.after if next_.level <= one.level)


def _spec(node: fx.Node) -> TensorSpec:
    return tensor_spec(node.meta["val"])
