"""ONNX models as torch modules: every op beside onnxruntime, a network that trains, errors."""

import re
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import sqcompile
from sqcompile import modelfile
from sqcompile.cli import run as command_line
from sqcompile.errors import CaptureError, TargetUnavailableError, UnsupportedOpError, UsageError
from sqcompile.onnx import load
from sqcompile.onnx.importer import READERS
from sqcompile.onnx.readers import FAMILIES
from tests.onnx.readers import CASES, Case, model
from tests.onnx.runs import session

ONLY_NEWER = {"Swish"}
"""Ops of an opset that the cases do not use."""


def test_every_op_that_is_read_has_a_case():
    assert FAMILIES and set(CASES) == set(READERS)
    assert {op for op, cases in CASES.items() if not cases} == ONLY_NEWER


@pytest.mark.parametrize(
    ("op", "case"),
    [(op, case) for op, cases in CASES.items() for case in cases],
    ids=[f"{op}-{k}" for op, cases in CASES.items() for k in range(len(cases))],
)
def test_an_op_gives_what_onnxruntime_gives(tmp_path, op: str, case: Case):
    proto = model(op, case)
    onnx.save(proto, tmp_path / "one.onnx")
    module = load(tmp_path / "one.onnx").eval()
    feeds = {f"x{k}": value for k, value in enumerate(case[0])}
    wanted = session(proto).run(None, feeds)
    got = module(*(torch.from_numpy(value) for value in case[0]))
    for actual, expected in zip(got if isinstance(got, tuple) else (got,), wanted, strict=True):
        # Sums of norms and products are added in another order.
        expected = torch.from_numpy(np.array(expected))
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(nn.functional.relu(self.stem(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(file, the model) as PyTorch's exporter writes it for training, with an open batch size."""
    path = tmp_path_factory.mktemp("exported") / "small.onnx"
    torch.manual_seed(0)
    small = Small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            small,
            (torch.randn(4, 1, 6, 6),),
            path,
            dynamo=False,
            opset_version=17,
            training=torch.onnx.TrainingMode.TRAINING,
            do_constant_folding=False,
            input_names=["image"],
            dynamic_axes={"image": {0: "batch"}},
        )
    return path, small


def test_an_exported_network_compiles_and_trains(exported):
    path, small = exported
    file = modelfile.load(path, dims={"batch": 4})
    module, inputs = file.make_model(), file.example_inputs()
    assert {name for name, _ in module.named_parameters()} == set(dict(small.named_parameters()))
    torch.testing.assert_close(module.eval()(*inputs), small.eval()(*inputs))
    step = sqcompile.compile(module.train(), inputs)
    result = sqcompile.verify(step, inputs)
    assert result.equal, [row for row in result.rows if not row.equal]
    optimiser = torch.optim.SGD(step.parameters(), lr=0.1)
    target, losses = torch.tensor([0, 1, 2, 0]), []
    for _ in range(8):
        optimiser.zero_grad()
        losses.append(nn.functional.cross_entropy(step(*inputs), target))
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0] - 0.01


def test_an_open_dimension_without_a_size_is_told(exported):
    path, _ = exported
    with pytest.raises(UsageError, match=r"batch: axis 0 of input image[\s\S]*--dim batch=8"):
        load(path)
    with pytest.raises(UsageError, match="no dynamic dimension 'rows'; it has batch"):
        load(path, dims={"rows": 2, "batch": 4})


def test_every_unsupported_node_is_listed_with_its_name(tmp_path, capsys):
    nodes = [
        helper.make_node("Det", ["x"], ["a"], name="first"),
        helper.make_node("Hardmax", ["x"], ["b"], name="second"),
        helper.make_node("Relu", ["x"], ["c"], name="third"),
    ]
    shaped = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 2]) for n in ("x", "c")]
    graph = helper.make_graph(nodes, "g", shaped[:1], shaped[1:])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "x.onnx")
    with pytest.raises(UnsupportedOpError, match=r"2 nodes[\s\S]*Det first[\s\S]*Hardmax second"):
        load(tmp_path / "x.onnx")
    assert command_line(["examine", str(tmp_path / "x.onnx")]) == 4


def test_a_weight_that_two_layers_share_is_one_parameter(tmp_path):
    tied = np.eye(4, dtype=np.float32) + 1
    nodes = [
        helper.make_node("MatMul", ["x", "tied.weight"], ["a"], name="/one/MatMul"),
        helper.make_node("MatMul", ["a", "tied.weight"], ["y"], name="/two/MatMul"),
    ]
    shaped = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 4]) for n in ("x", "y")]
    weights = [numpy_helper.from_array(tied, "tied.weight")]
    graph = helper.make_graph(nodes, "g", shaped[:1], shaped[1:], weights)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "x.onnx")
    module = load(tmp_path / "x.onnx")
    assert [name for name, _ in module.named_parameters()] == ["tied.weight"]
    x = torch.ones(2, 4)
    torch.testing.assert_close(module(x), x @ torch.from_numpy(tied) @ torch.from_numpy(tied))


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(CaptureError, match="no valid ONNX model"):
        load(tmp_path / "bad.onnx")
    with pytest.raises(UsageError, match="no model file"):
        modelfile.load(tmp_path / "missing.onnx")


def test_without_the_package_the_extra_is_named(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(TargetUnavailableError, match=r"pip install 'sqcompile\[onnx\]'"):
        load(exported[0])


def test_the_page_lists_what_is_read():
    page = (Path(__file__).resolve().parents[2] / "docs" / "onnx.md").read_text()
    listed = page.partition("These are read:\n\n")[2].partition(".\n")[0]
    names = [re.sub(r" \(.*?\)", "", name).strip() for name in re.split(r",(?![^(]*\))", listed)]
    assert sorted(names) == sorted(READERS)
