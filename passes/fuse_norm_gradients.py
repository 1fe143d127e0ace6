"""Let a batch norm quantise its own gradient, so that the float gradient never exists."""

from torch.fx import GraphModule, Node

from sqcompile.ops.norm import l1_batch_norm_backward
from sqcompile.ops.norm_fused import l1_batch_norm_packed_backward
from sqcompile.ops.norm_gradient import l1_batch_norm_backward_quantize
from sqcompile.ops.quantize_pair import PER_QUANTIZER, shift_quantize_pair
from sqcompile.passes.editing import (
    Editor,
    arguments,
    calls,
    copy_graph,
    finish,
    is_call,
    move_before,
)


def fuse_norm_gradients(module: GraphModule) -> GraphModule:
    """After this pass (it needs what pair_quantizers and fuse_norms leave) a batch norm's input
    gradient that only sq.shift_quantize_pair reads is quantised where it is computed. Values do
    not change."""
    graph = copy_graph(module)
    editor = Editor(graph)
    for node in calls(graph, shift_quantize_pair):
        norm = _norm(node)
        if norm is not None:
            _fuse(editor, norm, node)
    return finish(graph)


def _norm(pair: Node) -> Node | None:
    """The norm gradient whose dx this quantiser alone reads."""
    dx = arguments(pair)["x"]
    if dx.args[1:] != (0,) or set(dx.users) != {pair}:
        return None
    norm: Node = dx.args[0]
    return norm if is_call(norm, l1_batch_norm_backward, l1_batch_norm_packed_backward) else None


def _fuse(editor: Editor, norm: Node, pair: Node) -> None:
    given = arguments(pair)
    if given["factor"] is not None:
        move_before(norm, given["factor"])
    with editor.before(norm):
        fused = editor.call(
            l1_batch_norm_backward_quantize,
            *arguments(norm).values(),
            *(given[name] for name in ("factor", "rng", "outer", "bits", "groups", "stream")),
            like=norm,
        )
    for item in list(pair.users):
        item.args = (fused, item.args[1])
    for item in list(norm.users):
        if item.args[1] != 0:
            item.args = (fused, 2 * PER_QUANTIZER + item.args[1] - 1)  # type: ignore[operator]
