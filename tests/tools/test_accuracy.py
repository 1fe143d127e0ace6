"""tools/accuracy.py: the arithmetic of gaps, and the figures that it must reach."""

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "accuracy.py"


@pytest.fixture(scope="module")
def tool():
    spec = spec_from_file_location("accuracy_tool", TOOL)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(*arguments):
    command = [sys.executable, str(TOOL), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_gaps_are_points_below_fp32(tool):
    found = tool.summarise([{"fp32": 0.98, "mine": 0.97}, {"fp32": 0.96, "mine": 0.96}])
    assert found["mine"]["gap_points"] == pytest.approx(0.5)
    assert found["mine"]["gap_points_by_seed"] == pytest.approx([1.0, 0.0])
    assert found["fp32"]["mean"] == pytest.approx(0.97)
    assert found["fp32"]["sd"] == pytest.approx(0.0141421356)
    assert "gap_points" not in found["fp32"]


def test_one_seed_has_no_spread(tool):
    assert tool.summarise([{"fp32": 0.98}])["fp32"]["sd"] == 0.0


def test_several_recipes_in_one_run(tmp_path):
    path = tmp_path / "found.json"
    arguments = ["--protocol", "mlp", "--recipe", "w8a8g8,naive-4bit", "--seeds", "1"]
    result = run(*arguments, "--epochs", "1", "--json", str(path))
    assert result.returncode == 0, result.stderr
    found = json.loads(path.read_text())
    assert list(found["runs"]) == ["fp32", "w8a8g8", "naive-4bit"]
    assert found["settings"]["epochs"] == 1
    assert "w8a8g8" in result.stdout and "seed 0:" in result.stderr


@pytest.mark.claims
def test_digits_within_six_tenths_of_a_point_of_fp32():
    runs = json.loads((ROOT / "runs" / "claims" / "accuracy.json").read_text())["runs"]
    assert len(runs["fp32"]["accuracy"]) >= 3
    assert runs["w4a4g4"]["gap_points"] <= 0.6
    assert runs["w4a4g4"]["mean"] - runs["naive-4bit"]["mean"] >= 0.01
