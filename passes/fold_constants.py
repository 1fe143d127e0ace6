"""Compute once, at compile time, what depends on no input: masks, positions, tables of them."""

from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from sqcompile import _torch_compat as compat
from sqcompile.passes.editing import (
    Editor,
    arguments,
    copy_graph,
    finish,
    is_call,
    replace,
    shape,
    value,
)

aten = torch.ops.aten
_OF_A_SHAPE = (
    aten.full_like.default,
    aten.ones_like.default,
    aten.zeros_like.default,
    aten.new_full.default,
    aten.new_ones.default,
    aten.new_zeros.default,
)
"""Ops that read no element of their argument."""
_CREATING = (
    *_OF_A_SHAPE,
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.eye.default,
    aten.full.default,
    aten.linspace.default,
    aten.ones.default,
    aten.scalar_tensor.default,
    aten.zeros.default,
)
_FILLS: dict[object, str | float] = {
    aten.full.default: "fill_value",
    aten.full_like.default: "fill_value",
    aten.new_full.default: "fill_value",
    aten.ones.default: 1.0,
    aten.ones_like.default: 1.0,
    aten.new_ones.default: 1.0,
    aten.zeros.default: 0.0,
    aten.zeros_like.default: 0.0,
    aten.new_zeros.default: 0.0,
}
"""What a tensor of one number is filled with: a number, or the argument that names it."""


def fold_constants(module: GraphModule) -> GraphModule:
    """After this pass what depends on no input is an attribute of the graph, computed by torch;
    a float32 tensor of one number is aten.full, which needs no memory; aten.scalar_tensor stays."""
    graph = copy_graph(module)
    editor = Editor(graph)
    constant: set[Node] = set()
    for node in graph.graph.nodes:
        if node.op == "get_attr" or _is_constant(node, constant):
            constant.add(node)
    known: dict[Node, Any] = {}
    for node in list(graph.graph.nodes):
        if node not in constant or node.op == "get_attr" or constant.issuperset(node.users):
            continue
        if not isinstance(node.meta["val"], torch.Tensor):
            continue
        if not is_call(node, aten.scalar_tensor.default):
            _fold(editor, node, known)
    return finish(graph)


def _is_constant(node: Node, constant: set[Node]) -> bool:
    if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
        return False
    if is_call(node, *_CREATING):
        return True
    sources = node.all_input_nodes
    return bool(sources) and constant.issuperset(sources) and not _draws(node)


def _draws(node: Node) -> bool:
    """Whether an op is random."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and (
        torch.Tag.nondeterministic_seeded in target.tags
    )


def _fold(editor: Editor, node: Node, known: dict[Node, Any]) -> None:
    filled = _FILLS.get(node.target)
    with editor.before(node):
        if filled is not None and value(node).dtype == torch.float32:
            number = arguments(node)[filled] if isinstance(filled, str) else filled
            new = editor.call(aten.full.default, shape(node), float(number), like=node)
        else:
            new = _attribute(editor, node, _computed(node, known))
    replace(node, new)


def _computed(node: Node, known: dict[Node, Any]) -> torch.Tensor:
    if node not in known:
        if node.op == "get_attr":
            known[node] = getattr(node.graph.owning_module, str(node.target))
        else:
            blank = is_call(node, *_OF_A_SHAPE)

            def given(source: Node) -> torch.Tensor:
                if not blank:
                    return _computed(source, known)
                return torch.empty(shape(source), dtype=value(source).dtype)

            args, kwargs = map_arg(node.args, given), map_arg(node.kwargs, given)
            known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return known[node]


def _attribute(editor: Editor, like: Node, content: torch.Tensor) -> Node:
    """A node that is `content`, kept in the graph's module."""
    module, index = editor.module, 0
    while hasattr(module, f"constant_{index}"):
        index += 1
    module.register_buffer(f"constant_{index}", content.detach().contiguous())
    node = module.graph.get_attr(f"constant_{index}")
    for key in ("stack_trace", "nn_module_stack"):
        if key in like.meta:
            node.meta[key] = like.meta[key]
    with compat.fake_mode(module) as mode:
        node.meta["val"] = mode.from_tensor(content)
    return node
