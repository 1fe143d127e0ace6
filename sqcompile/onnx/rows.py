"""Emitter of the gradient of rows that were read by number, added in their order."""

import torch

from sqcompile.onnx.body import Value
from sqcompile.onnx.shapes import reshaped, transposed
from sqcompile.onnx.table import Call, cast, emits
from sqcompile.ops.lookup import take_backward


@emits(take_backward)
def _(call: Call) -> Value:
    """A Scan over the positions, whose steps are one after the other: ScatterND with a sum leaves
    the order of equal rows open."""
    body, g, axis = call.body, call["g"], call["axis"]
    rank = len(g.shape)
    order = [axis, *(other for other in range(rank) if other != axis)]
    parts = transposed(body, g, order)
    index = cast(body, call["index"], torch.int64)
    rows = body.call("Max", index, body.constant(0, torch.int64))
    rows = body.call("Min", rows, body.constant(call["size"] - 1, torch.int64))
    zero = body.filled(0.0, g.dtype, [call["size"], *parts.shape[1:]])
    inner = body.part("rows")
    total = inner.fresh("total", zero)
    row = Value(body.store.name("row"), torch.int64, ())
    part = Value(body.store.name("part"), g.dtype, parts.shape[1:])
    place = reshaped(inner, row, [1, 1])
    old = inner.call("Gather", total, row, shape=part.shape, axis=0)
    new = inner.call("Add", old, part)
    if call["skipped"] >= 0:
        skipped = inner.constant(call["skipped"], torch.int64)
        out = inner.call("Equal", row, skipped, dtype=torch.bool)
        new = inner.call("Where", out, old, new, dtype=g.dtype)
    update = reshaped(inner, new, [1, *part.shape])
    result = inner.call("ScatterND", total, place, update, shape=zero.shape)
    graph = inner.graph("rows", [total, row, part], [result])
    summed = body.call("Scan", zero, rows, parts, shape=zero.shape, body=graph, num_scan_inputs=2)
    back = [order.index(at) for at in range(rank)]
    return transposed(body, summed, back)
