"""The command line with --target cuda, on a machine without a GPU."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sqcompile.cli import run
from tests.backends.cuda.conftest import _has_gpu

_MODEL = """\
import torch
from torch import nn
def make_model():
    return nn.Sequential(nn.LayerNorm(64), nn.GELU())
def example_inputs():
    return (torch.randn(4, 64),)
def data():
    x = torch.randn(4, 64)
    yield x, x
def loss(output, target):
    return (output - target).square().mean()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a model file and builds of its own, the current one while tests run."""
    if _has_gpu():
        pytest.skip("there is a GPU here, which these tests are to do without")
    place = tmp_path_factory.mktemp("cuda_cli")
    (place / "net.py").write_text(_MODEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("SQCOMPILE_CACHE_DIR", str(place / "cache"))
        yield place


def test_a_run_folder_has_code_for_every_architecture(folder: Path) -> None:
    options = ["--target", "cuda", "--arch", "sm_90,sm_75", "--no-eval", "-o", "run"]
    assert run(["net.py", *options]) == 0
    for name in ("sm_75", "sm_90"):
        found = {path.suffix for path in (folder / "run/variant_0" / name).iterdir()}
        assert found == {".cu", ".ptx", ".cubin", ".sass", ".log", ".o"}
    report = json.loads((folder / "run/report.json").read_text())
    assert report["target"] == "cuda" and report["executed_by"] == "nothing"
    assert {row["architecture"] for row in report["kernels"]} == {"sm_75", "sm_90"}
    assert 'id="kernels"' in (folder / "run/report.html").read_text()


def test_verify_without_a_cpp_compiler_is_5(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    options = ["--target", "cuda", "--arch", "sm_75", "--no-eval", "--verify", "-o", "none"]
    assert run(["net.py", *options]) == 5
    assert "needs a C++ compiler" in capsys.readouterr().err


@pytest.mark.slow
def test_verify_runs_the_step_in_the_emulator(folder: Path) -> None:
    options = ["--target", "cuda", "--arch", "sm_75", "--no-eval", "--verify", "-o", "verified"]
    assert run(["net.py", *options]) == 0
    report = json.loads((folder / "verified/report.json").read_text())
    assert report["executed_by"] == "ptx-emulator"
    assert [(one["mode"], one["equal"]) for one in report["verification"]] == [
        ("train, sm_75", True)
    ]


@pytest.mark.parametrize("command", [["train", "net.py"], ["net.py", "--bench"]])
def test_what_needs_a_gpu_is_5_without_one(
    folder: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert run([*command, "--target", "cuda", "--arch", "sm_75", "-o", "gpu"]) == 5
    assert "no NVIDIA driver" in capsys.readouterr().err


def test_bench_of_a_run_folder_is_5_without_a_gpu(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["net.py", "--target", "cuda", "--arch", "sm_75", "--no-eval", "-o", "timed"]) == 0
    assert run(["bench", "timed"]) == 5
    shown = capsys.readouterr().err
    assert "no NVIDIA driver" in shown and "run on a machine with an NVIDIA GPU" in shown
