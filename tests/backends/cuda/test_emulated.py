"""A binary for GPUs without one: the virtual machine on the CPU, kernels in the PTX emulator."""

import re
from dataclasses import replace

import pytest
import torch
import tvm_ffi

from sqcompile.backends.cuda.emulated import distinct_architectures
from sqcompile.backends.cuda.emulator import Fault
from sqcompile.errors import InputError, TargetUnavailableError, UsageError
from sqcompile.runtime.executable import Binary, Executable
from tests.backends.cuda.conftest import _has_gpu
from tests.backends.cuda.modules import compiled, two_floats, two_floats_values


@pytest.fixture(scope="module")
def binary() -> Binary:
    return compiled(two_floats(), "sm_75,sm_80")


def test_launches_workspaces_and_shared_memory_give_the_right_bits(binary: Binary) -> None:
    executable = Executable(binary)
    executable.emulate()
    inputs, expected = two_floats_values()
    results = executable.function("forward")(*map(torch.from_numpy, inputs))
    for result, wanted in zip(results, expected, strict=True):
        assert result.numpy().tobytes() == wanted.tobytes()


def test_kernels_are_global_functions_only_while_they_are_linked(binary: Binary) -> None:
    Executable(binary).emulate("sm_80")
    assert tvm_ffi.get_global_func("scaled_sum", allow_missing=True) is None


def test_what_a_kernel_does_wrong_is_raised_as_what_it_is(binary: Binary) -> None:
    ptx = binary.images["sm_80/scaled_sum.ptx"].decode()
    wrong = re.sub(r"(st\.global\.f32\s+\[%rd\d+)\]", r"\1+400000]", ptx)
    assert wrong != ptx
    images = binary.images | {"sm_80/scaled_sum.ptx": wrong.encode()}
    executable = Executable(replace(binary, images=images))
    executable.emulate("sm_80")
    inputs, _ = two_floats_values()
    with pytest.raises(Fault, match="scaled_sum_kernel"):
        executable.function("forward")(*map(torch.from_numpy, inputs))


def test_architectures_with_the_same_source_are_run_once(binary: Binary) -> None:
    assert distinct_architectures(binary) == ["sm_75"]
    changed = binary.sources | {"sm_80/scaled_sum.cu": "another kernel"}
    assert distinct_architectures(replace(binary, sources=changed)) == ["sm_75", "sm_80"]


def test_an_architecture_without_code_is_a_usage_error(binary: Binary) -> None:
    with pytest.raises(UsageError, match="the code is for sm_75, sm_80, not for sm_90"):
        Executable(binary).emulate("sm_90")


def test_without_a_gpu_a_call_says_what_to_do(binary: Binary) -> None:
    inputs, _ = two_floats_values()
    refusal = InputError if _has_gpu() else TargetUnavailableError
    with pytest.raises(refusal, match=r"--verify|\.to\('cuda'\)"):
        Executable(binary).function("forward")(*map(torch.from_numpy, inputs))
