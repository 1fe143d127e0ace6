"""tools/accuracy.py: the arithmetic of gaps, runs that resume, kept results, the page, bounds."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from math import isnan
from pathlib import Path

import accuracy
import accuracy_page
import pytest
import torch
from protocols import run as runs
from protocols.protocol import Schedule
from protocols.run import rate, train
from protocols.summary import lines, summarise
from protocols.table import PROTOCOLS

from sqcompile.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments):
    command = [sys.executable, str(ROOT / "tools" / "accuracy.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def made(accuracy, saved=4):
    split = {"accuracy": accuracy, "loss": 1.0}
    seconds, losses = 2.0, [3.0, 2 - accuracy]
    return {
        "validation": split,
        "test": split,
        "seconds": seconds,
        "saved_bytes": saved,
        "losses": losses,
    }


def test_gaps_are_points_below_the_fp32_run_of_the_same_seed():
    found = summarise({"fp32": [made(0.98, 8), made(0.96, 8)], "mine": [made(0.97), made(0.96)]})
    mine = found["mine"]["test"]
    assert mine["gaps"] == pytest.approx([1.0, 0.0])
    assert mine["gap"] == pytest.approx(0.5)
    assert mine["gap_sd"] == pytest.approx(0.70710678)
    assert mine["gap_se"] == pytest.approx(0.5)
    assert found["fp32"]["test"]["mean"] == pytest.approx(0.97)
    assert found["fp32"]["saved_bytes"] == 8
    assert found["mine"]["training_loss"] == pytest.approx([1.03, 1.04])
    assert "gap +0.50 +- 0.50" in list(lines(found))[1]


def test_one_seed_has_no_spread():
    assert summarise({"fp32": [made(0.98)]})["fp32"]["test"]["sd"] == 0.0


def test_the_rate_rises_to_its_highest_and_falls_to_nothing():
    schedule = Schedule(epochs=1, optimizer="sgd", lr=0.4, decay=0.0, warmup=0.25)
    rates = [rate(schedule, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.016)
    assert max(rates) == rates[24] == pytest.approx(0.4)
    assert rates[99] == 0.0
    assert sorted(rates[24:], reverse=True) == rates[24:]


@pytest.mark.parametrize("recipe", [None, "w4a4g4"], ids=["fp32", "w4a4g4"])
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(recipe, tmp_path):
    protocol = PROTOCOLS["digits"]
    protocol = replace(protocol, schedule=replace(protocol.schedule, epochs=2))
    data = protocol.load(None)
    recipe = recipe and Recipe.load(recipe)
    whole, expected = train(protocol, recipe, 3, data, tmp_path / "whole")
    _, nothing = train(protocol, recipe, 3, data, tmp_path / "parts", stop_after=1)
    parts, found = train(protocol, recipe, 3, data, tmp_path / "parts")
    assert nothing is None and found["losses"] == expected["losses"]
    assert found["validation"] == expected["validation"]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name


@pytest.mark.parametrize("recipe", [None, "w4a4g4"], ids=["fp32", "w4a4g4"])
def test_a_run_that_diverged_ends_with_what_it_would_give_later(recipe, tmp_path, monkeypatch):
    protocol = PROTOCOLS["digits"]
    protocol = replace(protocol, schedule=replace(protocol.schedule, epochs=3, lr=1e30))
    data = protocol.load(None)
    recipe = recipe and Recipe.load(recipe)
    _, early = train(protocol, recipe, 3, data, tmp_path / "early")
    monkeypatch.setattr(runs, "_diverged", lambda model, progress: False)
    _, whole = train(protocol, recipe, 3, data, tmp_path / "whole")
    assert len(early["losses"]) == 1 and len(whole["losses"]) == 3
    for split in ("validation", "test"):
        assert early[split]["accuracy"] == whole[split]["accuracy"]
        assert isnan(early[split]["loss"]) and isnan(whole[split]["loss"])


def test_results_are_kept_and_made_again_when_asked(tmp_path):
    arguments = ["--protocol", "digits", "--recipe", "w8a8g8", "--seeds", "1", "--epochs", "1"]
    arguments += ["--results", str(tmp_path), "--json", str(tmp_path / "out.json")]
    first = run(*arguments)
    assert first.returncode == 0, first.stderr
    assert "digits w8a8g8" in first.stderr
    told = json.loads((tmp_path / "out.json").read_text())
    assert list(told["runs"]) == ["fp32", "w8a8g8"] and told["schedule"]["epochs"] == 1
    second = run(*arguments)
    assert second.stdout == first.stdout and not second.stderr
    kept = tmp_path / "digits" / "epochs=1" / "w8a8g8-0.json"
    result = json.loads(kept.read_text())
    del result["identity"]["recipe"]["activation_tokens"]
    kept.write_text(json.dumps(result))
    assert not run(*arguments).stderr  # a field that came in later has its default
    result["identity"]["recipe"]["activation_tokens"] = 4
    kept.write_text(json.dumps(result))
    assert "digits w8a8g8" in run(*arguments).stderr
    assert not list(tmp_path.glob("digits/**/*.checkpoint"))


def test_a_schedule_of_its_own_is_told_and_kept_apart(tmp_path):
    arguments = ["--protocol", "digits", "--recipe", "w8a8g8", "--seeds", "1", "--epochs", "1"]
    arguments += ["--results", str(tmp_path), "--json", str(tmp_path / "out.json")]
    changed = run(*arguments, "--lr", "0.02", "--decay", "0.1", "--warmup", "0.25")
    assert changed.returncode == 0, changed.stderr
    told = json.loads((tmp_path / "out.json").read_text())
    usual = PROTOCOLS["digits"].schedule
    assert told["schedule"] == asdict(replace(usual, epochs=1, lr=0.02, decay=0.1))
    assert len(list(tmp_path.glob("digits/epochs=1,lr=0.02,decay=0.1/*.json"))) == 2
    assert "digits fp32" in run(*arguments).stderr  # the usual rate: nothing is taken from there


def test_a_run_of_another_recipe_or_schedule_does_not_go_on_from_ones_checkpoint(tmp_path):
    recipe = tmp_path / "mine.json"
    recipe.write_text('{"name": "mine"}')
    job = accuracy.Job("digits", str(recipe), 0, (("epochs", 2),), None, str(tmp_path))
    first = job.checkpoint
    assert first == job.checkpoint
    for other in ((("epochs", 3),), (("epochs", 2), ("lr", 0.2)), ()):
        assert replace(job, changes=other).checkpoint != first
        assert replace(job, changes=other).path != job.path
    recipe.write_text('{"name": "mine", "activation_clip": 0.5}')
    assert job.checkpoint != first


def test_two_recipes_of_one_name_are_refused(tmp_path):
    (tmp_path / "w4a4g4.json").write_text('{"groups": 2}')
    result = run("--recipe", f"w4a4g4,{tmp_path / 'w4a4g4.json'}", "--results", str(tmp_path))
    assert result.returncode == 2 and "two recipes have one name" in result.stderr


def test_data_that_is_not_there_is_asked_for(tmp_path):
    missing = run("--protocol", "charlm", "--data", str(tmp_path), "--results", str(tmp_path))
    assert missing.returncode and "tinyshakespeare.txt" in missing.stderr


def test_the_page_tells_the_figures_beside_it():
    figures = json.loads(accuracy_page.FIGURES.read_text())
    assert accuracy_page.PAGE.read_text() == accuracy_page.page(figures)


def test_the_losses_of_a_run_that_diverged_are_null():
    told = {"loss": float("nan"), "training_loss": [1.5, float("nan")]}
    assert accuracy_page.finite(told) == {"loss": None, "training_loss": [1.5, None]}


def test_another_schedule_is_compared_with_fp32_under_both():
    usual = summarise({"fp32": [made(0.98), made(0.96), made(0.9)], "mine": [made(0.9)] * 3})
    other = summarise({"fp32": [made(0.97), made(0.97)], "mine": [made(0.96), made(0.95)]})
    figures = {"digits": {"runs": usual}, "digits@lr=0.2": {"runs": other}}
    (row,) = accuracy_page.schedule_rows(figures)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["`digits`", "lr 0.2", "`mine`"]
    assert cells[3:7] == ["+1.50 ± 0.50", "+1.50 ± 0.50"] * 2
    assert cells[7:] == ["97.00 %", "2"]
    assert not list(accuracy_page.schedule_rows({"digits": {"runs": usual}}))


@pytest.mark.claims
def test_digits_within_six_tenths_of_a_point_of_fp32():
    runs = json.loads((ROOT / "runs" / "claims" / "accuracy.json").read_text())["runs"]
    assert runs["fp32"]["seeds"] >= 3
    assert runs["w4a4g4"]["test"]["gap"] <= 0.6
    assert runs["w4a4g4"]["test"]["mean"] - runs["naive-4bit"]["test"]["mean"] >= 0.01
