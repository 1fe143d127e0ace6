"""tools/accuracy_compare.py: paired differences of two rows, and rows that are not there."""

import json

import accuracy_compare
import pytest
from click.testing import CliRunner


def made(accuracy, losses=None):
    split = {"accuracy": accuracy}
    row = {"seeds": len(accuracy), "validation": split, "test": split}
    return row | ({"training_loss": losses} if losses else {})


@pytest.fixture
def compare(tmp_path, monkeypatch):
    figures = {
        "digits": {"runs": {"fp32": made([0.9, 0.8, 0.7], [1.0, 0.5, 0.25])}},
        "digits@lr=0.2": {
            "runs": {
                "fp32": made([0.93, 0.82], [0.75, 0.5]),
                "mine": made([0.9]),
                "diverged": made([0.9], [None]),
            },
        },
    }
    path = tmp_path / "accuracy.json"
    path.write_text(json.dumps(figures))
    monkeypatch.setattr(accuracy_compare, "FIGURES", path)
    return lambda *arguments: CliRunner().invoke(accuracy_compare.main, arguments)


def test_differences_are_paired_by_seed(compare):
    lines = compare("digits@lr=0.2:fp32", "digits:fp32").output.splitlines()
    assert lines == [
        "digits@lr=0.2:fp32 - digits:fp32",
        "  validation, points   +2.50 +- 0.50, 2 seeds",
        "  test, points         +2.50 +- 0.50, 2 seeds",
        "  training loss, nats  -0.1250 +- 0.1250, 2 seeds",
    ]


def test_a_training_loss_that_one_row_lacks_is_left_out(compare):
    for other in ("mine", "diverged"):
        lines = compare(f"digits@lr=0.2:{other}", "digits:fp32").output.splitlines()
        assert len(lines) == 3 and "+0.00 +- 0.00, 1 seeds" in lines[1]


def test_fewer_seeds_are_the_first_ones(compare):
    assert (
        "+3.00 +- 0.00, 1 seeds"
        in compare("digits@lr=0.2:fp32", "digits:fp32", "--seeds", "1").output
    )
    refused = compare("digits@lr=0.2:fp32", "digits:fp32", "--seeds", "3")
    assert refused.exit_code == 2 and "the shorter row has 2" in refused.output


@pytest.mark.parametrize(
    ("told", "wanted"),
    [("digit:fp32", "no entry digit; there are digits,"), ("digits:w4", "has no w4; fp32")],
)
def test_a_row_that_is_not_there_is_told_with_those_that_are(compare, told, wanted):
    refused = compare(told, "digits:fp32")
    assert refused.exit_code == 2 and wanted in refused.output
