"""Emitters of reductions: integer sums and maxima have no order, float sums have a written one."""

from collections.abc import Sequence
from math import prod

import torch

from sqcompile.onnx.body import Body, Value
from sqcompile.onnx.shapes import padded, reshaped, sliced, transposed
from sqcompile.onnx.table import Call, NoForm, cast, emits
from sqcompile.ops.index_range import NONE, index_range
from sqcompile.ops.reduce import CHUNK, LANES, ordered_sum

aten = torch.ops.aten

_UNROLLED = 8
"""Sums of more terms than this are a loop."""


def reduced(
    body: Body, op: str, x: Value, axes: Sequence[int], shape: Sequence[int], keepdims: bool
) -> Value:
    """ReduceSum, ReduceMax or ReduceMin."""
    return body.call(op, x, body.numbers(axes), shape=shape, keepdims=int(keepdims))


@emits(aten.sum.dim_IntList, aten.sum.default)
def _(call: Call) -> Value:
    """Of integers and truth values: exact, in int64."""
    x = call.first
    if call.dtype.is_floating_point:
        raise NoForm("a float sum without a written order")
    axes = call.arguments.get("dim") or list(range(len(x.shape)))
    axes = [axis % len(x.shape) for axis in axes]
    wide = cast(call.body, x, torch.int64)
    keepdims = bool(call.arguments.get("keepdim"))
    total = reduced(call.body, "ReduceSum", wide, axes, call.shape, keepdims)
    return cast(call.body, total, call.dtype)


@emits(aten.amax.default, aten.max.default)
def _(call: Call) -> Value:
    x = call.first
    axes = call.arguments.get("dim") or list(range(len(x.shape)))
    axes = [axis % len(x.shape) for axis in axes]
    keepdims = bool(call.arguments.get("keepdim"))
    return reduced(call.body, "ReduceMax", x, axes, call.shape, keepdims)


@emits(index_range)
def _(call: Call) -> Value:
    """What does not count stands beyond both ends, as NONE does."""
    body, x = call.body, cast(call.body, call["x"], torch.int64)
    ends = []
    flat = reshaped(body, x, [prod(x.shape)])
    if not prod(x.shape):
        return body.numbers(NONE)
    for op, beyond in zip(("ReduceMin", "ReduceMax"), NONE, strict=True):
        counted = flat
        if call["ignored"] is not None:
            out = body.call("Equal", flat, body.numbers([call["ignored"]]), dtype=torch.bool)
            counted = body.call("Where", out, body.numbers([beyond]), flat, dtype=torch.int64)
        ends.append(reduced(body, op, counted, [0], [1], True))
    return body.call("Concat", *ends, shape=[2], axis=0)


@emits(ordered_sum)
def _(call: Call) -> Value:
    """Chunks of 1024 in 16 lanes, the lanes by halving, the chunks one after the other."""
    body, x = call.body, call["x"]
    axes, rank = list(call["axes"]), len(call["x"].shape)
    kept = [axis for axis in range(rank) if axis not in axes]
    count = prod(x.shape[axis] for axis in axes)
    results = prod(x.shape[axis] for axis in kept)
    rows = reshaped(body, transposed(body, x, [*kept, *sorted(axes)]), [results, count])
    chunks = max(1, -(-count // CHUNK))
    steps = CHUNK // LANES if chunks > 1 else max(1, -(-count // LANES))
    rows = padded(body, rows, [0, 0], [0, chunks * steps * LANES - count])
    total = added(body, reshaped(body, rows, [results, chunks, steps, LANES]), 2)
    half = LANES // 2
    while half:
        low, high = (sliced(body, total, 2, at, at + half) for at in (0, half))
        total = body.call("Add", low, high)
        half //= 2
    return reshaped(body, added(body, total, 1), call.shape)


def added(body: Body, x: Value, axis: int) -> Value:
    """The slices along an axis, added one after the other from +0.0 on; without the axis."""
    shape = [size for other, size in enumerate(x.shape) if other != axis]
    zero = body.filled(0.0, x.dtype, shape)
    if x.shape[axis] > _UNROLLED:
        return _loop(body, x, axis, zero)
    total = zero
    for place in range(x.shape[axis]):
        part = reshaped(body, sliced(body, x, axis, place, place + 1), shape)
        total = body.call("Add", total, part)
    return total


def _loop(body: Body, x: Value, axis: int, zero: Value) -> Value:
    """A Scan: its steps are one after the other by definition."""
    inner = body.part("sum")
    total, part = inner.fresh("total", zero), inner.fresh("part", zero)
    result = inner.call("Add", total, part)
    graph = inner.graph("sum", [total, part], [result])
    return body.call(
        "Scan", zero, x, shape=zero.shape, body=graph, num_scan_inputs=1, scan_input_axes=[axis]
    )
