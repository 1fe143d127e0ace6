"""Other ways of writing what the kernels have: rewrites of canonicalize, as a table."""

from collections.abc import Callable

import torch
from torch.fx import Node

from sqcompile.ops.elementwise import sqrt
from sqcompile.passes.editing import Editor, arguments, is_call, replace, shape, value

aten = torch.ops.aten
Rule = Callable[[Editor, Node], None]
"""What stands in a table of rewrites: it puts other nodes in the place of one, or leaves it."""


def _reversed_sub(editor: Editor, node: Node) -> None:
    """b - x as -x + b: the same rounding."""
    given = arguments(node)
    if given["alpha"] != 1:
        return
    negative = editor.call(aten.neg.default, given["self"], like=node)
    replace(node, editor.call(aten.add.Tensor, negative, given["other"], like=node))


def _slice_backward(editor: Editor, node: Node) -> None:
    """The gradient of a slice: zeros between its elements where it has steps, and around it."""
    given = arguments(node)
    g, sizes, axis, step = given["grad_output"], given["input_sizes"], given["dim"], given["step"]
    axis %= len(sizes)
    start = min(max(given["start"] + (sizes[axis] if given["start"] < 0 else 0), 0), sizes[axis])
    if step > 1:
        apart = editor.call(aten.unsqueeze.default, g, axis + 1, like=node)
        widths = [0] * (2 * (len(sizes) - 1 - axis)) + [0, step - 1]
        wide = editor.call(aten.constant_pad_nd.default, apart, widths, 0.0, like=node)
        merged = [n * step if i == axis else n for i, n in enumerate(shape(g))]
        g = editor.call(aten.reshape.default, wide, merged, like=node)
    _padded(editor, node, g, axis, start, sizes[axis] - start - shape(g)[axis])


def _select_backward(editor: Editor, node: Node) -> None:
    """The gradient of one index of an axis: zeros around it."""
    given = arguments(node)
    sizes, axis = given["input_sizes"], given["dim"] % len(given["input_sizes"])
    index = given["index"] % sizes[axis]
    g = editor.call(aten.unsqueeze.default, given["grad_output"], axis, like=node)
    _padded(editor, node, g, axis, index, sizes[axis] - index - 1)


def _padded(editor: Editor, node: Node, g: Node, axis: int, before: int, after: int) -> None:
    if before or after:
        widths = [0] * (2 * (len(shape(g)) - 1 - axis)) + [before, after]
        g = editor.call(aten.constant_pad_nd.default, g, widths, 0.0, like=node)
    replace(node, g)


def _padding(editor: Editor, node: Node) -> None:
    """A padding by nothing goes."""
    given = arguments(node)
    if not any(given["pad"]):
        replace(node, given["self"])


def _slice_scatter(editor: Editor, node: Node) -> None:
    """A tensor with another in the place of a slice without steps: what is before and behind it."""
    given = arguments(node)
    axis = given["dim"] % len(shape(node))
    start, end, step = slice(given["start"], given["end"], given["step"]).indices(shape(node)[axis])
    if step == 1:
        _inserted(editor, node, given["self"], given["src"], axis, start, end)


def _select_scatter(editor: Editor, node: Node) -> None:
    """A tensor with another in the place of one index of an axis."""
    given = arguments(node)
    axis = given["dim"] % len(shape(node))
    start = given["index"] % shape(node)[axis]
    part = editor.call(aten.unsqueeze.default, given["src"], axis, like=node)
    _inserted(editor, node, given["self"], part, axis, start, start + 1)


def _inserted(
    editor: Editor, node: Node, x: Node, part: Node, axis: int, start: int, end: int
) -> None:
    size = shape(node)[axis]
    parts = [
        editor.call(aten.slice.Tensor, x, axis, *ends, like=node) if ends else part
        for ends in ((0, start), None, (end, size))
        if ends is None or ends[0] < ends[1]
    ]
    replace(node, editor.call(aten.cat.default, parts, axis, like=node))


def _filled(editor: Editor, node: Node) -> None:
    """A tensor of one number; its old values are not read."""
    number = arguments(node)["value"]
    if isinstance(number, Node):
        if value(number).dtype == value(node).dtype:
            replace(node, editor.call(aten.expand.default, number, shape(node), like=node))
    elif value(node).dtype == torch.float32:
        replace(node, editor.call(aten.full.default, shape(node), float(number), like=node))


def _stack(editor: Editor, node: Node) -> None:
    given = arguments(node)
    axis = given["dim"] % len(shape(node))
    parts = [editor.call(aten.unsqueeze.default, x, axis, like=node) for x in given["tensors"]]
    replace(node, editor.call(aten.cat.default, parts, axis, like=node))


def _where(editor: Editor, node: Node) -> None:
    """A branch that is one number stands as a number, behind the other branch if that is none."""
    given = arguments(node)
    condition, yes, no = given["condition"], given["self"], given["other"]
    if is_call(yes, aten.scalar_tensor.default) and is_call(no, aten.scalar_tensor.default):
        if value(node).dtype == torch.float32:
            pair = (float(yes.args[0]), float(no.args[0]))
            replace(node, editor.call(aten.where.Scalar, condition, *pair, like=node))
        return
    if is_call(yes, aten.scalar_tensor.default):
        condition = editor.call(aten.logical_not.default, condition, like=node)
        yes, no = no, yes
    if is_call(no, aten.scalar_tensor.default):
        number = no.args[0]
        replace(node, editor.call(aten.where.ScalarOther, condition, yes, number, like=node))


def _masked_fill(editor: Editor, node: Node) -> None:
    given = arguments(node)
    kept = editor.call(aten.logical_not.default, given["mask"], like=node)
    new = editor.call(aten.where.ScalarOther, kept, given["self"], given["value"], like=node)
    replace(node, new)


def _power(editor: Editor, node: Node) -> None:
    """The first, second and third power: (x * x) * x."""
    given = arguments(node)
    x, exponent = given["self"], given["exponent"]
    if exponent not in (1, 2, 3):
        return
    power = x
    for _ in range(int(exponent) - 1):
        power = editor.call(aten.mul.Tensor, power, x, like=node)
    replace(node, power)


def _sqrt(editor: Editor, node: Node) -> None:
    x = arguments(node)["self"]
    if value(x).dtype == torch.float32:
        replace(node, editor.call(sqrt, x, like=node))


def _rsqrt(editor: Editor, node: Node) -> None:
    """A square root, then its reciprocal: two roundings."""
    x = arguments(node)["self"]
    if value(x).dtype == torch.float32:
        root = editor.call(sqrt, x, like=node)
        replace(node, editor.call(aten.reciprocal.default, root, like=node))


FORMS: dict[object, Rule] = {
    aten.sqrt.default: _sqrt,
    aten.rsqrt.default: _rsqrt,
    aten.where.self: _where,
    aten.masked_fill.Scalar: _masked_fill,
    aten.pow.Tensor_Scalar: _power,
    aten.rsub.Scalar: _reversed_sub,
    aten.rsub.Tensor: _reversed_sub,
    aten.slice_backward.default: _slice_backward,
    aten.select_backward.default: _select_backward,
    aten.constant_pad_nd.default: _padding,
    aten.stack.default: _stack,
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.fill.Scalar: _filled,
    aten.fill.Tensor: _filled,
}
