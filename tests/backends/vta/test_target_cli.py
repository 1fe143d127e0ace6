"""--target vta on the command line: what is verified, written and refused."""

import json
import sys
from types import SimpleNamespace

import pytest

from sqcompile.backends.vta.graph import offload
from sqcompile.cli import run
from tests.cli.conftest import SMALL


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
    result = call("net.py", "--target", "vta", "--verify", "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["executed_by"] == "vta-simulator"
    assert report["macs"]["on_target_share"] == 1.0
    known = report["accelerator"]
    assert known["name"] == "pynq" and known["left"] == {}
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


def test_too_few_macs_on_the_target_are_6_with_the_reasons(call, monkeypatch):
    made = offload.offload

    def only_small(spec, hardware):
        return "it is too wide" if spec.outputs[0].shape[-1] == 8 else made(spec, hardware)

    monkeypatch.setattr(offload, "offload", only_small)
    monkeypatch.setenv("SQCOMPILE_CACHE_DIR", "fresh")
    result = call("net.py", "--target", "vta", "--verify", "--no-eval")
    assert result.code == 6
    assert "42.86 % of the step's multiply-accumulates run on vta, and 95 % must" in result.err
    assert "shift_matmul_dequantize_absmax (0): it is too wide" in result.err
    assert call("net.py", "--target", "vta", "--no-eval").code == 0


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


def test_the_simulator_is_not_timed(call):
    result = call("net.py", "--target", "vta", "--bench")
    assert result.code == 2
    assert "steps for target vta are not timed: a simulator runs them" in result.err
