"""Every kernel gives its reference's bits, on this CPU and on older ones."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sqcompile.backends import targets
from sqcompile.backends.cpu import KERNELS
from sqcompile.backends.cpu.machine import machine
from sqcompile.ops import OPS, norm_float, product_float
from tests.backends.cases import Case, tensors
from tests.backends.catalogue import all_cases
from tests.backends.conftest import OLDER_CPUS, Compiled, compile_cases

CASES = all_cases()
WITHOUT_PERMUTATIONS = "cascadelake"
"""A CPU with AVX-512 VNNI that cannot permute bytes: sorted reductions are packed otherwise."""
OTHER_VECTORS = (
    "shift_matmul_dequantize-placed-apart",
    "shift_matmul_dequantize-placed-turned",
    "conv_dgrad_dequantize-tail",
    "l1_layer_norm_backward-long",
)
"""How the names of cases begin that differ where vectors are shorter: where results begin, how
many lanes a sum has."""
FUSED = re.compile(r"\bv?p?fn?m(?:add|sub)\w*")
"""x86 instructions that round a product and a sum once."""


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Floats as integers, so that zeros differ by their sign."""
    return tensor.view(torch.int32) if tensor.dtype == torch.float32 else tensor


def displaced(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that begins one element after an aligned address: kernels assume no alignment."""
    return torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape).copy_(tensor)


def report(case: Case, mcpu: str, got: torch.Tensor, want: torch.Tensor) -> str:
    """What differs and the command that shows it again."""
    wrong = (bits(got) != bits(want)).reshape(-1).nonzero().reshape(-1)
    first = int(wrong[0])
    return (
        f"{case.name}: {len(wrong)} of {got.numel()} differ, the first at {first}: "
        f"{got.reshape(-1)[first]} instead of {want.reshape(-1)[first]}\n"
        f"pytest 'tests/backends/test_kernels.py::test_kernel_equals_reference"
        f"[{case.name}-{mcpu or 'host'}]'"
    )


def on_each_cpu() -> list[Any]:
    """All cases on this CPU, two of each op (and two with groups of activations) on the older ones:
    their kernels differ only in what LLVM makes of them."""
    found = [pytest.param(case, "", id=f"{case.name}-host") for case in CASES]
    seen: Counter[tuple[str, bool]] = Counter()
    for case in CASES:
        kind = case.name.partition("-")[0], "grouped" in case.name
        seen[kind] += 1
        if seen[kind] <= 2 or case.name.startswith(OTHER_VECTORS):
            found += [pytest.param(case, cpu, id=f"{case.name}-{cpu}") for cpu in OLDER_CPUS]
        if "shift_matmul-sorted" in case.name and _has_vnni():
            cpu = WITHOUT_PERMUTATIONS
            found.append(pytest.param(case, cpu, id=f"{case.name}-{cpu}"))
    return found


def _has_vnni() -> bool:
    with targets.get("cpu").compiled_for():
        return machine().dot.bytes


@pytest.mark.parametrize(("case", "mcpu"), on_each_cpu())
def test_kernel_equals_reference(
    case: Case, mcpu: str, compiled: Callable[[str], Compiled]
) -> None:
    arguments = case.arguments()
    spec = case.spec()
    wanted = case.expected(arguments)
    # Rubbish in the outputs shows what a kernel forgets to write.
    outputs = [displaced(torch.full(o.shape, 77).to(getattr(torch, o.dtype))) for o in spec.outputs]
    run_time = KERNELS[spec.op].run_time
    scalars = [torch.tensor([spec[name] for name in run_time])] if run_time else []
    inputs = [displaced(one) for one in tensors(arguments)]
    compiled(mcpu).functions[case.name](*inputs, *scalars, *outputs)
    for got, want in zip(outputs, wanted, strict=True):
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        assert torch.equal(bits(got), bits(want)), report(case, mcpu, got, want)


@pytest.mark.parametrize("mcpu", ["", "x86-64-v3"], ids=["host", "x86-64-v3"])
def test_no_instruction_rounds_a_product_and_a_sum_at_once(mcpu: str) -> None:
    floats = [case for case in CASES if case.spec().outputs[0].dtype in ("float32", "int8")]
    smallest = {case.spec().op: case for case in floats}
    compiled = compile_cases(list(smallest.values()), mcpu)
    assert not FUSED.findall(compiled.assembly())


def test_every_op_has_a_kernel_and_every_kernel_a_case() -> None:
    before_the_passes = {norm_float.__name__, product_float.__name__}
    left = {name for name, op in OPS.items() if op.reference.__module__ not in before_the_passes}
    assert left <= set(KERNELS)
    covered = {case.spec().op for case in CASES}
    assert set(KERNELS) <= covered


def test_a_second_kernel_for_an_op_is_an_error() -> None:
    with pytest.raises(ValueError, match="sq::quantize has a kernel for target 'cpu' already"):
        KERNELS.kernel("sq::quantize")(lambda spec: None)
