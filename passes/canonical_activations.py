"""Activations in the forms of canonicalize: a table of rewrites.

The gradient of a smooth activation is the incoming one times a slope, a value of forward that
`save_slopes` quantises. A slope is taken from what forward computes anyway, GELU's distribution
function or SiLU's sigmoid: lowering joins such nodes in one kernel, along their edges.
"""

from typing import Any

import torch
from torch.fx import Node

from sqcompile.ops import activation, functions
from sqcompile.ops.table import Op
from sqcompile.passes.canonical_forms import Rule
from sqcompile.passes.editing import Editor, arguments, is_call, replace, value

aten = torch.ops.aten


def _shared(editor: Editor, like: Node, op: object, x: Node, *more: Any) -> Node:
    """op(x, *more), the one that forward has where it has one."""
    for user in x.users:
        if is_call(user, op) and user.args == (x, *more):
            return user
    with editor.after(x):
        return editor.call(op, x, *more, like=like)


def _times_slope(editor: Editor, node: Node, after: Node, op: Op, *of: Any) -> None:
    """The incoming gradient times op(*of), which forward computes after `after`."""
    with editor.after(after):
        slope = editor.call(op, *of, like=node)
    replace(node, editor.call(aten.mul.Tensor, arguments(node)["grad_output"], slope, like=node))


def _cdf(editor: Editor, node: Node) -> Node:
    given = arguments(node)
    approximate = given["approximate"] == "tanh"
    return _shared(editor, node, activation.gelu_cdf, given["self"], approximate)


def _gelu(editor: Editor, node: Node) -> None:
    """x * cdf(x)."""
    x, cdf = arguments(node)["self"], _cdf(editor, node)
    replace(node, editor.call(aten.mul.Tensor, x, cdf, like=node))


def _gelu_backward(editor: Editor, node: Node) -> None:
    x, cdf = arguments(node)["self"], _cdf(editor, node)
    _times_slope(editor, node, cdf, activation.gelu_slope, x, cdf, cdf.args[1])


def _silu(editor: Editor, node: Node) -> None:
    """x * sigmoid(x)."""
    x = arguments(node)["self"]
    s = _shared(editor, node, functions.sigmoid, x)
    replace(node, editor.call(aten.mul.Tensor, x, s, like=node))


def _silu_backward(editor: Editor, node: Node) -> None:
    x = arguments(node)["self"]
    s = _shared(editor, node, functions.sigmoid, x)
    _times_slope(editor, node, s, activation.silu_slope, x, s)


def _raised(editor: Editor, node: Node) -> Node:
    """clamp(x + 3, 0, 6)."""
    raised = _shared(editor, node, aten.add.Tensor, arguments(node)["self"], 3.0)
    return _shared(editor, node, aten.clamp.default, raised, 0.0, 6.0)


def _hardswish(editor: Editor, node: Node) -> None:
    """x * clamp(x + 3, 0, 6) / 6."""
    x, raised = arguments(node)["self"], _raised(editor, node)
    product = editor.call(aten.mul.Tensor, x, raised, like=node)
    replace(node, editor.call(aten.div.Tensor, product, 6.0, like=node))


def _hardswish_backward(editor: Editor, node: Node) -> None:
    raised = _raised(editor, node)
    _times_slope(editor, node, raised, activation.hardswish_slope, raised)


def _hardsigmoid(editor: Editor, node: Node) -> None:
    """clamp(x + 3, 0, 6) / 6."""
    replace(node, editor.call(aten.div.Tensor, _raised(editor, node), 6.0, like=node))


def _hardsigmoid_backward(editor: Editor, node: Node) -> None:
    """g / 6 between -3 and 3: forward keeps a mask."""
    given = arguments(node)
    x = given["self"]
    with editor.after(x):
        above = editor.call(aten.gt.Scalar, x, -3.0, like=node)
        below = editor.call(aten.lt.Scalar, x, 3.0, like=node)
        mask = editor.call(aten.logical_and.default, above, below, like=node, name="mask")
    slope = editor.call(aten.div.Tensor, given["grad_output"], 6.0, like=node)
    replace(node, editor.call(aten.where.ScalarOther, mask, slope, 0.0, like=node))


def _of_result(op: Op) -> Rule:
    """The gradient of a function whose slope is computed from its result."""

    def rule(editor: Editor, node: Node) -> None:
        y = arguments(node)["output"]
        _times_slope(editor, node, y, op, y)

    return rule


def _elu(editor: Editor, node: Node) -> None:
    """ELU, and CELU, which is ELU of x / alpha."""
    given = arguments(node)
    alpha = float(given["alpha"])
    scales = [float(given.get("scale", 1.0)), float(given.get("input_scale", 1.0 / alpha))]
    replace(node, editor.call(activation.elu, given["self"], alpha, *scales, like=node))


def _elu_backward(editor: Editor, node: Node) -> None:
    """From the result where its sign is the argument's, which spares an exponential."""
    given = arguments(node)
    alpha, *scales = (float(given[name]) for name in ("alpha", "scale", "input_scale"))
    of, is_result = given["self_or_result"], bool(given["is_result"])
    if not is_result and alpha >= 0.0:
        of, is_result = _shared(editor, node, activation.elu, of, alpha, *scales), True
    _times_slope(editor, node, of, activation.elu_slope, of, alpha, *scales, is_result)


def _float(rule: Rule) -> Rule:
    """A rule for float32 alone."""

    def only(editor: Editor, node: Node) -> None:
        if value(node).dtype == torch.float32:
            rule(editor, node)

    return only


ACTIVATIONS: dict[object, Rule] = {
    op: _float(rule)
    for op, rule in {
        aten.gelu.default: _gelu,
        aten.gelu_backward.default: _gelu_backward,
        aten.silu.default: _silu,
        aten.silu_backward.default: _silu_backward,
        aten.hardswish.default: _hardswish,
        aten.hardswish_backward.default: _hardswish_backward,
        aten.hardsigmoid.default: _hardsigmoid,
        aten.hardsigmoid_backward.default: _hardsigmoid_backward,
        aten.tanh_backward.default: _of_result(activation.tanh_slope),
        aten.sigmoid_backward.default: _of_result(activation.sigmoid_slope),
        aten.elu.default: _elu,
        aten.celu.default: _elu,
        aten.elu_backward.default: _elu_backward,
    }.items()
}
