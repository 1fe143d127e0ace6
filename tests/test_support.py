"""One report of everything a target does not run, at the user's lines."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sqcompile
from sqcompile import api
from sqcompile.errors import UnsupportedOpError


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
        "nearest supported: nn.SiLU or nn.GELU",
        "aten.convolution",
        "(module: mixer.1)",
        "(module: wave)",
    ):
        assert part in message
    assert message.count("the line of the transform") == 1, "one entry a line"


class Refused(nn.Module):
    """Arguments that no kernel has, one a line."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 2, sparse=True)

    def forward(self, x, tokens):
        h = F.interpolate(x, (5, 5), mode="bicubic")
        h = F.interpolate(h, (3, 3), mode="bilinear", antialias=True)
        h = F.adaptive_max_pool2d(h, (2, 2))
        h = F.interpolate(h.unsqueeze(2), (2, 2, 2)).mean(2)
        h = h + F.embedding_bag(tokens, self.table.weight, mode="max")[0]
        h = h + torch.rand_like(h)
        h = h.take_along_dim(tokens.view(1, 1, 2, 2), 3)
        return h + self.table(tokens).sum()


def test_arguments_without_a_kernel_are_in_the_report():
    inputs = torch.randn(2, 3, 6, 6, requires_grad=True), torch.randint(0, 2, (2, 2))
    rows = [row for row in api.examine(Refused(), inputs, targets=["cpu"]) if not row.supported]
    lines = "\n".join(place.line for row in rows for place in row.places)
    for line in (
        'mode="bicubic")',
        "antialias=True)",
        "adaptive_max_pool2d(h, (2, 2))",
        "(2, 2, 2)).mean(2)",
        'mode="max")[0]',
        "torch.rand_like(h)",
        "take_along_dim",
        "self.table(tokens).sum()",
    ):
        assert line in lines, line
