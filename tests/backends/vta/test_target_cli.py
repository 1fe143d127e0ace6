"""--target vta on the command line: what is verified, written and refused."""

import json
import sys
from types import SimpleNamespace

import pytest

import sqcompile
from sqcompile.backends.vta import hardware
from sqcompile.cli import run
from tests.cli.conftest import SMALL

STRIDED = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.strided = nn.Conv2d(4, 5, 3, stride=2)

    def forward(self, x):
        return self.strided(self.first(x)).mean((2, 3))


def make_model():
    return Net()


def example_inputs():
    return (torch.randn(2, 3, 5, 5),)
"""


@pytest.fixture
def call(tmp_path, monkeypatch, capfd):
    """call(*arguments) in a folder with a small model file -> code, out, err."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "net.py").write_text(SMALL)

    def call(*arguments):
        capfd.readouterr()
        code = run(arguments)
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


def test_verify_runs_the_simulator_and_the_report_tells_what_it_did(call, tmp_path):
    result = call("net.py", "--target", "vta", "--hw", "pynq-int4", "--verify", "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["executed_by"] == "vta-simulator"
    assert report["macs"]["on_target_share"] == 1.0
    known = report["accelerator"]
    assert known["name"] == "pynq-int4" and known["left"] == {}
    assert [row["node"].split("/")[0] for row in known["programs"]] == ["forward"] * 2 + [
        "backward"
    ] * 3
    assert known["cycles"] == sum(row["cycles"] for row in known["programs"])
    assert {layer["module"] for layer in known["layers"]} == {"0", "2"}
    assert sum(layer["cycles"] for layer in known["layers"]) == known["cycles"]
    for row in known["programs"]:
        assert 0 < row["efficiency"] <= row["utilisation"] < 1
        assert set(row["bytes"]) == {"instructions", "uop", "inp", "wgt", "out"}
    page = (tmp_path / "runs/net/report.html").read_text()
    assert page.count('<svg viewBox="0 0 900') == 2 and "backward/wgrad" in page
    assert all(kind in page for kind in ("gradients times values", "deviations"))


def test_an_accelerator_that_is_too_small_is_6_with_the_reasons(call, tmp_path):
    (tmp_path / "net.py").write_text(STRIDED)
    tiny = {"LOG_INP_BUFF_SIZE": 5, "LOG_WGT_BUFF_SIZE": 9, "LOG_ACC_BUFF_SIZE": 7}
    (tmp_path / "tiny.json").write_text(json.dumps(hardware.get("pynq").parameters() | tiny))
    options = ["net.py", "--target", "vta", "--hw", "tiny.json", "--no-eval"]
    result = call(*options, "--verify")
    assert result.code == 6
    said = result.err[result.err.index("error: ") :]
    assert said.startswith(
        "error: 90.48 % of the step's multiply-accumulates run on tiny.json, and 95 % must; "
        "left to the CPU:\n"
        "  net.py:12  return self.strided(self.first(x)).mean((2, 3))\n"
        "      sq.conv_dgrad_dequantize (strided, dgrad): tiny.json is too small for it: INP holds "
        "2 tiles of 16 bytes and 4 are needed (a LOG_INP_BUFF_SIZE of at least 6); WGT holds"
    )
    assert said.endswith(
        "  give --hw an accelerator that takes them, or all of the step to --target cpu.\n"
    )
    assert said.count("net.py:") == 1
    report = json.loads((tmp_path / "runs/net/report.json").read_text())
    assert [bool(p["left"]) for p in report["products"]].count(True) == 1
    assert all(one["equal"] for one in report["verification"])
    assert sqcompile.load(tmp_path / "runs/net").target == "vta"
    result = call(*options, "-o", "again")
    assert result.code == 0
    assert "warning: 90.48 % of the step's" in result.err and "(strided, dgrad)" in result.err


def test_train_runs_on_the_accelerator(call, tmp_path):
    result = call("train", "net.py", "--target", "vta", "--hw", "pynq-int4", "--epochs", "1")
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "runs/net/report.json").read_text())
    assert report["executed_by"] == "vta-simulator"
    assert report["accelerator"]["name"] == "pynq-int4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"LOG_BATCH": 0}', "missing LOG_INP_WIDTH"),
        ("[]", "no JSON object"),
        ("{", "is no JSON"),
    ],
)
def test_a_file_that_describes_no_accelerator_is_2(call, tmp_path, text, message):
    (tmp_path / "mine.json").write_text(text)
    result = call("net.py", "--target", "vta", "--hw", "mine.json")
    assert result.code == 2 and message in result.err
    assert not (tmp_path / "runs").exists()


def test_the_simulator_is_not_timed(call):
    result = call("net.py", "--target", "vta", "--bench")
    assert result.code == 2
    assert "steps for target vta are not timed: a simulator runs them" in result.err
