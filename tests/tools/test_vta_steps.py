"""tools/vta_steps.py: a step on VTA's simulator beside the CPU target's."""

import pytest
import torch
import vta_steps
from click.testing import CliRunner


def run(*arguments):
    return CliRunner().invoke(
        vta_steps.main,
        ["--model", "gpt", "--hw", "pynq", "--geometry", "0,4", "--seeds", "2", *arguments],
    )


def test_a_small_form_of_the_table_has_the_cpus_bits():
    result = run()
    assert result.exit_code == 0, result.output
    row = next(line for line in result.output.splitlines() if "1x16" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")][3:6] == ["2", "2", "100.0%"]


def test_a_bit_that_differs_is_exit_code_1(monkeypatch: pytest.MonkeyPatch):
    exact = vta_steps.trained

    def drifting(step, x, seed):
        found = exact(step, x, seed)
        return [found[0].nextafter(torch.tensor(9.0)), *found[1:]] if seed else found

    calls = []

    def second_target_drifts(step, x, seed):
        calls.append(step)
        return (drifting if step is calls[0] else exact)(step, x, seed)

    monkeypatch.setattr(vta_steps, "trained", second_target_drifts)
    result = run()
    assert result.exit_code == 1
    row = next(line for line in result.output.splitlines() if "1x16" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")][3:5] == ["2", "1"]
