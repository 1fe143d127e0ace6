"""Small PTX modules, written for one test each."""

import random

import numpy as np

from sqcompile.backends.cuda.emulator import emulate

BYTES = {8: "b16", 16: "b16", 32: "b32", 64: "b64"}


def module(parameters, body, before=""):
    """A module with one kernel k; registers %p, %h (16 bits), %r, %d (64 bits), %f as many as one
    wants. `parameters`: names, all addresses, or ".type name"."""
    listed = ", ".join(f".param {p if p[0] == '.' else '.u64 ' + p}" for p in parameters.split())
    listed = listed.replace("~", " ")
    return f"""
.version 8.0
.target sm_80
.address_size 64
{before}
.visible .entry k({listed})
{{
  .reg .pred %p<32>;
  .reg .b16 %h<32>;
  .reg .b32 %r<64>;
  .reg .f32 %f<32>;
  .reg .b64 %d<64>;
  .reg .f64 %g<16>;
{body}
}}
"""


def run(text, grid, block, *arguments, **options):
    """Launch kernel k of a text."""
    emulate(text).launch("k", grid, block, arguments, **options)


def kind_of(array):
    """The PTX type of an array's elements, and its bits."""
    bits = array.dtype.itemsize * 8
    return f"{array.dtype.kind.replace('i', 's')}{bits}", bits


def evaluate(operations, **inputs):
    """Results of one-instruction operations on arrays of one length.

    operations: name -> (text with %out and %NAME of inputs, dtype of the result). In one kernel,
    a thread per element. Predicates are results as bool.
    """
    (count,) = {len(array) for array in inputs.values()}
    block = 128
    padded = -(-count // block) * block
    arrays = {name: np.resize(array, padded) for name, array in inputs.items()}
    results = {name: np.zeros(padded, dtype) for name, (_, dtype) in operations.items()}
    lines = ["mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x;"]
    lines.append("mad.lo.u32 %r3, %r1, %r2, %r0; cvt.u64.u32 %d0, %r3;")
    for number, (name, array) in enumerate(arrays.items()):
        kind, bits = kind_of(array)
        lines.append(f".reg .{BYTES[bits]} %{name}; ld.param.u64 %d1, [i{number}];")
        lines.append(f"mad.lo.u64 %d1, %d0, {bits // 8}, %d1;")
        lines.append(f"ld.global.{kind if bits == 8 else f'b{bits}'} %{name}, [%d1];")
    for number, (name, (text, _)) in enumerate(operations.items()):
        array = results[name]
        _, bits = kind_of(array)
        predicate = array.dtype == bool
        register = "pred" if predicate else BYTES[bits]
        lines.append(f"{{ .reg .{register} %out; .reg .b16 %byte; {text}")
        lines.append(f"ld.param.u64 %d1, [o{number}]; mad.lo.u64 %d1, %d0, {bits // 8}, %d1;")
        if predicate:
            lines.append("selp.b16 %byte, 1, 0, %out; st.global.b8 [%d1], %byte; }")
        else:
            lines.append(f"st.global.b{bits} [%d1], %out; }}")
    names = [f"i{n}" for n in range(len(arrays))] + [f"o{n}" for n in range(len(results))]
    text = module(" ".join(names), "\n".join([*lines, "ret;"]))
    run(text, padded // block, block, *arrays.values(), *results.values())
    return {name: array[:count] for name, array in results.items()}


def crossed(*choices):
    """Arrays with every combination of the choices."""
    return [grid.reshape(-1) for grid in np.meshgrid(*choices, indexing="ij")]


def edges(bits, signed, extra=8, seed=0):
    """Integers where carries and signs change, and some at random."""
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    near = [low, low + 1, -2, -1, 0, 1, 2, 7, high // 3, high - 1, high]
    generator = random.Random(seed)
    some = [generator.randint(low, high) for _ in range(extra)]
    dtype = f"{'i' if signed else 'u'}{bits // 8}"
    return np.array(sorted({v for v in [*near, *some] if low <= v <= high}), dtype)
