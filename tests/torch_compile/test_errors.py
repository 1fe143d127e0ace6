"""What torch.compile(backend="sqcompile") refuses, in the words of sqcompile.compile."""

import pytest
import torch
from torch import nn

from sqcompile.errors import InputError, UnsupportedOpError, UsageError
from tests.torch_compile.modules import compiled


class Wave(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixer = nn.Sequential(nn.Linear(8, 8), nn.Mish())

    def forward(self, x):
        h = self.mixer(x)
        return torch.fft.rfft(h).abs()  # the line of the transform


def test_unsupported_ops_are_reported_at_the_users_lines():
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
        compiled(Wave())(torch.randn(4, 8))
    assert isinstance(caught.value.inner_exception, UnsupportedOpError)
    for part in ("# the line of the transform", "test_errors.py:", "(module: mixer.1)"):
        assert part in str(caught.value)


def test_suppressed_errors_fall_back_to_eager(caplog):
    model, x = Wave(), torch.randn(4, 8)
    with torch._dynamo.config.patch(suppress_errors=True):
        assert torch.equal(compiled(model)(x), model(x))


WRONG = {
    "option": ({"options": {"recipee": "w6a6g6"}}, UsageError, "recipe.*target, recipe, seed"),
    "recipe": ({"options": {"recipe": "w6"}}, UsageError, "named recipes"),
    "seed": ({"options": {"seed": "x"}}, UsageError, "seed is 'x'"),
    "mode": ({"mode": "reduce-overhead"}, UsageError, "has no mode"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_usage_errors(case):
    keywords, kind, text = WRONG[case]
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=text) as caught:
        torch.compile(nn.Linear(4, 4), backend="sqcompile", **keywords)(torch.randn(3, 4))
    assert isinstance(caught.value.inner_exception, kind)


def test_other_dtypes_autocast_and_empty_batches_are_refused():
    def refused(module, x):
        with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
            compiled(module)(x)
        return caught.value.inner_exception

    assert isinstance(refused(nn.Linear(4, 4).double(), torch.randn(3, 4).double()), UsageError)
    assert isinstance(refused(nn.Linear(4, 4), torch.randn(0, 4)), InputError)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        error = refused(nn.Linear(4, 4), torch.randn(3, 4))
    assert isinstance(error, UsageError) and "autocast" in str(error)


def test_check_finite_names_the_node():
    module = compiled(nn.Linear(4, 4), check_finite=True)
    x = torch.randn(3, 4)
    module(x)
    x[1, 1] = float("nan")
    with pytest.raises(InputError, match="NaN or an infinity"):
        module(x)
