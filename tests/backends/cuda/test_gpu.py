"""On a real GPU: the driver loads the code, torch's tensors are used where they lie.

Skipped without one. Nothing here has run on hardware yet: docs/cuda.md.
"""

import pytest
import torch
from torch import nn

from sqcompile import api
from sqcompile.backends import targets
from sqcompile.errors import InputError
from sqcompile.runtime.executable import Executable
from sqcompile.runtime.verify import verify_on_target
from tests.backends.cuda.modules import compiled, two_floats, two_floats_values

pytestmark = pytest.mark.gpu


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


def test_a_tensor_on_the_cpu_is_refused(forward: Executable) -> None:
    inputs, _ = two_floats_values()
    with pytest.raises(InputError, match="argument 0 is on cpu"):
        forward.function("forward")(*map(torch.from_numpy, inputs))


def test_a_training_step_has_the_bits_of_its_reference() -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 8))
    inputs = (torch.randn(16, 64),)
    step = api.compile(model, inputs, target=targets.get("cuda"))
    results, executed_by = verify_on_target(step, inputs)
    assert executed_by == "cuda" and all(result.equal for result in results)
    step(inputs[0].cuda()).sum().backward()
    assert all(one.grad is not None and one.grad.is_cuda for one in step.parameters())
