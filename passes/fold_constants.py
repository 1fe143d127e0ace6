"""Compute what depends on nothing: masks, positions and tables become constants of the graph."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from sqcompile import _torch_compat as compat
from sqcompile.errors import CaptureError
from sqcompile.passes.editing import Editor, arguments, copy_graph, finish, is_call, replace, value
from sqcompile.passes.printing import source_line

aten = torch.ops.aten


def fold_constants(module: GraphModule) -> GraphModule:
    """After this pass every value that depends on no input is a constant of the graph (get_attr),
    an aten.full where all its elements are equal, or an aten.scalar_tensor; what only takes
    another tensor's shape (zeros_like, new_zeros) is one too. Equal constants are one."""
    graph = copy_graph(module)
    constants = _Constants(graph)
    for node in list(graph.graph.nodes):
        constants.visit(node)
    constants.place()
    return finish(graph)


_FILLED: dict[Any, float | str] = {
    aten.zeros_like.default: 0,
    aten.ones_like.default: 1,
    aten.full_like.default: "fill_value",
    aten.new_zeros.default: 0,
    aten.new_ones.default: 1,
    aten.new_full.default: "fill_value",
}
"""Ops that read nothing of a tensor but its shape: what they fill with, or the argument with it."""
_LITERALS = (aten.scalar_tensor.default, aten.full.default)
_ASSERTIONS = (aten._assert_async.msg, aten._assert_async.default)
_TRANSPOSES = (aten.t.default, aten.transpose.int, aten.permute.default)
_PRODUCTS = (aten.mm.default, aten.bmm.default, aten.addmm.default)
"""These read operands through transposes: their backward must find the same one behind them."""


class _Constants:
    """The nodes with a known value, and the constants made of them so far."""

    def __init__(self, module: GraphModule) -> None:
        self.module, self.editor = module, Editor(module)
        self.known: dict[Node, Any] = {}
        self.made: dict[tuple[Any, ...], Node] = {}

    def visit(self, node: Node) -> None:
        """Learn a node's value if it depends on no input."""
        if node.op == "get_attr":
            held = getattr(self.module, str(node.target))
            if isinstance(held, Tensor):
                self.known[node] = held.detach()
        elif is_call(node, *_ASSERTIONS):
            self._asserted(node)
        elif node.op == "call_function":
            filled = _FILLED.get(node.target)
            if filled is not None:
                number = arguments(node)[filled] if isinstance(filled, str) else filled
                if isinstance(number, (bool, int, float)):
                    like = value(node)
                    self.known[node] = torch.full(like.shape, number, dtype=like.dtype)
            elif _pure(node) and all(source in self.known for source in node.all_input_nodes):
                self.known[node] = self._computed(node)

    def _asserted(self, node: Node) -> None:
        """An assertion about constants that holds goes; no kernel can tell of any other."""
        condition = self.known.get(node.all_input_nodes[0])
        if condition is None or not bool(condition):
            raise CaptureError(
                f"{source_line(node)}\n  asserts something about values "
                f"({', '.join(str(argument) for argument in node.args[1:])})\n"
                "  a compiled step cannot stop there: check its inputs before the call."
            )
        self.module.graph.erase_node(node)

    def _computed(self, node: Node) -> Any:
        assert callable(node.target)
        args = map_arg(node.args, self.known.__getitem__)
        return node.target(*args, **map_arg(node.kwargs, self.known.__getitem__))

    def place(self) -> None:
        """Put a constant for every known value that something else reads."""
        behind: set[Node] = set()
        for node in reversed(list(self.known)):
            readers = node.users.keys()
            if is_call(node, *_TRANSPOSES) and any(
                user in behind or is_call(user, *_PRODUCTS) for user in readers
            ):
                behind.add(node)
                del self.known[node]
        # No constant has a reader before the first node that stays.
        calls = (node for node in self.module.graph.nodes if node.op != "placeholder")
        start = next(node for node in calls if node not in self.known)
        for node, result in self.known.items():
            if not isinstance(result, Tensor) or is_call(node, *_LITERALS):
                continue
            if self._readers(node):
                replace(node, self._constant(result.contiguous(), node, start))

    def _readers(self, node: Node) -> list[Node]:
        return [user for user in node.users if user not in self.known]

    def _constant(self, result: Tensor, like: Node, start: Node) -> Node:
        key = (result.dtype, tuple(result.shape), result.numpy().tobytes())
        if key not in self.made:
            number = _repeated(result)
            with self.editor.before(start):
                if number is None:
                    self.made[key] = constant(self.editor, result, like)
                else:
                    call = (aten.full.default, list(result.shape), number)
                    self.made[key] = self.editor.call(*call, like=like)
        return self.made[key]


def constant(editor: Editor, result: Tensor, like: Node) -> Node:
    """A node that is `result`, inserted at the editor's place; equal tensors are held once."""
    module = editor.module
    names = dict(module.named_buffers())
    name = next((n for n, held in names.items() if _same(held, result)), None)
    if name is None:
        name = next(n for i in range(len(names) + 1) if (n := f"constant_{i}") not in names)
        module.register_buffer(name, result)
    node = module.graph.get_attr(name)
    with compat.fake_mode(module) as mode:
        node.meta["val"] = mode.from_tensor(result)
    if "stack_trace" in like.meta:
        node.meta["stack_trace"] = like.meta["stack_trace"]
    return node


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal in every bit."""
    alike = a.dtype == b.dtype and a.shape == b.shape
    return alike and a.numpy().tobytes() == b.numpy().tobytes()


def _pure(node: Node) -> bool:
    """Whether a call gives the same whenever it is made: no random numbers, no memory that is not
    set."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return True
    unset = ("empty", "empty_like", "new_empty", "empty_strided", "empty_permuted")
    return (
        torch.Tag.nondeterministic_seeded not in target.tags
        and target._schema.name.split("::")[1] not in unset
        and not target._schema.is_mutable
    )


def _repeated(result: Tensor) -> bool | int | float | None:
    """The number that a constant repeats and that aten.full gives back under its dtype."""
    if result.dtype not in (torch.float32, torch.int64, torch.bool) or result.dim() == 0:
        return None
    first = result.flatten()[0]
    plain = bool(torch.isfinite(first)) and bool((result == first).all())
    number: bool | int | float = first.item()
    return number if plain and (number != 0 or not bool(torch.signbit(result).any())) else None
