"""Readers of ops that move elements, make constants or tell shapes."""

from typing import Any

import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn
from torch.fx import Node

from sqcompile.onnx.importer import Importer, OnnxNode, Read, narrowed, reads


def shape_of(value: Read) -> list[int]:
    """The shape of a value."""
    assert value is not None
    return list((value.meta["val"] if isinstance(value, Node) else value).shape)


def integers(node: OnnxNode, value: Read, what: str) -> list[int]:
    """A constant vector as integers."""
    if not isinstance(value, Tensor):
        raise node.refuse(f"{what} that depend on the input's values")
    return [int(one) for one in value.flatten().tolist()]


@reads("Constant")
def _(importer: Importer, node: OnnxNode) -> Any:
    if "value" in node.attributes:
        return narrowed(torch.from_numpy(numpy_helper.to_array(node["value"]).copy()))
    for name, dtype in (("float", torch.float32), ("int", torch.int64)):
        for form in (f"value_{name}", f"value_{name}s"):
            if form in node.attributes:
                return torch.tensor(node[form], dtype=dtype)
    raise node.refuse("a constant of another kind")


@reads("ConstantOfShape")
def _(importer: Importer, node: OnnxNode) -> Any:
    shape = integers(node, importer.value(node.inputs[0]), "sizes")
    proto = node.attributes.get("value")
    filling = (
        torch.zeros(1) if proto is None else torch.from_numpy(numpy_helper.to_array(proto).copy())
    )
    return narrowed(filling.reshape(())).expand(shape).clone()


@reads("Shape")
def _(importer: Importer, node: OnnxNode) -> Any:
    shape = shape_of(importer.value(node.inputs[0]))
    return torch.tensor(
        shape[node.get("start", 0) : node.get("end", len(shape))], dtype=torch.int64
    )


@reads("Size")
def _(importer: Importer, node: OnnxNode) -> Any:
    return torch.tensor(torch.Size(shape_of(importer.value(node.inputs[0]))).numel())


@reads("Range")
def _(importer: Importer, node: OnnxNode) -> Any:
    ends = [one for one in importer.inputs(node) if isinstance(one, Tensor)]
    if len(ends) < 3:
        raise node.refuse("ends that depend on the input's values")
    start, end, step = (one.item() for one in ends)
    if (end - start) * step <= 0:
        return torch.empty(0, dtype=ends[0].dtype)
    return torch.arange(start, end, step, dtype=ends[0].dtype)


@reads("Reshape")
def _(importer: Importer, node: OnnxNode) -> Any:
    x, wanted = importer.inputs(node)
    shape, old = integers(node, wanted, "sizes"), shape_of(x)
    if not node.get("allowzero", 0):
        shape = [old[i] if size == 0 else size for i, size in enumerate(shape)]
    return importer.method("reshape", x, tuple(shape))


@reads("Flatten")
def _(importer: Importer, node: OnnxNode) -> Any:
    x = importer.value(node.inputs[0])
    shape, axis = shape_of(x), node.get("axis", 1)
    rows = torch.Size(shape[:axis]).numel()
    if axis == 1 and len(shape) > 1:
        return importer.call(torch.flatten, x, 1)
    return importer.method("reshape", x, (rows, -1))


@reads("Transpose")
def _(importer: Importer, node: OnnxNode) -> Any:
    x = importer.value(node.inputs[0])
    order = node.get("perm") or list(range(len(shape_of(x))))[::-1]
    return importer.method("permute", x, tuple(order))


def _axes(importer: Importer, node: OnnxNode) -> list[int] | None:
    if len(node.inputs) < 2 or not node.inputs[1]:
        return None
    return integers(node, importer.value(node.inputs[1]), "axes")


@reads("Squeeze")
def _(importer: Importer, node: OnnxNode) -> Any:
    x, axes = importer.value(node.inputs[0]), _axes(importer, node)
    shape = shape_of(x)
    if axes is None:
        axes = [i for i, size in enumerate(shape) if size == 1]
    return importer.method("squeeze", x, tuple(axes))


@reads("Unsqueeze")
def _(importer: Importer, node: OnnxNode) -> Any:
    x, axes = importer.value(node.inputs[0]), _axes(importer, node) or []
    rank = len(shape_of(x)) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = importer.method("unsqueeze", x, axis)
    return x


@reads("Concat")
def _(importer: Importer, node: OnnxNode) -> Any:
    return importer.call(torch.cat, importer.inputs(node), dim=node["axis"])


