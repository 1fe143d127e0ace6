"""Emitters of ATen ops that move elements, and of constants."""

from collections.abc import Sequence

import torch

from sqcompile.onnx.body import Body, Value
from sqcompile.onnx.table import Call, cast, emits

aten = torch.ops.aten

_END = 2**62
"""Behind the end of every axis."""


def reshaped(body: Body, x: Value, shape: Sequence[int]) -> Value:
    """The same elements in another shape."""
    if x.shape == tuple(shape):
        return x
    return body.call("Reshape", x, body.numbers(shape), shape=shape, largest=x.largest)


def transposed(body: Body, x: Value, order: Sequence[int]) -> Value:
    """Axes in another order."""
    if list(order) == list(range(len(x.shape))):
        return x
    shape = [x.shape[axis] for axis in order]
    return body.call("Transpose", x, shape=shape, largest=x.largest, perm=list(order))


def sliced(body: Body, x: Value, axis: int, start: int, end: int, step: int = 1) -> Value:
    """x[start:end:step] along an axis; 0 <= start, end <= size, step > 0."""
    shape = list(x.shape)
    shape[axis] = len(range(start, end, step))
    if shape == list(x.shape):
        return x
    places = [body.numbers([one]) for one in (start, end, axis, step)]
    return body.call("Slice", x, *places, shape=shape, largest=x.largest)


def flipped(body: Body, x: Value, axis: int) -> Value:
    """An axis from its end to its begin."""
    places = [body.numbers([one]) for one in (_END, -_END, axis, -1)]
    return body.call("Slice", x, *places, shape=x.shape, largest=x.largest)


def joined(body: Body, parts: Sequence[Value], axis: int) -> Value:
    """Tensors one behind the other along an axis."""
    if len(parts) == 1:
        return parts[0]
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    known = [part.largest for part in parts if part.largest is not None]
    largest = max(known) if len(known) == len(parts) else None
    return body.call("Concat", *parts, shape=shape, largest=largest, axis=axis)


def padded(
    body: Body, x: Value, before: Sequence[int], after: Sequence[int], number: float = 0.0
) -> Value:
    """Elements of one number put before and behind every axis; negative counts cut."""
    if not any(before) and not any(after):
        return x
    shape = [b + size + a for b, size, a in zip(before, x.shape, after, strict=True)]
    filling = body.constant(number if x.dtype.is_floating_point else int(number), x.dtype)
    places = body.numbers([*before, *after])
    return body.call("Pad", x, places, filling, shape=shape, largest=x.largest)


@emits(
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.flatten.using_ints,
)
def _(call: Call) -> Value:
    return reshaped(call.body, call.first, call.shape)


@emits(aten.permute.default)
def _(call: Call) -> Value:
    rank = len(call.shape)
    return transposed(call.body, call.first, [axis % rank for axis in call["dims"]])


@emits(aten.transpose.int)
def _(call: Call) -> Value:
    order = list(range(len(call.shape)))
    one, other = call["dim0"], call["dim1"]
    order[one], order[other] = order[other], order[one]
    return transposed(call.body, call.first, order)


@emits(aten.t.default)
def _(call: Call) -> Value:
    return transposed(call.body, call.first, list(range(len(call.shape)))[::-1])


@emits(aten.expand.default)
def _(call: Call) -> Value:
    if call.first.shape == call.shape:
        return call.first
    sizes = call.body.numbers(call.shape)
    return call.body.call("Expand", call.first, sizes, shape=call.shape, largest=call.first.largest)


@emits(aten.slice.Tensor)
def _(call: Call) -> Value:
    x, axis = call.first, call["dim"] % len(call.shape)
    size = x.shape[axis]
    start, end, step = slice(call["start"], call["end"], call["step"]).indices(size)
    return sliced(call.body, x, axis, start, max(start, end), step)


@emits(aten.select.int)
def _(call: Call) -> Value:
    x = call.first
    axis = call["dim"] % len(x.shape)
    place = call["index"] % x.shape[axis]
    return reshaped(call.body, sliced(call.body, x, axis, place, place + 1), call.shape)


@emits(aten.unbind.int)
def _(call: Call) -> tuple[Value, ...]:
    x = call.first
    axis = call["dim"] % len(x.shape)
    shape = [size for other, size in enumerate(x.shape) if other != axis]
    return tuple(
        reshaped(call.body, sliced(call.body, x, axis, i, i + 1), shape)
        for i in range(x.shape[axis])
    )


@emits(aten.cat.default)
def _(call: Call) -> Value:
    parts = [cast(call.body, part, call.dtype) for part in call["tensors"]]
    kept = [part for part in parts if len(part.shape) == len(call.shape)]
    return joined(call.body, kept, call["dim"] % len(call.shape))


@emits(aten.stack.default)
def _(call: Call) -> Value:
    axis = call["dim"] % len(call.shape)
    shape = [1 if other == axis else size for other, size in enumerate(call.shape)]
    return joined(call.body, [reshaped(call.body, part, shape) for part in call["tensors"]], axis)


@emits(aten.constant_pad_nd.default)
def _(call: Call) -> Value:
    rank = len(call.shape)
    before, after = [0] * rank, [0] * rank
    pad = call["pad"]
    for position in range(len(pad) // 2):
        before[rank - 1 - position], after[rank - 1 - position] = pad[
            2 * position : 2 * position + 2
        ]
    return padded(call.body, call.first, before, after, call["value"])


@emits(aten.flip.default)
def _(call: Call) -> Value:
    value = call.first
    for axis in call["dims"]:
        value = flipped(call.body, value, axis % len(call.shape))
    return value


@emits(aten.index_select.default)
def _(call: Call) -> Value:
    return call.body.call("Gather", call.first, call["index"], shape=call.shape, axis=call["dim"])


@emits(aten.index.Tensor)
def _(call: Call) -> Value:
    """Rows by number: one index, of the first axis."""
    from sqcompile.onnx.table import NoForm

    indices = call["indices"]
    if len(indices) != 1 or indices[0].dtype == torch.bool:
        raise NoForm("indexing by other than one tensor of numbers")
    return call.body.call("Gather", call.first, indices[0], shape=call.shape, axis=0)


@emits(aten.gather.default)
def _(call: Call) -> Value:
    x, index = call.first, call["index"]
    return call.body.call("GatherElements", x, index, shape=call.shape, axis=call["dim"])


@emits(
    aten.full.default,
    aten.full_like.default,
    aten.new_full.default,
    aten.scalar_tensor.default,
)
def _(call: Call) -> Value:
    given = call.arguments
    number = given.get("fill_value", given.get("s"))
    return _all(call, number)


@emits(aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default)
def _(call: Call) -> Value:
    return _all(call, 0)


@emits(aten.ones.default, aten.ones_like.default, aten.new_ones.default)
def _(call: Call) -> Value:
    return _all(call, 1)


@emits(aten.new_empty.default, aten.empty.memory_format, aten.empty_like.default)
def _(call: Call) -> Value:
    """Only tensors without elements are left as they are made."""
    return _all(call, 0)


def _all(call: Call, number: float) -> Value:
    return call.body.constant(torch.full(call.shape, number, dtype=call.dtype))


@emits(aten.arange.default, aten.arange.start, aten.arange.start_step)
def _(call: Call) -> Value:
    given = call.arguments
    numbers = range(given.get("start", 0), given["end"], given.get("step", 1))
    return call.body.constant(torch.tensor(list(numbers), dtype=call.dtype))
