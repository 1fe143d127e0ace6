"""sqcompile compare, and the examples of its help and of bench's."""

import json
import shutil

import pytest

from tests.cli.conftest import FORWARD, SMALL


def test_two_recipes_of_a_model_file(call):
    result = call("compare", "net.py", "--recipes", "float,w4a4g4", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["a"], found["b"]) == ("float", "w4a4g4")
    assert found["first"] == {"kind": "output", "name": "0", "turn": 0}
    assert 0 < found["error"]["gradient"] < 1 and found["loss"]["a"] != found["loss"]["b"]
    layers = {(row["kind"], row["name"]) for row in found["values"]}
    assert layers >= {("output", "0"), ("output", "2"), ("gradient", "2.bias")}


def test_a_run_folder_beside_fp32_and_itself(call, compiled):
    folder, _ = compiled
    shown = call("compare", str(folder), "fp32")
    assert shown.code == 0, shown.err
    assert "first difference: output of 0, element (0, 0)" in shown.out
    same = call("compare", str(folder), str(folder))
    assert "equal, bit for bit" in same.out


def test_the_first_difference_names_the_users_line(call, folder):
    (folder / "own.py").write_text(FORWARD.format(returns="self.first(x)"))
    shown = call("compare", "own.py", "--recipes", "float,w4a4g4")
    assert shown.code == 0, shown.err
    assert "first difference: output of first" in shown.out
    assert "own.py:11  return self.first(x)" in shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["net.py", "other.py"], "name what to compare with --recipes"),
        (["net.py", "--recipes", "w4a4g5,fp32"], "did you mean 'w4a4g4'?"),
        (["net.py", "--recipes", "w4a4g4,float", "--bisect"], "float is not quantised"),
        (["net.py", "-o", "x.json"], "give --bisect"),
        (["net.py", "--recipes", "runs/gone"], "'runs/gone' is no run folder, fp32 or float"),
    ],
)
def test_usage_is_2(call, arguments, message):
    result = call("compare", *arguments)
    assert result.code == 2 and message in result.err


def examples(call, command):
    """The arguments of every example in a command's help."""
    lines = (line.strip() for line in call(command, "--help").out.splitlines())
    return [line.split()[1:] for line in lines if line.startswith(f"sqcompile {command} ")]


@pytest.fixture
def as_in_help(folder, compiled):
    """What the examples name; the model has a layer between its 8-bit ends."""
    middle = "nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(),"
    (folder / "model.py").write_text(SMALL.replace("nn.Linear(6, 8), nn.ReLU(),", middle))
    for name in ("digits", "w4", "w8"):
        shutil.copytree(compiled[0], folder / "runs" / name)
    return folder


def test_the_examples_of_compares_help_run(call, as_in_help):
    lines = examples(call, "compare")
    assert len(lines) >= 5
    for line in lines:
        result = call(*line)
        assert result.code == 0, (line, result.err)
    better = json.loads((as_in_help / "better.json").read_text())
    assert call("compare", "model.py", "--recipes", "float,better.json").code == 0
    assert better["name"] == "w4a4g4-bisected"


def test_the_examples_of_benchs_help_run(call, as_in_help):
    """A saved measurement is compared with itself, and is a bound that holds with much slack."""
    for line in examples(call, "bench"):
        quick = [] if "--compare" in line else ["--runs", "3", "--warmup", "1", "--kernels", "0"]
        slack = ["--slack", "0.99", "--products", "4"] if "--gate" in line else []
        result = call(*line, *quick, *slack)
        assert result.code == 0, (line, result.err)
        if (saved := as_in_help / "today.json").is_file():
            shutil.copy(saved, as_in_help / "before.json")


def test_a_ratio_below_its_bound_is_7(call, as_in_help):
    few = ("--runs", "3", "--warmup", "0", "--threads", "1", "--peers", "fp32", "--kernels", "0")
    failed = call("bench", "runs/digits", *few, "--gate", "1e6")
    assert failed.code == 7
    assert "FAILED" in failed.out and "step / fp32 PyTorch / 1 thread" in failed.err
    wrong = call("bench", "runs/digits", *few, "--gate", "quickly")
    assert wrong.code == 2 and "neither a number" in wrong.err
