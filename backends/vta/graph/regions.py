"""What a function for the code generator consists of, as Relax's passes left it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import tvm
from tvm import relax


class Source(NamedTuple):
    """Where a kernel's operand comes from: the region's parameter with this number, or what its
    step with this number gives."""

    is_step: bool
    number: int


class Step(NamedTuple):
    """Kernels that one pattern took, each reading the one before; the first one's operands; the
    type of what the last one gives."""

    kernels: tuple[str, ...]
    operands: tuple[Source, ...]
    result: Any


class Region(NamedTuple):
    """Steps in order, the numbers of those whose results leave the region, and whether they do so
    as a tuple."""

    steps: tuple[Step, ...]
    results: tuple[int, ...]
    several: bool


def region_of(function: relax.Function) -> Region:
    """Read a function that calls composite functions, as MergeCompositeFunctions makes it."""
    sources = {one: Source(False, number) for number, one in enumerate(function.params)}
    composites: dict[Any, relax.Function] = {}
    steps: list[Step] = []
    tuples: dict[Any, Any] = {}
    for var, value in _bindings(function):
        if isinstance(value, relax.Function):
            composites[var] = value
        elif isinstance(value, relax.Call):
            given = [sources[one] for one in value.args]
            sources[var] = Source(True, len(steps))
            steps.append(_step(composites[value.op], given, var.ty))
        elif isinstance(value, relax.Tuple):
            tuples[var] = value
        else:
            sources[var] = sources[value]
    left = function.body.body
    left = tuples.get(left, left)
    several = isinstance(left, relax.Tuple)
    results = tuple(sources[one].number for one in (left.fields if several else [left]))
    return Region(tuple(steps), results, several)


def _step(composite: relax.Function, given: Sequence[Source], result: Any) -> Step:
    sources = dict(zip(composite.params, given, strict=True))
    calls = [value for _, value in _bindings(composite) if isinstance(value, relax.Call)]
    assert all(call.op == tvm.ir.Op.get("relax.call_tir") for call in calls)
    kernels = tuple(call.args[0].name_hint for call in calls)
    return Step(kernels, tuple(sources[one] for one in calls[0].args[1].fields), result)


def _bindings(function: relax.Function) -> list[tuple[Any, Any]]:
    return [
        (binding.var, binding.value) for block in function.body.blocks for binding in block.bindings
    ]
