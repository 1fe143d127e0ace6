"""The host's part: TVM's own CUDA runtime, driver and device calls, on a stub of the driver.

The stub executes no machine code: what is tested is all that surrounds it. Another process loads
what this one compiled, as a machine with a GPU would.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sqcompile.errors import TargetUnavailableError
from sqcompile.runtime.cuda import Image, chosen
from tests.backends.cuda.conftest import _has_gpu
from tests.backends.cuda.modules import compiled, two_floats
from tests.backends.cuda.on_stub import STREAM

_ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def ran(stub_driver: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What on_stub.py reports of `two_floats`, compiled here for three architectures."""
    if _has_gpu():
        pytest.skip("there is a real driver, which the stub would get in the way of")
    folder = tmp_path_factory.mktemp("binary")
    for name, content in compiled(two_floats(), "sm_75,sm_80,sm_90").files().items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    command = [sys.executable, "-m", "tests.backends.cuda.on_stub", str(stub_driver), str(folder)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_without_a_driver_the_error_says_what_to_do(ran: dict[str, Any]) -> None:
    assert "no NVIDIA driver" in ran["no driver"] and "--verify" in ran["no driver"]


def test_an_old_driver_is_told_not_taken_for_no_device(ran: dict[str, Any]) -> None:
    assert "for CUDA 12.8, older than 13.0" in ran["old driver"] and "580" in ran["old driver"]


def test_without_a_device_the_error_says_what_to_do(ran: dict[str, Any]) -> None:
    assert "no GPU number 0" in ran["no device"] and "CUDA_VISIBLE_DEVICES" in ran["no device"]


def test_forward_runs_on_device_memory_through_the_launches_of_its_kernels(
    ran: dict[str, Any],
) -> None:
    first = ran["first"]
    assert first["equal"] == [True, True]
    assert first["devices"] == ["cuda:0", "cuda:0"]
    shown = [(one["function"], one["grid"], one["block"]) for one in first["launches"]]
    blocks = [8, 1, 1], [128, 1, 1]
    assert shown == [
        ("scaled_sum_kernel", *blocks),
        ("reversed_blocks_kernel", *blocks),
        ("reversed_blocks_kernel_1", *blocks),
    ]
    assert [one["shared"] for one in first["launches"]] == [0, 0, 512]


def test_kernels_read_the_callers_memory_and_share_their_workspace(ran: dict[str, Any]) -> None:
    a, b, c = ran["first"]["inputs"]
    scaled, doubled, reversed_ = (one["pointers"] for one in ran["first"]["launches"])
    assert scaled[:2] == [a, b] and doubled[0] == c
    assert reversed_[0] == doubled[1]


def test_a_call_waits_for_nothing_copies_nothing_and_runs_on_the_given_stream(
    ran: dict[str, Any],
) -> None:
    again = ran["again"]
    assert again["counts"] == dict.fromkeys(again["counts"], 0) | {"launches": 3}
    assert {one["stream"] for one in again["launches"]} == {STREAM}


def test_kernels_are_timed_by_events_of_their_stream(ran: dict[str, Any]) -> None:
    """The stub's clock counts launches: one millisecond each."""
    timed = ran["timed"]
    milliseconds = {name: [1e3 * one for one in took] for name, took in timed["kernels"].items()}
    assert milliseconds == {
        "scaled_sum": [pytest.approx(1)],
        "reversed_blocks": [pytest.approx(2)],
    }
    assert timed["call"] == pytest.approx(3e-3)
    assert timed["marks"] == 2 + 2 * 2


def test_timing_waits_when_it_is_read_not_between_kernels(ran: dict[str, Any]) -> None:
    assert ran["timed"]["waits of the call"] == 0
    assert ran["timed"]["waits of reading"] == 2 + 1


@pytest.mark.parametrize("capability, form", [("75", "cubin"), ("86", "cubin"), ("120", "ptx")])
def test_a_device_loads_the_code_that_fits_it(
    ran: dict[str, Any], capability: str, form: str
) -> None:
    found = ran[capability]
    assert found["equal"] == [True, True]
    assert {one["form"] for one in found["launches"][:3]} == {form}


def test_a_device_older_than_all_code_is_refused(ran: dict[str, Any]) -> None:
    assert "this GPU is an sm_70; the code is for sm_75, sm_80, sm_90" in ran["70"]["refused"]


def test_a_launch_that_fails_is_an_error_with_the_functions_name(ran: dict[str, Any]) -> None:
    assert "scaled_sum_kernel" in ran["failed launch"]
    assert "sm_80/scaled_sum.cu" in ran["failed launch"]


def test_the_process_that_ran_it_compiled_nothing(ran: dict[str, Any]) -> None:
    assert ran["compilers"] == []


def test_the_code_that_fits_is_the_nearest_cubin_of_the_family_or_the_newest_older_ptx() -> None:
    names = ["sm_75", "sm_80", "sm_86", "sm_90"]
    assert chosen(names, 80) == Image("sm_80", "cubin")
    assert chosen(names, 89) == Image("sm_86", "cubin")
    assert chosen(names, 100) == Image("sm_90", "ptx")
    assert chosen(["sm_75"], 90) == Image("sm_75", "ptx")
    with pytest.raises(TargetUnavailableError, match="sm_89; the code is for sm_90"):
        chosen(["sm_90"], 89)
