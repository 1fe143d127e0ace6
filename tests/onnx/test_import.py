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
from tests.onnx.readers import CASES, REFUSED, Case, X, model
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


@pytest.mark.parametrize("why", REFUSED)
def test_a_form_that_is_not_read_is_told(tmp_path, why: str):
    onnx.save(model(*REFUSED[why]), tmp_path / "one.onnx")
    with pytest.raises(UnsupportedOpError, match=f"1 node [\\s\\S]*/part/[a-zA-Z]*: .*{why}"):
        load(tmp_path / "one.onnx")


def graph_of(nodes, inputs, weights, outputs=("y",)) -> onnx.ModelProto:
    """A model of nodes (op, inputs, output), its inputs and outputs like X."""
    made = [helper.make_node(op, names, [name]) for op, names, name in nodes]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, X.shape) for name in names]
        for names in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(made, "g", *ends, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


ROW, MATRIX = X[0], np.eye(4, dtype=np.float32) + 1
NAMES = {
    "inputs, one with the name that a builtin's becomes": (
        [("Sub", ["input", "input_1"], "y")], ["input", "input_1"], {},
    ),
    "the same in the other order": (
        [("Sub", ["input", "input_1"], "y")], ["input_1", "input"], {},
    ),
    "inputs that are one name in Python": ([("Sub", ["a.b", "a_b"], "y")], ["a.b", "a_b"], {}),
    "numbers": ([("Mul", ["0", "1"], "y")], ["0"], {"1": ROW}),
    "words of Python": ([("Mul", ["in", "lambda"], "y")], ["in"], {"lambda": ROW}),
    "self": ([("Relu", ["self"], "y")], ["self"], {}),
    "no ASCII": ([("Relu", ["x²"], "y")], ["x²"], {}),
    "a path through a word of Python and a method": (
        [("MatMul", ["x", "class.type.weight"], "y")], ["x"], {"class.type.weight": MATRIX},
    ),
    "a layer where another one has a part": (
        [("MatMul", ["x", "a.linear.weight"], "h"), ("MatMul", ["h", "a.weight"], "y")],
        ["x"],
        {"a.linear.weight": MATRIX, "a.weight": MATRIX * 3},
    ),
    "a path through a weight": (
        [("Add", ["x", "a"], "h"), ("MatMul", ["h", "a.b.w"], "i"), ("Mul", ["i", "a.1"], "y")],
        ["x"],
        {"a": ROW, "a.b.w": MATRIX, "a.1": ROW},
    ),
    "a path that ends in a dot": ([("MatMul", ["x", "w."], "y")], ["x"], {"w.": MATRIX}),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
def test_any_names_are_read(tmp_path, case: str):
    """ONNX names are any text; Python's and those of modules are not."""
    nodes, inputs, weights = NAMES[case]
    proto = graph_of(nodes, inputs, weights)
    onnx.save(proto, tmp_path / "one.onnx")
    given = [X * (k + 1) for k in range(len(inputs))]
    (wanted,) = session(proto).run(None, dict(zip(inputs, given, strict=True)))
    module = load(tmp_path / "one.onnx")
    torch.testing.assert_close(module(*map(torch.from_numpy, given)), torch.from_numpy(wanted))
    assert len(list(module.parameters())) == len(weights)


def test_constants_of_several_elements_are_raised_to_powers(tmp_path):
    """As exporters write the frequencies of rotary embeddings."""
    proto = graph_of(
        [
            ("ConstantOfShape", ["shape"], "zeros"),
            ("Add", ["zeros", "half"], "halves"),
            ("Pow", ["base", "halves"], "power"),
            ("Mul", ["x", "power"], "y"),
        ],
        ["x"],
        {"shape": np.array([4]), "half": np.float32(0.5), "base": np.float32(9)},
    )
    onnx.save(proto, tmp_path / "one.onnx")
    torch.testing.assert_close(
        load(tmp_path / "one.onnx")(torch.from_numpy(X)), 3 * torch.tensor(X)
    )


def test_double_inputs_and_constants_are_float32(tmp_path):
    proto = graph_of(
        [
            ("ConstantOfShape", ["shape"], "c"),
            ("Add", ["x", "c"], "h"),
            ("MatMul", ["h", "w"], "y"),
        ],
        ["x"],
        {"shape": np.array([4]), "w": MATRIX.astype(np.float64)},
    )
    value = numpy_helper.from_array(np.array([1.0]))
    proto.graph.node[0].attribute.append(helper.make_attribute("value", value))
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    onnx.save(proto, tmp_path / "one.onnx")
    x = torch.from_numpy(X).double()
    wanted = (x.float() + 1) @ torch.from_numpy(MATRIX)
    torch.testing.assert_close(load(tmp_path / "one.onnx")(x), wanted)


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


def test_a_size_of_minus_one_is_an_open_dimension(tmp_path):
    proto = graph_of([("Relu", ["x"], "y")], ["x"], {})
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(proto, tmp_path / "x.onnx")
    with pytest.raises(UsageError, match=r"x\.0: axis 0 of input x"):
        load(tmp_path / "x.onnx")
    assert load(tmp_path / "x.onnx", dims={"x.0": 3})(torch.ones(3, 4)).shape == (3, 4)


def test_sparse_initialisers_are_told(tmp_path):
    proto = graph_of([("Add", ["x", "thin"], "y")], ["x"], {})
    tensor = numpy_helper.from_array(np.array([2.0], np.float32), "thin")
    places = numpy_helper.from_array(np.array([1]), "places")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor, places, [4]))
    onnx.save(proto, tmp_path / "x.onnx")
    with pytest.raises(UnsupportedOpError, match="initialiser thin: sparse"):
        load(tmp_path / "x.onnx")


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
    onnx.save(graph_of([("Relu", ["x"], "y")], ["x"], {}, outputs=()), tmp_path / "blind.onnx")
    with pytest.raises(CaptureError, match="no valid ONNX model: its graph has no output"):
        load(tmp_path / "blind.onnx")
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
