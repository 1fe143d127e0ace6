"""With which exit code the command line ends, and what it says then."""

import json

import pytest

from tests.cli.conftest import FORWARD


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nett.py"], "there is no model file nett.py; did you mean net.py?"),
        (["trian", "net.py"], "no command and no model file 'trian'; did you mean 'train'?"),
        (["net.py", "--recipe", "w4a4g5"], "did you mean 'w4a4g4'?"),
        (["net.py", "--target", "gpu"], "there is no target 'gpu'"),
        (["net.py", "--arch", "sm_80"], "target 'cpu' has no option 'arch'"),
        (["net.py", "--verfy"], "No such option"),
        (["net.py", "--threads", "0"], "--threads"),
        (["inspect", "nowhere"], "cannot read nowhere/manifest.json: No such file"),
        (["bench", "nowhere"], "nowhere is not an artifact of sqcompile"),
        (["bench", "nowhere", "--threads", "1,x"], "'1,x' is no list of numbers"),
        (["net.py", "-o", "net.py"], "net.py is a file; give a folder with -o"),
        (["train", "net.py", "-o", "."], ". holds other files and is no run folder"),
    ],
)
def test_usage_is_2(call, arguments, message):
    result = call(*arguments)
    assert result.code == 2
    assert message in result.err
    assert result.out == ""
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_module", "bad.py:1  import no_such_module"),
        ("x = (", "bad.py:1  x = ("),
        (FORWARD.format(returns="self.first(x.view(3, 8))"), "bad.py:11  return self.first(x"),
        (FORWARD.format(returns="x if x.sum() > 0 else self.first(x)"), "bad.py:11"),
    ],
)
def test_a_model_that_does_not_load_or_trace_is_3(call, folder, source, message):
    (folder / "bad.py").write_text(source)
    result = call("bad.py")
    assert result.code == 3
    assert message in result.err
    assert "Traceback" not in result.err


def test_unsupported_ops_are_4_and_all_listed(call, folder):
    (folder / "bad.py").write_text(FORWARD.format(returns="torch.lgamma(self.first(x)).sinh()"))
    result = call("bad.py")
    assert result.code == 4
    assert "aten.lgamma" in result.err and "aten.sinh" in result.err
    assert "bad.py:11" in result.err


@pytest.mark.parametrize("command", ["compile", "train", "examine"])
def test_an_accelerator_that_does_not_exist_is_2(call, command):
    result = call(command, "net.py", "--target", "vta", "--hw", "pynk")
    assert result.code == 2
    assert "there is no VTA called 'pynk' and no such file; did you mean 'pynq'?" in result.err


def test_an_architecture_that_does_not_exist_is_2(call):
    result = call("net.py", "--target", "cuda", "--arch", "sm_80,sm_85")
    assert result.code == 2
    assert "no GPU architecture 'sm_85'; did you mean 'sm_86'" in result.err


def test_a_difference_is_6_and_the_folder_is_there_to_look_at(call, folder, monkeypatch):
    from sqcompile.runtime import verify

    def differs(*arguments):
        rows = (
            verify.Row("output", "0", True, 0, 0.0),
            verify.Row("gradient", "0.weight", False, 3, 0.25),
        )
        return verify.VerifyResult("train", rows)

    monkeypatch.setattr(verify, "verify", differs)
    result = call("net.py", "--no-eval", "--verify", "-o", "here")
    assert result.code == 6
    assert "train: gradient 0.weight: 3 elements differ, by at most 0.25" in result.err
    assert "FAILED (train): 1 of 2 differ" in result.out
    assert (folder / "here" / "report.html").exists()
    data = json.loads(call("net.py", "--no-eval", "--verify", "-o", "here", "--json").out)
    assert data["verification"][0]["different"][0]["name"] == "0.weight"


def test_a_product_in_float_is_6_with_verify():
    from sqcompile.cli.compile import refuse
    from sqcompile.errors import VerificationError

    product = {
        "line": "net.py:7  h = self.first(x)",
        "node": "mm",
        "op": "aten.mm",
        "module": "first",
        "operands": ["float32", "float32"],
        "integer": False,
    }
    report = {"verification": [], "products": [product]}
    refuse(report, verify=False)
    with pytest.raises(VerificationError, match=r"net.py:7  h = self.first\(x\)  aten.mm"):
        refuse(report, verify=True)


def broken(*arguments, **options):
    raise KeyError("inner")


def test_a_bug_is_1_with_the_traceback_under_debug(call, monkeypatch):
    from sqcompile import modelfile

    monkeypatch.setattr(modelfile, "load", broken)
    quiet, loud = call("net.py"), call("net.py", "--debug")
    assert (quiet.code, loud.code) == (1, 1)
    assert "this is a bug in sqcompile" in quiet.err
    assert "Traceback" not in quiet.err
    assert "Traceback" in loud.err and "in broken" in loud.err


def test_a_full_disk_is_1_without_a_traceback(call, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device", "runs/net/report.json")

    from sqcompile import modelfile

    monkeypatch.setattr(modelfile, "load", full)
    result = call("net.py")
    assert result.code == 1
    assert result.err == "error: runs/net/report.json: No space left on device\n"


def test_an_interrupt_is_130(call, monkeypatch):
    from sqcompile import modelfile

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(modelfile, "load", interrupted)
    assert call("net.py").code == 130


STRUCTURES = {
    "a namedtuple": ("Pair(y, y)", "TreeSpec(namedtuple, <class 'sqcompile_model_pair"),
    "a key that JSON changes": ("{(1, 2): y}", "TreeSpec(dict, [(1, 2)], [*])"),
}
OF_A_STRUCTURE = """\
from collections import namedtuple
import torch
from torch import nn
Pair = namedtuple("Pair", "first second")
class Net(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return {returned}
def make_model():
    return Net(6, 3)
def example_inputs():
    return (torch.randn(4, 6),)
def data():
    raise SystemExit("training began")
def loss(output, target):
    return output.sum()
"""


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("command", ["compile", "train"])
def test_an_output_that_cannot_be_stored_is_2_before_training(call, folder, command, structure):
    returned, message = STRUCTURES[structure]
    (folder / "pair.py").write_text(OF_A_STRUCTURE.replace("{returned}", returned))
    result = call(command, "pair.py", "-o", "here")
    assert result.code == 2, result.err
    assert (
        "error: the model's output cannot be stored: its structure has no JSON form: " in result.err
    )
    assert message in result.err
    assert "return tensors in tuples, lists and dicts." in result.err
    assert not (folder / "here").exists()


def test_evaluation_that_cannot_be_stored_is_2_before_training(call, folder):
    """Also where only eval_data() would compile it, at the end of an epoch."""
    text = OF_A_STRUCTURE.replace("{returned}", "y if self.training else Pair(y, y)")
    (folder / "pair.py").write_text(text + "def eval_data():\n    return data()\n")
    result = call("train", "pair.py", "-o", "here", "--no-eval")
    assert result.code == 2, result.err
    assert "the model's output cannot be stored" in result.err
