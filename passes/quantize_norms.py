"""Replace every float L1 norm by its integer form, forward and backward."""

from math import prod

import torch
from torch.fx import GraphModule, Node

from sqcompile import _torch_compat as compat
from sqcompile.ops import norm, norm_float
from sqcompile.ops.philox import stream_id
from sqcompile.ops.product import dequantize
from sqcompile.ops.quantize import absmax, limits, quant_scale, quantize, quantize_stochastic
from sqcompile.passes.bound_accumulators import largest_accumulator
from sqcompile.passes.editing import (
    Editor,
    arguments,
    calls,
    copy_graph,
    finish,
    is_call,
    replace,
    shape,
)
from sqcompile.recipe import Recipe

aten = torch.ops.aten


def quantize_norms(module: GraphModule, recipe: Recipe) -> GraphModule:
    """After this pass every norm reads integers and saves integers. A batch norm behind a product
    reads its int32 accumulators; any other norm input is quantised first, per channel (batch
    norm) or per row (layer norm). The gradient is quantised stochastically, per channel, or per
    row for dx and per feature for dgamma and dbeta."""
    graph = copy_graph(module)
    quantizer = _Norms(Editor(graph), recipe, graph)
    for node in calls(graph, norm_float.batch_norm):
        with quantizer.editor.before(node):
            quantizer.batch_norm(node)
    for node in calls(graph, norm_float.layer_norm):
        with quantizer.editor.before(node):
            quantizer.layer_norm(node)
    for node in calls(graph, norm_float.batch_norm_backward):
        with quantizer.editor.before(node):
            quantizer.batch_norm_backward(node)
    for node in calls(graph, norm_float.layer_norm_backward):
        with quantizer.editor.before(node):
            quantizer.layer_norm_backward(node)
    return finish(graph)