@reads("Split")
def _(importer: Importer, node: OnnxNode) -> Any:
    x, axis = importer.value(node.inputs[0]), node.get("axis", 0)
    size = shape_of(x)[axis]
    if len(node.inputs) > 1 and node.inputs[1]:
        parts = integers(node, importer.value(node.inputs[1]), "sizes")
    else:
        count = node.get("num_outputs", len(node.outputs))
        each = -(-size // count)
        parts = [min(each, size - i * each) for i in range(count)]
    starts = [sum(parts[:i]) for i in range(len(parts))]
    return [
        importer.call(torch.narrow, x, axis, start, length)
        for start, length in zip(starts, parts, strict=True)
    ]


@reads("Slice")
def _(importer: Importer, node: OnnxNode) -> Any:
    x, *rest = importer.inputs(node)
    given = [None if one is None else integers(node, one, "ends") for one in rest]
    starts, ends, axes, steps = [*given, None, None][:4]
    assert starts is not None and ends is not None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    shape = shape_of(x)
    places = [slice(None)] * len(shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            raise node.refuse("a step below 1")
        begin, stop, _ = slice(start, end, step).indices(shape[axis])
        places[axis % len(shape)] = slice(begin, stop, step)
    last = max((i for i, one in enumerate(places) if one != slice(None)), default=-1)
    if last < 0:
        return x
    return importer.call(_sliced, x, tuple((s.start, s.stop, s.step) for s in places[: last + 1]))


def _sliced(x: Tensor, places: Any) -> Tensor:
    """x[...] with a (start, stop, step) for each of the first axes."""
    return x[tuple(slice(*place) for place in places)]


@reads("Gather")
def _(importer: Importer, node: OnnxNode) -> Any:
    """Of a weight: an embedding. By one constant number: a slice. Else rows by number."""
    name, axis = node.inputs[0], node.get("axis", 0)
    index = importer.value(node.inputs[1])
    table = importer.initialisers.get(name)
    if table is not None and axis == 0 and table.dim() == 2 and isinstance(index, Node):
        return _embedding(importer, node, table, index)
    x = importer.value(name)
    size = shape_of(x)[axis]
    if isinstance(index, Tensor):
        if bool(((index < -size) | (index >= size)).any()):
            raise node.refuse(f"an index beyond the {size} of axis {axis}")
        if index.dim() == 0:
            return importer.call(torch.select, x, axis, int(index) % size)
        index = index % size
    if len(shape_of(index)) != 1:
        flat = importer.method("reshape", index, (-1,))
        rows = importer.call(torch.index_select, x, axis, flat)
        shape = shape_of(x)
        return importer.method(
            "reshape", rows, (*shape[:axis], *shape_of(index), *shape[axis % len(shape) + 1 :])
        )
    return importer.call(torch.index_select, x, axis, index)


def _embedding(importer: Importer, node: OnnxNode, table: Tensor, index: Node) -> Any:
    name = node.inputs[0]
    if not importer.alone(name) or table.dtype != torch.float32:
        return importer.call(F.embedding, index, importer.value(name))
    return importer.layer(
        node, nn.Embedding(table.shape[0], table.shape[1], _weight=table.clone()), name, index
    )


@reads("Expand")
def _(importer: Importer, node: OnnxNode) -> Any:
    x, wanted = importer.inputs(node)
    shape = torch.broadcast_shapes(tuple(shape_of(x)), tuple(integers(node, wanted, "sizes")))
    return importer.method("expand", x, tuple(shape))


@reads("Pad")
def _(importer: Importer, node: OnnxNode) -> Any:
    x, pads, *rest = importer.inputs(node)
    if node.get("mode", "constant") != "constant":
        raise node.refuse(f"mode {node.get('mode')}")
    counts, rank = integers(node, pads, "counts"), len(shape_of(x))
    axes = list(range(rank))
    if len(rest) > 1 and rest[1] is not None:
        axes = [axis % rank for axis in integers(node, rest[1], "axes")]
    number = rest[0] if rest else None
    if isinstance(number, Node):
        raise node.refuse("a number that depends on the input's values")
    value = 0.0 if number is None else float(number)
    by_axis = {axis: (counts[i], counts[i + len(axes)]) for i, axis in enumerate(axes)}
    reverse = [count for axis in reversed(range(rank)) for count in by_axis.get(axis, (0, 0))]
    return importer.call(F.pad, x, tuple(reverse), value=value)


@reads("Trilu")
def _(importer: Importer, node: OnnxNode) -> Any:
    x, *rest = importer.inputs(node)
    diagonal = integers(node, rest[0], "diagonals")[0] if rest and rest[0] is not None else 0
    return importer.call(torch.triu if node.get("upper", 1) else torch.tril, x, diagonal)
