"""Emitters of integer convolutions and of pooling's gradients.

Images are (N, H, W, C) in graphs and (N, C, H, W) in ONNX: transposes stand around ConvInteger. The
input's gradient is a convolution of the spread gradient with the mirrored weight; the weight's is a
matrix product with the windows of the image side by side.
"""

from collections.abc import Sequence
from typing import Any

import torch

from sqcompile.onnx.body import Body, Value
from sqcompile.onnx.products import accumulated, exact, multiplied, shifted_parts, summed
from sqcompile.onnx.shapes import flipped, joined, padded, reshaped, sliced, transposed
from sqcompile.onnx.table import Call, NoForm, emits
from sqcompile.ops.conv import conv_dgrad, conv_fprop, conv_wgrad
from sqcompile.ops.pool import avg_pool2d_backward, max_pool2d_backward

FIRST, LAST = [0, 3, 1, 2], [0, 2, 3, 1]
"""The order of axes that puts channels first, or last."""


def spread(body: Body, x: Value, stride: Sequence[int], axes: Sequence[int]) -> Value:
    """Zeros between the elements along two axes: s - 1 after all but the last."""
    for axis, step in zip(axes, stride, strict=True):
        if step == 1:
            continue
        size = x.shape[axis]
        split = [*x.shape[: axis + 1], 1, *x.shape[axis + 1 :]]
        rank = len(split)
        after = [step - 1 if at == axis + 1 else 0 for at in range(rank)]
        wide = padded(body, reshaped(body, x, split), [0] * rank, after)
        whole = reshaped(body, wide, [*x.shape[:axis], size * step, *x.shape[axis + 1 :]])
        x = sliced(body, whole, axis, 0, (size - 1) * step + 1)
    return x


def convolved(
    body: Body,
    parts: list[tuple[Value, int]],
    w: Value,
    groups: int,
    k_chunk: int,
    shape: Sequence[int],
    **window: Any,
) -> Value:
    """(N, H, W, C) of `shifted_parts` and bytes (O, C / groups, KH, KW) -> int32, or int64 with
    k_chunk, of `shape` (N, OH, OW, O)."""
    if k_chunk and groups > 1:
        raise NoForm("a convolution in channel groups whose reduction passes int32")
    channels = w.shape[1]
    chunk = k_chunk or channels
    sums = []
    for start in range(0, channels, chunk):
        end = min(start + chunk, channels)
        right, zero = exact(body, sliced(body, w, 1, start, end))
        for part, shift in parts:
            left = part if chunk == channels else sliced(body, part, 3, start, end)
            inputs = [transposed(body, left, FIRST), right]
            if zero is not None:
                inputs += [body.constant(0, left.dtype), zero]
            total = body.call(
                "ConvInteger",
                *inputs,
                dtype=torch.int32,
                shape=[shape[axis] for axis in FIRST],
                group=groups,
                **window,
            )
            sums.append((total, shift))
    total = summed(body, sums, torch.int64 if k_chunk else torch.int32)
    return transposed(body, total, LAST)


@emits(conv_fprop)
def _(call: Call) -> Value:
    parts = shifted_parts(call.body, call["x"], call["exponent"], call["shift_groups"])
    padding = list(call["padding"])
    result = convolved(
        call.body,
        parts,
        call["w"],
        call["groups"],
        call["k_chunk"],
        call.shape,
        strides=list(call["stride"]),
        pads=[*padding, *padding],
        dilations=list(call["dilation"]),
    )
    return accumulated(call, result)


