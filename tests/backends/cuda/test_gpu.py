"""On a real GPU: the driver loads the code, torch's tensors are used where they lie.

Skipped without one. Nothing here has run on hardware yet: docs/cuda.md.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from sqcompile import api
from sqcompile.backends import targets
from sqcompile.cli import run
from sqcompile.errors import InputError
from sqcompile.runtime.executable import Executable
from sqcompile.runtime.verify import verify_on_target
from tests.backends.cuda.modules import compiled, two_floats, two_floats_values

pytestmark = pytest.mark.gpu
MODEL = """\
import torch
from torch import nn
def make_model():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
def example_inputs():
    return (torch.randn(32, 64),)
"""


@pytest.fixture(scope="module")
def forward() -> Executable:
    return Executable(compiled(two_floats(), "sm_75,sm_80,sm_86,sm_89,sm_90"))


def test_bits_are_those_of_the_definition(forward: Executable) -> None:
    inputs, expected = two_floats_values()
    results = forward.function("forward")(*(torch.from_numpy(one).cuda() for one in inputs))
    for result, wanted in zip(results, expected, strict=True):
        assert result.device.type == "cuda"
        assert result.cpu().numpy().tobytes() == wanted.tobytes()


def test_kernels_wait_for_what_torchs_current_stream_did_before(forward: Executable) -> None:
    inputs, expected = two_floats_values()
    tensors = [torch.empty_like(torch.from_numpy(one), device="cuda") for one in inputs]
    pinned = [torch.from_numpy(one).pin_memory() for one in inputs]
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        for tensor, source in zip(tensors, pinned, strict=True):
            tensor.copy_(source, non_blocking=True)
        results = forward.function("forward")(*tensors)
        values = [result.cpu() for result in results]
    for value, wanted in zip(values, expected, strict=True):
        assert value.numpy().tobytes() == wanted.tobytes()


def test_calls_on_two_streams_keep_their_memory_apart(forward: Executable) -> None:
    """The second call begins while the first one's stream is asleep, and gets its workspace."""
    inputs, expected = two_floats_values()
    first = [torch.from_numpy(one).cuda() for one in inputs]
    second = [one * 0 for one in first]
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        results = forward.function("forward")(*first)
    with torch.cuda.stream(torch.cuda.Stream()):
        forward.function("forward")(*second)
    torch.cuda.synchronize()
    for result, wanted in zip(results, expected, strict=True):
        assert result.cpu().numpy().tobytes() == wanted.tobytes()


def test_the_current_gpu_stays_the_current_one(forward: Executable) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs; this machine has one")
    inputs, _ = two_floats_values()
    results = forward.function("forward")(*(torch.from_numpy(one).to("cuda:1") for one in inputs))
    assert {result.device.index for result in results} == {1}
    assert torch.cuda.current_device() == 0


def test_a_tensor_on_the_cpu_is_refused(forward: Executable) -> None:
    inputs, _ = two_floats_values()
    with pytest.raises(InputError, match="argument 0 is on cpu"):
        forward.function("forward")(*map(torch.from_numpy, inputs))


def test_bench_times_step_and_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(MODEL)
    assert run(["net.py", "--target", "cuda", "--no-eval", "-o", "run"]) == 0
    capsys.readouterr()
    assert run(["bench", "run", "--runs", "3", "--warmup", "1", "--json"]) == 0
    timing = json.loads(capsys.readouterr().out)
    assert "sm_" in timing["device"]
    (measured,) = timing["runs"]
    assert all(row["median_ms"] > 0 for row in measured["rows"].values())
    assert measured["kernels"] and all(row["milliseconds"] > 0 for row in measured["kernels"])
    assert {"w4a4g4 step", "fp32 PyTorch step"} <= set(measured["rows"])


def test_threads_are_no_option_of_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(MODEL)
    assert run(["net.py", "--target", "cuda", "--no-eval", "-o", "run"]) == 0
    assert run(["bench", "run", "--threads", "2"]) == 2
    assert "--threads is for the CPU" in capsys.readouterr().err


def test_a_training_step_has_the_bits_of_its_reference() -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 8))
    inputs = (torch.randn(16, 64),)
    step = api.compile(model, inputs, target=targets.get("cuda"))
    results, executed_by = verify_on_target(step, inputs)
    assert executed_by == "cuda" and all(result.equal for result in results)
    step(inputs[0].cuda()).sum().backward()
    assert all(one.grad is not None and one.grad.is_cuda for one in step.parameters())
