"""Emitter of stochastic rounding: carried from row to row, a loop over the rows of a run."""

import torch

from sqcompile.onnx.body import Body, Value
from sqcompile.onnx.dtypes import ONNX_TYPES
from sqcompile.onnx.elementwise import clamped, powers
from sqcompile.onnx.functions import write_call
from sqcompile.onnx.shapes import padded, reshaped, sliced
from sqcompile.onnx.table import Call, cast, emits
from sqcompile.ops.carried import BELOW_ONE, ROWS
from sqcompile.ops.philox import draws
from sqcompile.ops.quantize import TINY, limits, quantize_stochastic


@emits(quantize_stochastic)
def _(call: Call) -> Value:
    """t = (x / outer) * ((qmax / r) * 2^exponent), 0 where r < TINY, rounded by `_carried`."""
    body, x, r = call.body, call["x"], call["r"]
    low, high = limits(call["bits"], signed=True)
    scale = body.call("Div", body.constant(float(high), torch.float32), r)
    if call["exponent"] is not None:
        power = cast(body, powers(body, call["exponent"], torch.int32), torch.float32)
        scale = body.call("Mul", scale, power)
    scaled = x
    zero = body.constant(0.0, torch.float32)
    if call["outer"] is not None:
        one, outer = body.constant(1.0, torch.float32), call["outer"]
        inverse = _where_tiny(body, outer, zero, body.call("Div", one, outer))
        scaled = body.call("Mul", x, inverse)
    t = _where_tiny(body, r, zero, body.call("Mul", scaled, scale))
    return _carried(call, t, low, high)


def _where_tiny(body: Body, r: Value, one: Value, other: Value) -> Value:
    tiny = body.call("Less", r, body.constant(TINY, torch.float32), dtype=torch.bool)
    return body.call("Where", tiny, one, other, dtype=torch.float32)


def _carried(call: Call, t: Value, low: int, high: int) -> Value:
    """As sqcompile.ops.carried: of every column of 16 rows the first is rounded by a draw, each
    other one by what those before it left."""
    body = call.body
    columns = t.shape[-1] if t.shape else 1
    count = 1
    for size in t.shape:
        count *= size
    rows = count // columns
    blocks = -(-rows // ROWS)
    inside = reshaped(body, clamped(body, t, low - 1, high + 1), [rows, columns])
    whole = padded(body, inside, [0, 0], [blocks * ROWS - rows, 0])
    runs = reshaped(body, whole, [blocks, ROWS, columns])
    drawn = write_call(
        body, draws, {"rng": call["rng"], "n": blocks * columns, "stream": call["stream"]}
    )
    start = cast(body, reshaped(body, drawn, [blocks, columns]), torch.float32)
    start = body.call("Add", start, body.constant(0.5, torch.float32))
    start = body.call("Mul", start, body.constant(2.0**-16, torch.float32))
    carries, wholes = _loop(body, runs, start)
    q = reshaped(body, wholes, [blocks * ROWS, columns])
    q = clamped(body, sliced(body, q, 0, 0, rows), low, high)
    q = body.call("Cast", q, dtype=torch.int8, to=ONNX_TYPES[torch.int8])
    return reshaped(body, q, t.shape)


def _loop(body: Body, runs: Value, start: Value) -> tuple[Value, Value]:
    """A Scan over the rows of all blocks: v = t + c, f = floor(v), c = v - f, below 1 -> (c,
    every f)."""
    inner = body.part("row")
    carry, row = inner.fresh("carry", start), inner.fresh("row", start)
    v = inner.call("Add", row, carry)
    f = inner.call("Floor", v)
    most = inner.constant(BELOW_ONE, torch.float32)
    rest = inner.call("Min", inner.call("Sub", v, f), most)
    graph = inner.graph("row", [carry, row], [rest, f])
    results = [body.fresh("carry", start), body.fresh("whole", runs)]
    body.several(
        "Scan",
        [start, runs],
        results,
        body=graph,
        num_scan_inputs=1,
        scan_input_axes=[1],
        scan_output_axes=[1],
    )
    return results[0], results[1]
