"""The compile-time bench: cold and warm are what they say."""

import json
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner

TOOLS = Path(__file__).resolve().parents[2] / "tools"
MODEL = """
import torch
from torch import nn


def make_model():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))


def example_inputs():
    return (torch.randn(3, 12),)
"""


def test_cold_compiles_and_warm_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    (tmp_path / "small.py").write_text(MODEL)
    written = tmp_path / "out.json"
    arguments = ["--model", str(tmp_path / "small.py"), "--batch", "8", "--json", str(written)]
    done = CliRunner().invoke(import_module("bench_compile").main, arguments)
    assert done.exit_code == 0, done.output
    seconds = json.loads(written.read_text())["seconds"]
    assert seconds["cold"]["compile"] > seconds["warm"]["compile"] > 0
    assert [line.split(":")[0] for line in done.output.splitlines()] == ["cold", "warm"]


@pytest.mark.claims
@pytest.mark.parametrize(("name", "cold"), [("resnet20", 40), ("gpt", 30)])
def test_cold_and_warm_compiles_take_what_is_claimed(name: str, cold: int) -> None:
    result = json.loads((TOOLS.parent / "runs" / "claims" / f"compile-{name}.json").read_text())
    assert result["seconds"]["cold"]["compile"] < cold
    assert result["seconds"]["warm"]["compile"] < 3
