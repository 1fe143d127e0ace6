"""What every pass needs to read and change a graph: copies, arguments, new nodes, taint."""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from sqcompile import _torch_compat as compat
from sqcompile.ops.table import Op, find

KEPT_META = (
    "stack_trace",
    "seq_nr",
    "nn_module_stack",
    "fwd_nn_module_stack",
    "role",
    "module",
    "origin",
)
"""What a new node takes over from the node in whose place it stands."""

SAME_ORDER = (
    torch.ops.aten.view.default,
    torch.ops.aten.reshape.default,
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten.unsqueeze.default,
    torch.ops.aten.squeeze.default,
    torch.ops.aten.squeeze.dim,
    torch.ops.aten.squeeze.dims,
    torch.ops.aten.clone.default,
)
"""Ops whose result has the elements of their argument in the same order."""
REORDERED = (
    torch.ops.aten.permute.default,
    torch.ops.aten.transpose.int,
    torch.ops.aten.t.default,
)
"""Ops whose result has the axes of their argument in another order."""


def copy_graph(module: GraphModule) -> GraphModule:
    """A graph of its own with the same nodes, metadata included; tensors are not copied. Its code
    is generated when it is first run."""
    graph = Graph()
    values: dict[Node, Node] = {}
    result = graph.graph_copy(module.graph, values)
    output = graph.output(result)
    output.meta.update(module.graph.output_node().meta)
    return compat.lazy_graph_module(module, graph)


def finish(module: GraphModule) -> GraphModule:
    """Drop dead nodes; what a pass returns."""
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return module


def target_of(op: object) -> object:
    """The fx target of an op-table entry or of an ATen overload."""
    return op.target if isinstance(op, Op) else op


def calls(module: GraphModule, *ops: object) -> list[Node]:
    """Every call of one of `ops` (op-table entries or overloads), in order."""
    targets = {target_of(op) for op in ops}
    return [n for n in module.graph.nodes if n.op == "call_function" and n.target in targets]


def is_call(node: object, *ops: object) -> bool:
    """Whether a value is a call of one of `ops`."""
    return (
        isinstance(node, Node)
        and node.op == "call_function"
        and node.target in {target_of(op) for op in ops}
    )


def arguments(node: Node) -> dict[str, Any]:
    """All arguments of an operator call by schema name, defaults filled in."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    result: dict[str, Any] = {}
    for position, argument in enumerate(target._schema.arguments):
        if position < len(node.args):
            result[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            result[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            result[argument.name] = argument.default_value
    return result


def in_order(op: object, values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Arguments by name as the positional ones of `op`; the last ones that have their default are
    left out."""
    target = target_of(op)
    assert isinstance(target, torch._ops.OpOverload)
    schema = list(target._schema.arguments)
    while schema and schema[-1].has_default_value() and _is_default(schema[-1], values):
        schema.pop()
    return tuple(values[argument.name] for argument in schema)


def set_arguments(node: Node, values: Mapping[str, Any]) -> None:
    """Replace all arguments of an operator call, by name."""
    node.args = in_order(node.target, values)
    node.kwargs = {}


def _is_default(argument: Any, values: Mapping[str, Any]) -> bool:
    given = values.get(argument.name, argument.default_value)
    return not isinstance(given, Node) and given == argument.default_value


def value(node: Node) -> torch.Tensor:
    """The fake tensor that a single-output node yields."""
    result = node.meta["val"]
    assert isinstance(result, torch.Tensor), node.format_node()
    return result


def shape(node: Node) -> list[int]:
    """Shape of a node's tensor."""
    return list(value(node).shape)


def update_value(node: Node) -> None:
    """Recompute a node's metadata value after its target or arguments changed."""
    module = node.graph.owning_module
    assert module is not None and callable(node.target)
    entry = find(node.target)
    with compat.fake_mode(module):
        if entry is not None and entry.meta_function is not None:
            given = map_arg(tuple(arguments(node).values()), lambda n: n.meta["val"])
            made = tuple(torch.empty(sizes, dtype=dtype) for sizes, dtype in entry.outputs(*given))
            node.meta["val"] = made if entry.several else made[0]
            return
        args = map_arg(node.args, lambda n: n.meta["val"])
        kwargs = map_arg(node.kwargs, lambda n: n.meta["val"])
        node.meta["val"] = node.target(*args, **kwargs)


@dataclass
class Editor:
    """Inserts nodes that carry a shape and the origin of the node they stand for."""

    module: GraphModule

    @contextmanager
    def before(self, node: Node) -> Iterator[None]:
        """Insert before `node` in this block."""
        with self.module.graph.inserting_before(node):
            yield

    @contextmanager
    def after(self, node: Node) -> Iterator[None]:
        """Insert after `node`, past the placeholders when it is one."""
        place = node.next
        while place.op == "placeholder":
            place = place.next
        with self.module.graph.inserting_before(place):
            yield

    def call(self, op: object, *args: Any, like: Node, name: str = "", **meta: Any) -> Node:
        """A call of `op`; `like` gives source line and module, `meta` overrides or adds."""
        target = target_of(op)
        assert callable(target)
        node = self.module.graph.call_function(target, args, name=name or _plain_name(op))
        node.meta.update({key: like.meta[key] for key in KEPT_META if key in like.meta})
        node.meta.update(meta)
        update_value(node)
        return node

    def item(self, node: Node, index: int, **meta: Any) -> Node:
        """Output `index` of a call with several outputs."""
        name = meta.pop("name", f"{node.name}_{index}")
        return self.call(operator.getitem, node, index, like=node, name=name, **meta)


def _plain_name(op: object) -> str:
    """The op's name without namespace and overload: what a reader would call its result."""
    target = target_of(op)
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[1]
    return str(getattr(target, "__name__", target))


def replace(old: Node, new: Node) -> None:
    """Let `new` stand wherever `old` stood, and remove `old`."""
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)


def move_before(place: Node, node: Node) -> None:
    """Let `node` and all it is computed from stand before `place`, on which it does not depend."""
    if node.op == "placeholder" or node < place:
        return
    place.prepend(node)
    for source in node.all_input_nodes:
        move_before(node, source)


def tainted(module: GraphModule) -> set[Node]:
    """The nodes of backward: all that depends on a gradient coming in, and what a pass put there
    (meta["backward"])."""
    found: set[Node] = set()
    for node in module.graph.nodes:
        port = node.meta.get("port")
        comes_in = node.op == "placeholder" and port is not None and port.kind == "tangent"
        placed = comes_in or node.meta.get("backward", False)
        if node.op != "output" and (placed or any(n in found for n in node.all_input_nodes)):
            found.add(node)
    return found


def parameter(node: Node) -> str | None:
    """The dotted name of the parameter that a node is, or None."""
    port = node.meta.get("port")
    return port.name if node.op == "placeholder" and port and port.kind == "param" else None


def rewrite_each(
    module: GraphModule, table: Mapping[Any, Callable[[Editor, Node], None]]
) -> GraphModule:
    """A copy of the graph in which every call with an entry in `table` went through it."""
    rules = {target_of(op): rule for op, rule in table.items()}
    result = copy_graph(module)
    editor = Editor(result)
    nodes: Iterable[Node] = list(result.graph.nodes)
    for node in nodes:
        if not node._erased and node.op == "call_function" and node.target in rules:
            with editor.before(node):
                rules[node.target](editor, node)
    return finish(result)
