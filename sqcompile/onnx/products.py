"""Emitters of integer matrix products: MatMulInteger, with the groups' shifts in the operand.

Accumulators are int32, as the pass `bound_accumulators` proved; with k_chunk they are int64 sums of
int32 partial sums. Operands and their bytes are chosen so that no engine saturates: see `exact`.
"""

import torch

from sqcompile.onnx.body import Body, Value
from sqcompile.onnx.elementwise import powers
from sqcompile.onnx.shapes import sliced, transposed
from sqcompile.onnx.table import Call, cast, emits
from sqcompile.ops.product import shift_matmul

PAIR = 2**15 - 1
"""What two products in a row may add up to where an engine sums pairs in 16 bits."""
BYTE = 255
"""The largest byte: signed ones are biased to unsigned inside of engines."""

Operand = tuple[Value, Value | None]
"""Bytes and their zero point, None for zero."""


def exact(body: Body, b: Value) -> Operand:
    """The second operand of a product, which any x86 sums exactly.

    Without VNNI, kernels add two products of an unsigned and a signed byte in 16 bits, which
    saturates where 2 * 255 * |b| passes 32767. Such operands (8-bit weights) are given as unsigned
    bytes with the zero point 128, for which kernels widen first.
    """
    largest = 128 if b.largest is None else b.largest
    if b.dtype == torch.uint8 or 2 * BYTE * largest <= PAIR:
        return b, None
    wide = cast(body, b, torch.int16)
    raised = body.call("Add", wide, body.constant(128, torch.int16))
    return cast(body, raised, torch.uint8), body.constant(128, torch.uint8)


def shifted_parts(
    body: Body, q: Value, exponent: Value | None, groups: int
) -> list[tuple[Value, int]]:
    """Bytes and how far each result is shifted left afterwards: their sum is the product of
    q << (groups - 1 - exponent).

    One part wherever the shifted integers are bytes, which all built-in recipes see to; else one
    for every group, of its integers alone.
    """
    if exponent is None:
        return [(q, 0)]
    limit = 127 if q.dtype == torch.int8 else BYTE
    largest = (limit + 1 if q.dtype == torch.int8 else limit) if q.largest is None else q.largest
    if largest << (groups - 1) <= limit:
        top = body.constant(groups - 1, torch.int8)
        power = powers(body, body.call("Sub", top, exponent), q.dtype)
        return [(body.call("Mul", q, power, largest=largest << (groups - 1)), 0)]
    zero, parts = body.constant(0, q.dtype), []
    for group in range(groups):
        own = body.constant(group, torch.int8)
        here = body.call("Equal", exponent, own, dtype=torch.bool)
        part = body.call("Where", here, q, zero, dtype=q.dtype, largest=q.largest)
        parts.append((part, groups - 1 - group))
    return parts


def summed(body: Body, parts: list[tuple[Value, int]], dtype: torch.dtype) -> Value:
    """int32 sums, each shifted left, added up in `dtype`."""
    total: Value | None = None
    for part, shift in parts:
        wide = cast(body, part, dtype)
        if shift:
            wide = body.call("Mul", wide, body.constant(1 << shift, dtype))
        total = wide if total is None else body.call("Add", total, wide)
    assert total is not None
    return total


def multiplied(body: Body, parts: list[tuple[Value, int]], b: Value, k_chunk: int) -> Value:
    """(.., M, K) of `shifted_parts` and bytes (.., K, N) -> int32, or int64 with k_chunk."""
    length = b.shape[-2]
    chunk = k_chunk or max(length, 1)
    sums = []
    for start in range(0, max(length, 1), chunk):
        end = min(start + chunk, length)
        right, zero = exact(body, sliced(body, b, len(b.shape) - 2, start, end))
        for part, shift in parts:
            left = sliced(body, part, len(part.shape) - 1, start, end)
            shape = [*left.shape[:-1], right.shape[-1]]
            point = None if zero is None else body.constant(0, left.dtype)
            inputs = [left, right] + ([] if zero is None else [point, zero])
            product = body.call("MatMulInteger", *inputs, dtype=torch.int32, shape=shape)
            sums.append((product, shift))
    return summed(body, sums, torch.int64 if k_chunk else torch.int32)


def accumulated(call: Call, value: Value) -> Value:
    """Note a product's accumulators, which tests compare, under the name of its node."""
    call.body.accumulators[call.body.prefix or call.node.name] = value
    return value


@emits(shift_matmul)
def _(call: Call) -> Value:
    body, a, b = call.body, call["a"], call["b"]
    rank = len(a.shape)
    swap = [*range(rank - 2), rank - 1, rank - 2]
    parts = shifted_parts(body, a, call["exponent"], call["groups"])
    if call["transpose_a"]:
        parts = [(transposed(body, part, swap), shift) for part, shift in parts]
    if call["transpose_b"]:
        b = transposed(body, b, swap)
    return accumulated(call, multiplied(body, parts, b, call["k_chunk"]))
