"""Both products of a gradient share its quantiser: one op measures, draws and rounds for two."""

from torch.fx import GraphModule, Node

from sqcompile.ops.quantize import shift_quantize
from sqcompile.ops.quantize_pair import PER_QUANTIZER, shift_quantize_pair
from sqcompile.passes.editing import (
    Editor,
    arguments,
    calls,
    copy_graph,
    finish,
    move_before,
    shape,
)


def pair_quantizers(module: GraphModule) -> GraphModule:
    """After this pass a gradient that sq.shift_quantize read twice with one stream, for dgrad and
    for wgrad of the same product, is quantised by sq.shift_quantize_pair. Values do not change."""
    graph = copy_graph(module)
    editor = Editor(graph)
    found: dict[object, list[Node]] = {}
    for node in calls(graph, shift_quantize):
        given = arguments(node)
        key = tuple(given[name] for name in ("x", "rng", "bits", "groups", "stream"))
        found.setdefault(key, []).append(node)
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    for nodes in found.values():
        pair = _roles(nodes)
        if pair is not None:
            _fuse(editor, *pair, first=min(nodes, key=order.__getitem__))
    return finish(graph)


def _roles(nodes: list[Node]) -> tuple[Node, Node] | None:
    """(dgrad, wgrad) when these are the two quantisers of a gradient."""
    if len(nodes) != 2:
        return None
    for dgrad, wgrad in (nodes, nodes[::-1]):
        given = arguments(dgrad)
        channel = len(shape(given["x"])) - 1
        outer, grouped = bool(given["outer_axes"]), given["groups"] > 1
        wanted = (
            (dgrad, [0], [channel]),
            (wgrad, [channel], list(range(channel))),
        )
        if arguments(wgrad)["factor"] is None and all(
            list(arguments(node)["outer_axes"]) == (free if outer else [])
            and list(arguments(node)["inner_axes"]) == (inner if grouped else [])
            for node, free, inner in wanted
        ):
            return dgrad, wgrad
    return None


def _fuse(editor: Editor, dgrad: Node, wgrad: Node, first: Node) -> None:
    given = arguments(dgrad)
    if given["factor"] is not None:
        move_before(first, given["factor"])
    with editor.before(first):
        pair = editor.call(
            shift_quantize_pair,
            given["x"],
            given["factor"],
            given["rng"],
            bool(given["outer_axes"]),
            given["bits"],
            given["groups"],
            given["stream"],
            like=dgrad,
        )
    for index, node in enumerate((dgrad, wgrad)):
        for item in list(node.users):
            item.args = (pair, index * PER_QUANTIZER + item.args[1])  # type: ignore[operator]