@emits(conv_dgrad)
def _(call: Call) -> Value:
    """The gradient spread by the stride, padded to where windows begin and end, and the weight
    mirrored, with its channels for its filters."""
    body, g, w, groups = call.body, call["g"], call["w"], call["groups"]
    stride, padding, dilation = (list(call[n]) for n in ("stride", "padding", "dilation"))
    reach = [dilation[i] * (w.shape[2 + i] - 1) for i in range(2)]
    before, after = [0, 0, 0, 0], [0, 0, 0, 0]
    for i in range(2):
        before[1 + i] = reach[i] - padding[i]
        spread_size = (g.shape[1 + i] - 1) * stride[i] + 1
        after[1 + i] = call["input_shape"][1 + i] + reach[i] - before[1 + i] - spread_size
    parts = [
        (padded(body, spread(body, part, stride, (1, 2)), before, after), shift)
        for part, shift in shifted_parts(body, g, call["exponent"], call["shift_groups"])
    ]
    mirrored = flipped(body, flipped(body, w, 2), 3)
    filters, channels, kh, kw = w.shape
    grouped = reshaped(body, mirrored, [groups, filters // groups, channels, kh, kw])
    swapped = transposed(body, grouped, [0, 2, 1, 3, 4])
    weight = reshaped(body, swapped, [groups * channels, filters // groups, kh, kw])
    result = convolved(body, parts, weight, groups, call["k_chunk"], call.shape, dilations=dilation)
    return accumulated(call, result)


@emits(conv_wgrad)
def _(call: Call) -> Value:
    """For every tap (kh, kw) the pixels that its windows read; of all taps side by side, one
    product: (groups, O / groups, pixels) @ (groups, pixels, C / groups * taps)."""
    body, g, x, groups = call.body, call["g"], call["x"], call["groups"]
    stride, padding, dilation = (list(call[n]) for n in ("stride", "padding", "dilation"))
    filters, channels, kh, kw = call["weight_shape"]
    samples, oh, ow, _ = g.shape
    pixels = samples * oh * ow
    pads = [0, *padding, 0]
    image = padded(body, x, pads, pads)
    taps = []
    for top in range(kh):
        for left in range(kw):
            window = image
            for axis, place, count in ((1, top, oh), (2, left, ow)):
                start, step = place * dilation[axis - 1], stride[axis - 1]
                window = sliced(body, window, axis, start, start + (count - 1) * step + 1, step)
            taps.append(reshaped(body, window, [pixels, groups, channels, 1]))
    windows = transposed(body, joined(body, taps, 3), [1, 0, 2, 3])
    right = reshaped(body, windows, [groups, pixels, channels * kh * kw])
    parts = []
    for part, shift in shifted_parts(body, g, call["exponent"], call["shift_groups"]):
        rows = reshaped(body, part, [pixels, groups, filters // groups])
        parts.append((transposed(body, rows, [1, 2, 0]), shift))
    product = multiplied(body, parts, right, call["k_chunk"] * ow)
    return accumulated(call, reshaped(body, product, call.shape))


def _scattered(call: Call, g: Value, tap: Value | None, dilation: Sequence[int]) -> Value:
    """g, of every window, added by ascending tap to what the tap reads; with `tap`, only to the
    one that it names. What a tap does not reach gets +0.0, which changes no sum that began so."""
    body = call.body
    kernel, stride, padding = (list(call[n]) for n in ("kernel", "stride", "padding"))
    wide = spread(body, g, stride, (1, 2))
    names = None if tap is None else spread(body, tap, stride, (1, 2))
    zero = body.constant(0.0, g.dtype)
    total = body.filled(0.0, g.dtype, call.shape)
    for number in range(kernel[0] * kernel[1]):
        place = divmod(number, kernel[1])
        part = wide
        if names is not None:
            here = body.call("Equal", names, body.constant(number, torch.uint8), dtype=torch.bool)
            part = body.call("Where", here, wide, zero, dtype=g.dtype)
        before, after = [0, 0, 0, 0], [0, 0, 0, 0]
        for i in range(2):
            before[1 + i] = place[i] * dilation[i] - padding[i]
            after[1 + i] = call.shape[1 + i] - wide.shape[1 + i] - before[1 + i]
        total = body.call("Add", total, padded(body, part, before, after))
    return total


@emits(max_pool2d_backward)
def _(call: Call) -> Value:
    return _scattered(call, call["g"], call["tap"], list(call["dilation"]))


@emits(avg_pool2d_backward)
def _(call: Call) -> Value:
    size = call.body.constant(float(call["kernel"][0] * call["kernel"][1]), call.dtype)
    return _scattered(call, call.body.call("Div", call["g"], size), None, [1, 1])
