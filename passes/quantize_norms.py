"""Replace every float L1 norm by its integer form, forward and backward."""

from math import prod
from typing import Any

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
    value,
)
from sqcompile.recipe import Recipe

aten = torch.ops.aten


def quantize_norms(module: GraphModule, recipe: Recipe) -> GraphModule:
    """After this pass every norm reads integers and saves integers. A batch norm behind a product
    reads its int32 accumulators; any other norm input is quantised first, per channel (batch
    norm), per row (layer and RMS norm) or per sample and group (group norm). The gradient is
    quantised stochastically, per channel (batch norm); the others quantise it like their input for
    dx, and per feature or channel for dgamma and dbeta."""
    graph = copy_graph(module)
    quantizer = _Norms(Editor(graph), recipe, graph)
    for op, rewrite in (
        (norm_float.batch_norm, quantizer.batch_norm),
        (norm_float.layer_norm, quantizer.layer_norm),
        (norm_float.group_norm, quantizer.group_norm),
        (norm_float.batch_norm_backward, quantizer.batch_norm_backward),
        (norm_float.layer_norm_backward, quantizer.layer_norm_backward),
        (norm_float.group_norm_backward, quantizer.group_norm_backward),
    ):
        for node in calls(graph, op):
            with quantizer.editor.before(node):
                rewrite(node)
    return finish(graph)


class _Norms:
    """The rewrites, with what they share."""

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
        largest = limits(self.recipe.norm_input_bits, True)[1]
        new = self.editor.call(
            norm.l1_layer_norm,
            integers,
            scale,
            given["gamma"],
            given["beta"],
            given["eps"],
            norm.fraction_bits(shape(x)[1], largest) if given["centred"] else 0,
            self.recipe.norm_saved_bits,
            self.recipe.row_norm_saved_step,
            given["centred"],
            like=node,
        )
        self._replace_outputs(node, new)

    def group_norm(self, node: Node) -> None:
        """The norm of (N, pixels, groups, channels of a group), a view of the image."""
        given = arguments(node)
        grouped = list(node.meta["val"][1].shape)
        _, pixels, _, channels = grouped
        node.meta["module"] = compat.module_path(node)
        x = self._view(given["x"], grouped, node)
        integers, scale = self._nearest(x, norm.GROUP_AXES, node)
        vectors = (given[name] for name in ("gamma", "beta"))
        largest = limits(self.recipe.norm_input_bits, True)[1]
        new = self.editor.call(
            norm.l1_group_norm,
            integers,
            scale,
            *(None if v is None else self._view(v, grouped[2:], node) for v in vectors),
            given["eps"],
            norm.fraction_bits(pixels * channels, largest),
            self.recipe.norm_saved_bits,
            self.recipe.row_norm_saved_step,
            like=node,
        )
        self._replace_outputs(node, new, shape(given["x"]))

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
        users: dict[Any, Node] = {item.args[1]: item for item in node.users}
        if 0 in users:
            q, scale = self._stochastic(self._times(g, gamma, node), [1], "h", node)
            args = (q, scale, xhat, given["coefficient"], self.recipe.row_norm_saved_step)
            op = norm.l1_layer_norm_backward
            replace(users[0], self.editor.call(op, *args, given["centred"], like=node))
        self._affine_gradients(users, g, xhat, node)

    def group_norm_backward(self, node: Node) -> None:
        given = arguments(node)
        gamma, xhat = given["gamma"], given["xhat"]
        node.meta["module"] = compat.module_path(node)
        channels, grouped = shape(given["g"])[-1], shape(xhat)
        users: dict[Any, Node] = {item.args[1]: item for item in node.users}
        if 0 in users:
            g = self._view(given["g"], grouped, node)
            gamma = None if gamma is None else self._view(gamma, grouped[2:], node)
            h = self._times(g, gamma, node)
            q, scale = self._stochastic(h, norm.GROUP_AXES, "h", node, grouped)
            args = (q, scale, xhat, given["coefficient"], self.recipe.row_norm_saved_step)
            dx = self.editor.call(norm.l1_group_norm_backward, *args, like=node)
            replace(users[0], self._view(dx, shape(given["g"]), node))
        rows = [prod(grouped) // channels, channels]
        g, xhat = (self._view(one, rows, node, backward=True) for one in (given["g"], xhat))
        self._affine_gradients(users, g, xhat, node)

    def _times(self, g: Node, gamma: Node | None, node: Node) -> Node:
        return g if gamma is None else self.editor.call(aten.mul.Tensor, g, gamma, like=node)

    def _view(self, x: Node, sizes: list[int], node: Node, **meta: Any) -> Node:
        if shape(x) == sizes:
            return x
        # A gradient from outside may be an image shown channels first: no view can read it.
        op = aten.view.default if value(x).is_contiguous() else aten.reshape.default
        return self.editor.call(op, x, sizes, like=node, **meta)

    def _affine_gradients(self, users: dict[object, Node], g: Node, xhat: Node, node: Node) -> None:
        """dgamma and dbeta where they are read, from rows of g and xhat."""
        if 1 not in users and 2 not in users:
            return
        q, scale = self._stochastic(g, [0], "g", node)
        args = (q, scale, xhat, self.recipe.row_norm_saved_step)
        both = self.editor.call(norm.l1_layer_norm_affine_backward, *args, like=node)
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

    def _stochastic(
        self, g: Node, axes: list[int], operand: str, node: Node, grouped: list[int] | None = None
    ) -> tuple[Node, Node]:
        """Integers and scale. Those of a shape (N, P, G, K) are quantised as (N, P, G * K), by an
        absmax repeated over the channels of its group: rows long enough for vectors."""
        bits = self.recipe.norm_grad_bits
        key = f"{node.meta['module']}/{operand}"
        occurrence = self.occurrences[key] = self.occurrences.get(key, -1) + 1
        stream = stream_id(node.meta["module"], "norm", operand, occurrence)
        r = self.editor.call(absmax, g, None, axes, like=node)
        rows, largest = g, r
        if grouped is not None:
            n, pixels, groups, width = grouped
            largest = self.editor.call(aten.expand.default, r, [n, 1, groups, width], like=node)
            flat = [n, 1, groups * width]
            largest = self.editor.call(aten.reshape.default, largest, flat, like=node)
            rows = self._view(g, [n, pixels, groups * width], node)
        q = self.editor.call(
            quantize_stochastic,
            rows,
            largest,
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
        scale = self.editor.call(quant_scale, r, bits, True, 1, like=node)
        return (self._view(q, grouped, node) if grouped else q), scale

    def _channels(self, v: Node, channels: int, node: Node) -> Node:
        """A scale or bias kept with size-1 axes -> (channels,)."""
        size = prod(shape(v))
        flat = self.editor.call(aten.view.default, v, [size], like=node)
        if size == channels:
            return flat
        return self.editor.call(aten.expand.default, flat, [channels], like=node)

    def _replace_outputs(self, old: Node, new: Node, sizes: list[int] | None = None) -> None:
        """Let the outputs of `new` stand for those of `old`, the first one as `sizes`."""
        for item in list(old.users):
            index = item.args[1]
            assert isinstance(index, int)
            saved = {"bits": self.recipe.norm_saved_bits, "signed": True}
            meta = saved if new.target is not norm.l1_batch_norm_backward.target else {}
            one = self.editor.item(new, index, **(meta if index == 1 else {}))
            replace(item, self._view(one, sizes, old) if index == 0 and sizes else one)
        old.graph.erase_node(old)
