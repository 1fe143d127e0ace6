"""One report of everything a target does not run, at the user's lines."""

import pytest
import torch
from torch import nn

import sqcompile
from sqcompile import api
from sqcompile.errors import UnsupportedOpError
from tests.models import make


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixer = nn.Sequential(nn.Linear(8, 8), nn.Mish())
        self.wave = nn.Conv1d(1, 1, 3)

    def forward(self, x):
        h = self.mixer(x)
        h = torch.fft.rfft(h).abs()  # the line of the transform
        return self.wave(h.unsqueeze(1))


def test_all_unsupported_ops_are_in_one_error():
    with pytest.raises(UnsupportedOpError) as caught:
        sqcompile.compile(Mixed(), (torch.randn(4, 8),))
    message = str(caught.value)
    assert caught.value.exit_code == 4
    for part in (
        "h = torch.fft.rfft(h).abs()  # the line of the transform",
        "test_support.py:",
        "aten._fft_r2c",
        "aten.mish",
        "silu or gelu",
        "aten.convolution",
        "(module: mixer.1)",
        "(module: wave)",
    ):
        assert part in message
    assert message.count("the line of the transform") == 1, "one entry a line"


def test_examine_lists_every_op_without_building(monkeypatch):
    monkeypatch.setattr(api, "cached_build", None)
    rows = api.examine(Mixed(), (torch.randn(4, 8),))
    supported = [row.supported for row in rows]
    assert supported == sorted(supported), "unsupported ones first"
    by_name = {row.op: row for row in rows}
    assert not by_name["aten.mish"].supported and by_name["aten.mish"].lines
    assert by_name["sq.quantize"].supported


def test_examine_of_a_supported_model_has_no_complaint():
    model, inputs = make("resnet")
    assert all(row.supported for row in api.examine(model, inputs))
