"""The benchmark of whole steps: a small model measured, and the ratios that are claimed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def tools_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))


def tiny() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(1))


@pytest.mark.slow
def test_a_row_has_every_peer_and_the_ratio_to_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bench_step
    from step_models import StepModel

    batch = torch.randn(4, 3, 6, 6), torch.randint(256, (4,))
    model = StepModel(tiny, lambda: batch, "w4a4g4", "tiny", images=True)
    monkeypatch.setattr(bench_step, "MODELS", {"tiny": model})
    monkeypatch.setattr(bench_step, "keep_memory", lambda: True)  # of this process, for good
    out = tmp_path / "rows.json"
    arguments = ["--only", "tiny", "--peers", "eager", "--threads", "1", "--seconds", "0"]
    arguments += ["--recipes", "w4a4g4,w8a8g8"]
    result = CliRunner().invoke(bench_step.main, [*arguments, "--json", str(out)])
    assert result.exit_code == 0, result.output
    row, other = json.loads(out.read_text())
    assert other["recipe"] == "w8a8g8" and other["peers"] == row["peers"]
    assert (row["name"], row["threads"], row["recipe"]) == ("tiny", 1, "w4a4g4")
    layouts = ("", " channels_last")
    assert set(row["peers"]) == {f"{p} eager{at}" for p in ("fp32", "bf16") for at in layouts}
    assert row["peers"][row["best_peer"]] == min(row["peers"].values())
    assert row["ratio"] == pytest.approx(row["peers"][row["best_peer"]] / row["ours_ms"])
    convolutions = [one for one in row["kernels"] if one["kernel"].startswith("conv_")]
    assert convolutions and all(one["share_of_peak"] > 0 for one in convolutions)


def test_peers_start_from_the_same_weights_as_ours() -> None:
    import bench_step
    from step_models import StepModel

    model = tiny()
    spec = StepModel(tiny, lambda: (torch.empty(0), torch.empty(0)), "w4a4g4", "tiny")
    x, y = torch.randn(4, 3, 6, 6), torch.randint(256, (4,))
    before = [p.clone() for p in model.parameters()]
    (step,) = bench_step.peers(model, spec, x, y, "fp32 eager").values()
    step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    from bench_step import main

    result = CliRunner().invoke(main, ["--only", "resnet"])
    assert result.exit_code == 2 and "there are mlp, resnet20, resnet18" in result.output


def test_the_models_have_the_sizes_that_their_rows_name() -> None:
    from step_models import MODELS

    def parameters(name: str) -> float:
        return sum(p.numel() for p in MODELS[name].make().parameters()) / 1e6

    assert list(MODELS) == ["mlp", "resnet20", "resnet18", "gpt", "vit"]
    sizes = {"mlp": 25.2, "resnet20": 0.27, "resnet18": 11.2, "gpt": 12.8, "vit": 5.4}
    for name, millions in sizes.items():
        assert parameters(name) == pytest.approx(millions, rel=0.02)


BOUNDS = {"mlp": 1.9, "resnet20": 2.0, "resnet18": 2.3, "gpt": 1.85, "vit": 1.85}
"""The least ratio to the best peer, one thread."""


@pytest.mark.claims
@pytest.mark.parametrize("name", BOUNDS)
def test_steps_reach_the_ratios_that_are_claimed(name: str) -> None:
    rows: list[dict[str, Any]] = json.loads((ROOT / "runs" / "claims" / "steps.json").read_text())
    (row,) = [row for row in rows if (row["name"], row["threads"]) == (name, 1)]
    assert row["ratio"] >= BOUNDS[name]