class _Norms:
    """The four rewrites, with what they share."""

    def __init__(self, editor: Editor, recipe: Recipe, graph: GraphModule) -> None:
        self.editor = editor
        self.recipe = recipe
        self.rng = next(n for n in graph.graph.find_nodes(op="placeholder") if n.name == "rng")
        self.occurrences: dict[str, int] = {}

    def batch_norm(self, node: Node) -> None:
        given = arguments(node)
        x, channels = given["x"], shape(given["x"])[-1]
        path = compat.module_path(node)
        node.meta["module"] = path
        read = self._accumulators(x) if self.recipe.norm_reads_accumulators else None
        if read is not None:
            integers, scale, bias = read
            largest = largest_accumulator(integers)
        else:
            integers, scale = self._nearest(x, self._statistics_axes(x), node)
            bias, largest = None, limits(self.recipe.norm_input_bits, True)[1]
        count = prod(shape(x)) // channels
        new = self.editor.call(
            norm.l1_batch_norm,
            integers,
            self._channels(scale, channels, node),
            None if bias is None else self._channels(bias, channels, node),
            given["gamma"],
            given["beta"],
            given["eps"],
            norm.fraction_bits(count, largest),
            self.recipe.norm_saved_bits,
            self.recipe.norm_saved_step,
            like=node,
        )
        self._replace_outputs(node, new)

    def layer_norm(self, node: Node) -> None:
        given = arguments(node)
        x = given["x"]
        node.meta["module"] = compat.module_path(node)
        integers, scale = self._nearest(x, [1], node)
        new = self.editor.call(
            norm.l1_layer_norm,
            integers,
            scale,
            given["gamma"],
            given["beta"],
            given["eps"],
            norm.fraction_bits(shape(x)[1], limits(self.recipe.norm_input_bits, True)[1]),
            self.recipe.norm_saved_bits,
            self.recipe.norm_saved_step,
            like=node,
        )
        self._replace_outputs(node, new)

    def batch_norm_backward(self, node: Node) -> None:
        given = arguments(node)
        g, channels = given["g"], shape(given["g"])[-1]
        node.meta["module"] = compat.module_path(node)
        q, scale = self._stochastic(g, self._statistics_axes(g), "g", node)
        new = self.editor.call(
            norm.l1_batch_norm_backward,
            q,
            self._channels(scale, channels, node),
            given["xhat"],
            given["coefficient"],
            given["gamma"],
            self.recipe.norm_saved_step,
            like=node,
        )
        self._replace_outputs(node, new)

    def layer_norm_backward(self, node: Node) -> None:
        given = arguments(node)
        g, gamma, xhat = given["g"], given["gamma"], given["xhat"]
        node.meta["module"] = compat.module_path(node)
        users = {item.args[1]: item for item in node.users}
        if 0 in users:
            h = g if gamma is None else self.editor.call(aten.mul.Tensor, g, gamma, like=node)
            q, scale = self._stochastic(h, [1], "h", node)
            dx = self.editor.call(
                norm.l1_layer_norm_backward,
                q,
                scale,
                xhat,
                given["coefficient"],
                self.recipe.norm_saved_step,
                like=node,
            )
            replace(users[0], dx)
        if 1 in users or 2 in users:
            q, scale = self._stochastic(g, [0], "g", node)
            both = self.editor.call(
                norm.l1_layer_norm_affine_backward,
                q,
                scale,
                xhat,
                self.recipe.norm_saved_step,
                like=node,
            )
            for index in (1, 2):
                if index in users:
                    replace(users[index], self.editor.item(both, index - 1))

    def _accumulators(self, x: Node) -> tuple[Node, Node, Node | None] | None:
        """(acc, scale, bias) when x is a dequantised product whose scale is per channel."""
        if not is_call(x, dequantize):
            return None
        acc, scales, bias = x.args
        assert isinstance(acc, Node) and isinstance(scales, (list, tuple))
        if len(scales) != 1 or not isinstance(scales[0], Node):
            return None
        scale = scales[0]
        if any(size != 1 for size in shape(scale)[:-1]):
            return None
        assert bias is None or isinstance(bias, Node)
        return acc, scale, bias

    def _statistics_axes(self, x: Node) -> list[int]:
        every = list(range(len(shape(x))))
        if self.recipe.norm_granularity == "tensor":
            return every
        return every[:-1]

    def _nearest(self, x: Node, axes: list[int], node: Node) -> tuple[Node, Node]:
        bits = self.recipe.norm_input_bits
        r = self.editor.call(absmax, x, None, axes, like=node)
        q = self.editor.call(
            quantize, x, r, bits, True, like=node, name=f"{x.name}_q", bits=bits, signed=True
        )
        return q, self.editor.call(quant_scale, r, bits, True, 1, like=node)

    def _stochastic(self, g: Node, axes: list[int], operand: str, node: Node) -> tuple[Node, Node]:
        bits = self.recipe.norm_grad_bits
        key = f"{node.meta['module']}/{operand}"
        occurrence = self.occurrences[key] = self.occurrences.get(key, -1) + 1
        stream = stream_id(node.meta["module"], "norm", operand, occurrence)
        r = self.editor.call(absmax, g, None, axes, like=node)
        q = self.editor.call(
            quantize_stochastic,
            g,
            r,
            None,
            None,
            self.rng,
            bits,
            stream,
            like=node,
            name=f"{g.name}_q",
            bits=bits,
            signed=True,
        )
        return q, self.editor.call(quant_scale, r, bits, True, 1, like=node)

    def _channels(self, v: Node, channels: int, node: Node) -> Node:
        """A scale or bias kept with size-1 axes -> (channels,)."""
        size = prod(shape(v))
        flat = self.editor.call(aten.view.default, v, [size], like=node)
        if size == channels:
            return flat
        return self.editor.call(aten.expand.default, flat, [channels], like=node)

    def _replace_outputs(self, old: Node, new: Node) -> None:
        for item in list(old.users):
            index = item.args[1]
            assert isinstance(index, int)
            saved = {"bits": self.recipe.norm_saved_bits, "signed": True}
            meta = saved if new.target is not norm.l1_batch_norm_backward.target else {}
            replace(item, self.editor.item(new, index, **(meta if index == 1 else {})))
        old.graph.erase_node(old)
