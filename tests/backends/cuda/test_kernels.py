"""Every CUDA kernel gives its reference's bits: compiled by NVRTC, run by the PTX emulator, on the
cases of the CPU's kernels. The emulator also finds accesses out of bounds, races and reads of
memory that nobody wrote."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from sqcompile.backends.cpu import KERNELS as CPU_KERNELS
from sqcompile.backends.cuda import KERNELS
from tests.backends import cases_product
from tests.backends.cases import Case, tensors
from tests.backends.catalogue import all_cases
from tests.backends.cuda.emulated import Emulated, emulated, wrong
from tests.conftest import require_tool

CASES = [case for case in all_cases() if case.spec().op in KERNELS]
PRODUCTS = {
    f"sq::{op}"
    for family in (cases_product.products, cases_product.convolutions)
    for op, _, _ in family()
}
"""Ops whose kernels may call PTX: tensor cores, and what feeds them."""
LONG = {
    "sq::l1_batch_norm_backward_quantize",
    "sq::l1_group_norm_backward",
    "sq::l1_group_norm_packed_backward",
    "sq::l1_layer_norm_packed_backward",
    "sq::quantize_l1_layer_norm_backward",
}
"""Ops of which PoCL takes seconds to compile a kernel; others are made of the same parts."""
FAST = 1
"""Cases of each op that always run, and as many with groups of activations. The second case of an
op always runs in `test_opencl`; that of what takes long there runs here, and more products run in
`test_products`."""


def _parameters() -> list[Any]:
    seen: Counter[tuple[str, bool]] = Counter()
    found = []
    for case in CASES:
        kind = op, _ = case.spec().op, "grouped" in case.name
        seen[kind] += 1
        fast = FAST + (op in LONG)
        marks = [pytest.mark.exhaustive] if seen[kind] > fast else []
        found.append(pytest.param(case, id=case.name, marks=marks))
    return found


@pytest.fixture(scope="module")
def kernels(request: pytest.FixtureRequest) -> Emulated:
    """The kernels of the cases that this run selected."""
    require_tool("g++")
    chosen: dict[str, Case] = {}
    for item in request.session.items:
        values: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
        if item.path == request.path and isinstance(values.get("case"), Case):
            chosen[values["case"].name] = values["case"]
    return emulated({name: case.spec() for name, case in chosen.items()})


def check(case: Case, run: Callable[[str, Sequence[torch.Tensor]], None]) -> None:
    """run(case, inputs and outputs) writes the reference's bits."""
    arguments, spec = case.arguments(), case.spec()
    wanted = case.expected(arguments)
    # Rubbish in the outputs shows what a kernel forgets to write.
    outputs = [torch.full(o.shape, 77).to(getattr(torch, o.dtype)) for o in spec.outputs]
    run_time = KERNELS[spec.op].run_time
    scalars = [torch.tensor([spec[name] for name in run_time])] if run_time else []
    inputs = [one.clone() for one in tensors(arguments)]
    run(case.name, [*inputs, *scalars, *outputs])
    for got, want in zip(outputs, wanted, strict=True):
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        places = wrong(got, want).reshape(-1).nonzero().reshape(-1)
        assert not len(places), (
            f"{case.name}: {len(places)} of {got.numel()} differ, the first at {int(places[0])}: "
            f"{got.reshape(-1)[places[0]]} instead of {want.reshape(-1)[places[0]]}"
        )


@pytest.mark.parametrize("case", _parameters())
def test_kernel_equals_reference(case: Case, kernels: Emulated) -> None:
    check(case, kernels.run)


def test_every_op_of_the_cpu_has_a_kernel() -> None:
    """A new op has a CUDA kernel from its first day."""
    assert set(KERNELS) == set(CPU_KERNELS)


def test_run_time_attributes_are_those_of_the_cpu() -> None:
    """The same vector of scalars reaches the kernels of every target."""
    assert {op: KERNELS[op].run_time for op in KERNELS} == {
        op: CPU_KERNELS[op].run_time for op in KERNELS
    }


def test_no_float_operation_may_be_contracted(kernels: Emulated) -> None:
    """Every product and every sum in the PTX names its rounding."""
    assert kernels.module.contractible == []
