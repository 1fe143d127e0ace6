"""The products where they are not what the oldest architecture makes of them: asynchronous copies
and m16n8k32 from sm_80 on, dp4a without matrix instructions; and the machine code of all."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from sqcompile.backends.cuda import architectures, sass
from sqcompile.backends.cuda.architectures import ARCHITECTURES
from sqcompile.backends.cuda.nvrtc import compile_source
from sqcompile.backends.cuda.split import SplitKernel
from sqcompile.backends.kernels import KernelSpec
from tests.backends.cases import Case, tensors
from tests.backends.catalogue import all_cases
from tests.backends.cuda.emulated import Emulated, emulated, joined, split_kernels, wrong
from tests.conftest import require_tool

NAMES = (
    # words made of bytes, planes of an unsigned operand
    "shift_matmul-37x33x45-n-0",
    # 64-bit sums in slices and planes
    "shift_matmul-3x37x33x45-n-7",
    # a shifted operand in one plane, copied; three planes
    "shift_matmul-s4-s4-G4-nt-0",
    "shift_matmul-s8-s8-G12-tnt-0",
    # copies of both operands
    "shift_matmul-sorted-one-group",
    # words, blocks
    "shift_matmul-batches",
    "shift_matmul_dequantize-placed-digits",
    "shift_matmul_dequantize_absmax-nan",
    # a long reduction in slices
    "shift_matmul-segments",
    # images: copies, phases, blocks, bytes
    "conv_fprop_dequantize-9x8x8x16-32x16x3x3-1x1x1x1-4-4",
    "conv_dgrad_dequantize-2x10x10x64-80x64x3x3-2x2x1x1-4-4",
    "conv_wgrad-2x10x10x64-80x64x3x3-2x2x1x1-4-4",
    "conv_wgrad_dequantize-2x9x7x4-6x2x3x2-2x1x1x2-8-4",
    # three and five channels: an image that is packed, two planes
    "conv_fprop_dequantize-5x9x7x3-5x3x3x3-1x1x1x1-6-4",
    "conv_dgrad-5x9x7x3-5x3x3x3-1x1x1x1-6-4",
)
CASES = {case.name: case for case in all_cases() if case.name in NAMES}
SLOW = (NAMES[1], NAMES[3], NAMES[6], NAMES[8], *NAMES[10:14])
"""Whose ways to bring operands others take too."""
GATED = (NAMES[0], NAMES[2], NAMES[1], NAMES[6], NAMES[9], NAMES[11], *NAMES[13:])
"""Whose machine code is looked at: of every way to bring operands, and to finish results."""
LIKE_SM_80 = ("sm_86", "sm_89")
"""Architectures whose code is of sm_80's source, with its instructions."""
WITHOUT_MATRICES = "sm_75"
"""The architecture that plays one without matrix instructions."""


def checked(case: Case, kernels: Emulated) -> None:
    """Run a case, and compare its results with the reference's."""
    arguments, spec = case.arguments(), case.spec()
    wanted = case.expected(arguments)
    outputs = [torch.full(o.shape, 77).to(getattr(torch, o.dtype)) for o in spec.outputs]
    kernels.run(case.name, [*(one.clone() for one in tensors(arguments)), *outputs])
    for got, want in zip(outputs, wanted, strict=True):
        assert not wrong(got, want).any()


def specs(names: tuple[str, ...]) -> dict[str, KernelSpec]:
    """What the cases ask for."""
    return {name: CASES[name].spec() for name in names}


@pytest.fixture(scope="module")
def on_sm_80(request: pytest.FixtureRequest) -> Emulated:
    """The kernels of the cases that this run selected."""
    require_tool("g++")
    names = []
    for item in request.session.items:
        values = getattr(getattr(item, "callspec", None), "params", {})
        if item.path == request.path and "name" in values:
            names.append(values["name"])
    return emulated(specs(tuple(names)), "sm_80")


def test_the_cases_are_there() -> None:
    assert set(CASES) == set(NAMES)


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=[pytest.mark.exhaustive] if one in SLOW else []) for one in NAMES],
)
def test_products_on_sm_80_equal_their_references(name: str, on_sm_80: Emulated) -> None:
    checked(CASES[name], on_sm_80)


@pytest.fixture
def no_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    old = replace(architectures.get(WITHOUT_MATRICES), mma=(), ldmatrix=False)
    monkeypatch.setitem(ARCHITECTURES, WITHOUT_MATRICES, old)


@pytest.mark.slow
def test_products_by_dp4a_equal_their_references(no_matrices: None) -> None:
    require_tool("g++")
    names = NAMES[:3]
    kernels = emulated(specs(names), WITHOUT_MATRICES)
    for name in names:
        checked(CASES[name], kernels)


def gate(kernels: Mapping[str, SplitKernel], arch: str, instruction: str) -> None:
    """Nothing spills, and every launch that has tiles in shared memory multiplies by
    `instruction`."""
    source = joined([kernel.source for kernel in kernels.values()])
    compiled = compile_source(source, architectures.get(arch))
    listed = sass.instructions(sass.disassemble({"all": compiled.cubin}, arch)["all"])
    products = {name for name, used in compiled.usage.items() if used.shared}
    assert len(products) >= len(kernels)
    for name, used in compiled.usage.items():
        assert (used.spill_stores, used.spill_loads) == (0, 0), name
        if name in products:
            assert _multiplies(listed[name], instruction), name


def _multiplies(found: Mapping[str, int], instruction: str) -> bool:
    return any(one.startswith(instruction) for one in found)


@pytest.mark.parametrize(
    "arch",
    [
        pytest.param(arch, marks=[pytest.mark.exhaustive] if arch in LIKE_SM_80 else [])
        for arch in ARCHITECTURES
    ],
)
def test_products_use_tensor_cores_and_spill_nothing(arch: str) -> None:
    gate(split_kernels(specs(GATED), arch), arch, "IMMA.8816" if arch == "sm_75" else "IMMA.16832")


def test_products_without_tensor_cores_use_dp4a(no_matrices: None) -> None:
    kernels = split_kernels(specs(GATED[:2]), WITHOUT_MATRICES)
    gate(kernels, WITHOUT_MATRICES, "IDP.4A")
