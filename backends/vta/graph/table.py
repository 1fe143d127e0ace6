"""The kernels of the VTA target: those of the CPU; what may become programs tells what it computes.

Each of these is lowered to the CPU's kernel first, with its spec beside it; what the accelerator
takes over is decided on the whole module (`partition`), and what it cannot stays as it is.
"""

import json
from dataclasses import replace
from functools import wraps
from typing import Any

from sqcompile.backends.cpu import KERNELS as HOST
from sqcompile.backends.kernels import Attribute, Generator, Kernel, KernelSpec, TensorSpec

PRODUCTS = ("sq::shift_matmul", "sq::conv_fprop", "sq::conv_dgrad", "sq::conv_wgrad")
"""The products that the accelerator computes; `passes.plain_products` leaves no others."""
SUM = "aten::sum.dim_IntList"
"""The sum of accumulators that a batch norm starts from."""
RELU = "aten::relu.default"
"""Of accumulators: part of their product's program."""
SPEC = "sqcompile.spec"
"""The attribute of a kernel that says what it computes, as JSON."""


def _described(generate: Generator) -> Generator:
    """A generator whose kernels carry their specs."""

    @wraps(generate)
    def described(spec: KernelSpec) -> object:
        return generate(spec).with_attr(SPEC, spec_json(spec))

    return described


def _of_integers(generate: Generator) -> Generator:
    """The same for kernels of accumulators alone."""
    described = _described(generate)

    @wraps(generate)
    def chosen(spec: KernelSpec) -> object:
        return (described if spec.outputs[0].dtype == "int32" else generate)(spec)

    return chosen


def spec_json(spec: KernelSpec) -> str:
    """A spec as text; `spec_from` reads it."""
    inputs = {
        name: None if one is None else [one.shape, one.dtype]
        for name, one in spec.inputs
        if one is None or isinstance(one, TensorSpec)
    }
    outputs = [[one.shape, one.dtype] for one in spec.outputs]
    attributes = dict(spec.attributes)
    return json.dumps([spec.op, inputs, attributes, outputs])


def spec_from(text: str) -> KernelSpec:
    """The spec that `spec_json` wrote."""
    op, inputs, attributes, outputs = json.loads(text)
    return KernelSpec(
        op,
        tuple((name, None if one is None else _tensor(one)) for name, one in inputs.items()),
        tuple((name, _frozen(value)) for name, value in attributes.items()),
        tuple(map(_tensor, outputs)),
    )


def _tensor(one: list[Any]) -> TensorSpec:
    shape, dtype = one
    return TensorSpec(tuple(shape), dtype)


def _frozen(value: Any) -> Attribute:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


KERNELS = HOST.derived(
    "vta",
    {op: Kernel(_described(HOST[op].generate), limit=HOST[op].limit) for op in (*PRODUCTS, SUM)}
    | {RELU: replace(HOST[RELU], generate=_of_integers(HOST[RELU].generate))},
)
