"""Lowered modules for the CUDA target, made of the small kernels, and what they compute."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tests.backends.cuda import kernels

Values = dict[str, np.ndarray[Any, Any]]


def module(*calls: tuple[Any, Mapping[str, tuple[tuple[int, ...], str]], tuple[Any, ...]]) -> Any:
    """A module whose function "forward" calls every kernel on its own inputs and returns a tuple
    of their results; a call is (kernel, inputs by name, (shape, dtype) of the result)."""
    builder = relax.BlockBuilder()
    parameters = [
        [relax.Var(name, relax.TensorType(shape, dtype)) for name, (shape, dtype) in inputs.items()]
        for _, inputs, _ in calls
    ]
    with builder.function("forward", [one for group in parameters for one in group]):
        with builder.dataflow():
            results = []
            for (kernel, _, (shape, dtype)), group in zip(calls, parameters, strict=True):
                name = str(kernel.attrs["global_symbol"])
                variable = builder.add_func(kernel, name)
                result = relax.TensorType(shape, dtype)
                call = relax.call_tir(variable, relax.Tuple(group), result)
                results.append(builder.emit(call))
            outputs = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(outputs)
    return builder.get()


def two_floats(n: int = 1000) -> Any:
    """forward(a, b, c) = scaled_sum(a, b), reversed_blocks(c)."""
    vector = ((n,), "float32")
    return module(
        (kernels.scaled_sum(n), {"a": vector, "b": vector}, vector),
        (kernels.reversed_blocks(n), {"c": vector}, vector),
    )


def two_floats_values(n: int = 1000) -> tuple[list[Any], list[Any]]:
    """Inputs of `two_floats`, and its results with one rounding an operation."""
    draw = np.random.default_rng(3).standard_normal
    a, b, c = (draw(n).astype(np.float32) for _ in range(3))
    first = a * np.float32(1.1) + b
    second = (c * np.float32(2))[::-1] + np.float32(1)
    return [a, b, c], [first, second]


def products() -> Any:
    """forward(a, b, c, d) = dot_products(a, b), tile_product(c, d)."""
    words, tiles = ((24, 16), "int32"), (3, 16, 32)
    return module(
        (kernels.dot_products(), {"a": words, "b": words}, ((24, 24), "int32")),
        (
            kernels.tile_product(),
            {"c": (tiles, "int8"), "d": ((3, 8, 32), "int8")},
            ((3, 16, 8), "int32"),
        ),
    )


def compiled(source: Any, arch: str) -> Any:
    """`source` as a Binary for the architectures `arch`."""
    from sqcompile.backends import targets
    from sqcompile.backends.cuda.build import build

    target = targets.get("cuda", arch=arch)
    return build(*(tvm.IRModule(source.functions) for _ in target.machines()), target=target)
