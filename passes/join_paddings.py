"""Sums of tensors that are zero wherever another is not: concatenations."""

from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from sqcompile.passes.editing import (
    Editor,
    arguments,
    calls,
    copy_graph,
    finish,
    is_call,
    replace,
    shape,
    value,
)

aten = torch.ops.aten


@dataclass(frozen=True)
class _Part:
    """A tensor with zeros around it along one axis, where it is start..end-1."""

    x: Node
    axis: int
    start: int
    end: int


def join_paddings(module: GraphModule) -> GraphModule:
    """After this pass a sum of zero paddings along one axis, no two of which have anything in the
    same place, is a concatenation, with zeros where none has. That is what the gradients of a
    split's, a select's or an unbind's parts come to. Values do not change but for -0.0, to which
    no zero is added any more."""
    graph = copy_graph(module)
    editor = Editor(graph)
    for node in reversed(calls(graph, aten.add.Tensor)):
        if node.users and value(node).dtype == torch.float32:
            _join(editor, node)
    return finish(graph)


def _join(editor: Editor, node: Node) -> None:
    terms = _terms(node, node)
    parts = [_part(term, node) for term in terms]
    found = sorted((part for part in parts if part), key=lambda part: part.start)
    if len(found) < len(terms) or len({part.axis for part in found}) > 1:
        return
    if any(a.end > b.start for a, b in zip(found, found[1:], strict=False)):
        return
    axis, size = found[0].axis, shape(node)[found[0].axis]
    with editor.before(node):
        pieces, end = [], 0
        for part in found:
            if part.start > end:
                pieces.append(_zeros(editor, node, axis, part.start - end))
            pieces.append(part.x)
            end = part.end
        if end < size:
            pieces.append(_zeros(editor, node, axis, size - end))
        joined = editor.call(aten.cat.default, pieces, axis, like=node)
    replace(node, joined)


def _terms(node: object, root: Node) -> list[object]:
    """What a sum adds, sums that nothing else reads taken apart."""
    if is_call(node, aten.add.Tensor):
        assert isinstance(node, Node)
        given = arguments(node)
        if given["alpha"] == 1 and (node is root or len(node.users) == 1):
            return [*_terms(given["self"], root), *_terms(given["other"], root)]
    return [node]


def _part(term: object, total: Node) -> _Part | None:
    if not is_call(term, aten.constant_pad_nd.default):
        return None
    assert isinstance(term, Node)
    given = arguments(term)
    widths, rank = given["pad"], len(shape(term))
    axes = [rank - 1 - i // 2 for i, width in enumerate(widths) if width]
    if given["value"] or shape(term) != shape(total) or len(set(axes)) != 1 or min(widths) < 0:
        return None
    axis = axes[0]
    start = widths[2 * (rank - 1 - axis)]
    return _Part(given["self"], axis, start, start + shape(given["self"])[axis])


def _zeros(editor: Editor, node: Node, axis: int, count: int) -> Node:
    sizes = [count if i == axis else n for i, n in enumerate(shape(node))]
    return editor.call(aten.full.default, sizes, 0.0, like=node)
