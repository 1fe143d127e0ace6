"""tools/vta_shifts.py: shifted operands or sorted groups, and what a step takes with both."""

import json
import re

import torch
import vta_shifts
from click.testing import CliRunner
from torch import nn


def test_the_table_has_the_choice_and_the_cycles_of_the_step(monkeypatch, tmp_path):
    def small():
        return nn.Sequential(
            *(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
        )

    monkeypatch.setitem(vta_shifts.MODELS, "gpt", (small, lambda: torch.randn(64, 24)))
    file = tmp_path / "out.json"
    result = CliRunner().invoke(vta_shifts.main, ["--model", "gpt", "--json", str(file)])
    assert result.exit_code == 0, result.output
    rows = json.loads(file.read_text())["gpt"]
    sorted_ = [row for row in rows if any(one["way"] == "sorted" for one in row["choices"])]
    assert sorted_ and all(row["lengths"] for row in sorted_)
    assert not any(row["lengths"] for row in rows if row not in sorted_)
    for row in rows:
        assert row["ran"] <= row["shifted"]
        assert row in sorted_ or row["ran"] == row["shifted"]
    shifted, ran = (sum(row[name] for row in rows) for name in ("shifted", "ran"))
    assert ran < shifted
    assert f"all programs: {shifted:,.0f} shifted, {ran:,.0f} as chosen" in result.output
    assert re.search(r"programs written in the step: \d+\n", result.output)
