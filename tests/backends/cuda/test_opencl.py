"""CUDA's schedules, checked without CUDA: the same kernels as OpenCL C, compiled and run by PoCL,
give the references' bits. Kernels that call PTX of their own are skipped and say what they call."""

import os
from typing import Any

import pytest

from tests.backends.cases import Case
from tests.backends.cuda.opencl import OpenCL, in_opencl, without_opencl
from tests.backends.cuda.test_kernels import CASES, LONG, PRODUCTS, check
from tests.conftest import REQUIRE_TOOLS

PLATFORM = "Portable Computing Language"


def _parameters() -> list[Any]:
    """One case of each op is always run, the second where there is one, but for products and what
    takes long to compile."""
    of_op: dict[str, list[Case]] = {}
    for case in CASES:
        of_op.setdefault(case.spec().op, []).append(case)
    fast = [cases[:2][-1] for op, cases in of_op.items() if op not in PRODUCTS | LONG]
    chosen = {case.name for case in fast}
    return [
        pytest.param(
            case, id=case.name, marks=[] if case.name in chosen else [pytest.mark.exhaustive]
        )
        for case in CASES
    ]


def _unavailable(reason: str) -> None:
    if os.environ.get(REQUIRE_TOOLS) == "1":
        pytest.fail(f"{reason}: name its package in .ci/packages")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """PoCL's CPU; nothing that it compiles is kept."""
    folder = tmp_path_factory.mktemp("pocl")
    os.environ |= {"PYOPENCL_NO_CACHE": "1", "POCL_CACHE_DIR": str(folder)}
    try:
        import pyopencl as cl

        platforms = cl.get_platforms()
    except ImportError as error:  # the package, or libOpenCL.so.1
        _unavailable(f"pyopencl: {error}")
    except cl.LogicError:
        platforms = []
    for platform in platforms:
        if platform.name == PLATFORM:
            return platform.get_devices()[0]
    return _unavailable("PoCL (pocl-opencl-icd) is not installed")


@pytest.fixture(scope="module")
def kernels(request: pytest.FixtureRequest, device: Any) -> tuple[OpenCL, dict[str, list[str]]]:
    """The kernels of the cases that this run selected, and what those call that are left out."""
    chosen: dict[str, Case] = {}
    for item in request.session.items:
        values: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
        if item.path == request.path and isinstance(values.get("case"), Case):
            chosen[values["case"].name] = values["case"]
    made = in_opencl({name: case.spec() for name, case in chosen.items()})
    left_out = without_opencl(made)
    kept = {name: kernel for name, kernel in made.items() if name not in left_out}
    return OpenCL(kept, device), left_out


@pytest.mark.parametrize("case", _parameters())
def test_kernel_equals_reference(case: Case, kernels: tuple[OpenCL, dict[str, list[str]]]) -> None:
    program, left_out = kernels
    if case.name in left_out:
        assert case.spec().op in PRODUCTS
        pytest.skip(f"calls {', '.join(left_out[case.name])}")
    check(case, program.run)
