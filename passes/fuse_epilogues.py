"""Let a product write float32 itself: scales, bias and ReLU in its epilogue."""

import torch
from torch.fx import GraphModule, Node

from sqcompile.ops import conv, product
from sqcompile.passes.editing import Editor, calls, copy_graph, finish, is_call, replace, target_of

aten = torch.ops.aten

FUSED = {
    target_of(product.shift_matmul): product.shift_matmul_dequantize,
    target_of(conv.conv_fprop): conv.conv_fprop_dequantize,
    target_of(conv.conv_dgrad): conv.conv_dgrad_dequantize,
    target_of(conv.conv_wgrad): conv.conv_wgrad_dequantize,
}


def fuse_epilogues(module: GraphModule) -> GraphModule:
    """After this pass a product whose accumulators only one dequantise reads is one op with it,
    and with the ReLU behind it when that is the only reader. Values do not change."""
    graph = copy_graph(module)
    editor = Editor(graph)
    for node in calls(graph, product.dequantize):
        acc, scales, bias = node.args
        assert isinstance(acc, Node)
        if acc.target not in FUSED or len(acc.users) > 1:
            continue
        relu = _only_relu(node)
        last = relu or node
        with editor.before(last):
            fused = editor.call(
                FUSED[acc.target],
                *acc.args,
                scales,
                bias,
                relu is not None,
                like=acc,
                sq=acc.meta["sq"],
                name=acc.meta["sq"].role,
            )
        replace(last, fused)
        if relu is not None:
            graph.graph.erase_node(node)
        graph.graph.erase_node(acc)
    return finish(graph)


def _only_relu(node: Node) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and is_call(users[0], aten.relu.default) else None
