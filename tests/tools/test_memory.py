"""The memory tools: what they count, on a model small enough to count by hand."""

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner

import sqcompile
from sqcompile.report.data import report
from sqcompile.report.saved import saved_by_layer
from tests.models import make

TOOLS = Path(__file__).resolve().parents[2] / "tools"
MODEL = """
import torch
from torch import nn


def make_model():
    return nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 8))


def example_inputs():
    return (torch.randn(64, 256),)
"""


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(TOOLS))

    def loaded(name: str) -> ModuleType:
        return import_module(name)

    return loaded


@pytest.fixture
def model_file(tmp_path: Path) -> str:
    path = tmp_path / "small.py"
    path.write_text(MODEL)
    return str(path)


def test_autograd_is_handed_what_the_report_says() -> None:
    model, inputs = make("resnet")
    step = sqcompile.compile(model, inputs)
    handed = saved_by_layer(step, inputs)
    rng = 4 * 8
    assert handed == {"": report(step)["saved"]["bytes"] + rng}


def test_the_peak_is_that_of_the_steps(tool) -> None:
    memory = tool("process_memory")
    large = torch.ones(32_000_000)
    before = memory.resident()
    del large
    memory.reset_peak()
    assert memory.resident() < before - 100_000_000
    assert memory.peak() < before - 50_000_000, "what was freed earlier does not count"
    large = torch.ones(32_000_000)
    del large
    assert memory.peak() - memory.resident() > 100_000_000


def test_both_sides_are_measured(tool, model_file: str, tmp_path: Path) -> None:
    arguments = ["--model", model_file, "--batch", "1000", "--json", str(tmp_path / "out.json")]
    done = CliRunner().invoke(tool("bench_memory").main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "out.json").read_text())
    # PyTorch keeps the input, and ReLU's result for itself and for the layer behind it
    assert result["saved_bytes"]["fp32"] == 2 * 1000 * 256 * 4
    # 8 bits of the first layer's input and the last one's, a mask, and both weights
    assert result["saved_bytes"]["sqcompile"] < 2 * 1000 * 256 + 1000 * 256 / 8 + 80_000
    assert result["saved_ratio"] > 3
    assert result["step_bytes"]["fp32"] > 2 * 1000 * 256 * 4
    assert result["processes"]["sqcompile"]["last_step_page_faults"] < 50
    assert 0 < result["step_bytes"]["sqcompile"] < result["processes"]["sqcompile"]["peak"]


def test_a_soak_ends_well_when_memory_is_flat(tool, model_file: str, tmp_path: Path) -> None:
    arguments = ["--model", model_file, "--minutes", "0.05", "--interval", "1"]
    path = tmp_path / "out.json"
    done = CliRunner().invoke(
        tool("soak").main, [*arguments, "--json", str(path)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    result = json.loads(path.read_text())
    assert len(result["samples"]) >= 2
    assert result["samples"][-1]["steps"] > result["samples"][0]["steps"] > 1
    assert "(warm-up)" in done.output.splitlines()[0]


def test_a_soak_fails_when_memory_grows(
    tool, model_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    soak = tool("soak")
    leaked: list[torch.Tensor] = []
    evaluate = soak.Soak.evaluate

    def leaking(self: object) -> None:
        leaked.append(torch.ones(16_000_000))  # malloc maps so much anew
        evaluate(self)

    monkeypatch.setattr(soak.Soak, "evaluate", leaking)
    arguments = ["--model", model_file, "--minutes", "0.01", "--interval", "0.3"]
    done = CliRunner().invoke(soak.main, [*arguments, "--bound-mb", "16"])
    assert done.exit_code == 1
    assert "memory grew by" in done.output


@pytest.mark.claims
def test_resnet20_keeps_at_most_a_fifth_of_fp32() -> None:
    result = json.loads((TOOLS.parent / "runs" / "claims" / "memory.json").read_text())
    assert result["saved_ratio"] >= 4.9
    assert result["step_ratio"] >= 3.5
    assert result["processes"]["sqcompile"]["last_step_page_faults"] < 100
