"""The softmax study: its errors fall with bits, and a scale a row is better than one a head."""

from importlib import import_module
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def test_a_scale_a_row_and_a_normalised_mean_cost_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    study = import_module("softmax_error")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 24, 24, generator=generator)
    x = x.masked_fill(torch.ones(24, 24).triu(1).bool(), -torch.inf)
    g = torch.randn(x.shape, generator=generator) + 3.0
    last = 1.0
    for bits in study.BITS:
        head, row, plain, normalised = study.errors(x, g, bits)
        assert row < 0.2 * head and normalised < plain and normalised < 0.1 * last
        last = normalised
    monkeypatch.setattr(study, "HEADS", 2)
    shown = CliRunner().invoke(study.main, ["--rows", "9"], catch_exceptions=False).output
    assert len(shown.splitlines()) == 1 + 3 * 4 * 2
