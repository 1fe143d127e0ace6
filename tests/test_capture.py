"""From a model to a joint graph: places, source lines, and errors in the user's words."""

import pytest
import torch
from torch import nn

from sqcompile._torch_compat import Port
from sqcompile.capture import capture
from sqcompile.errors import CaptureError
from sqcompile.passes.pipeline import integer_training, run
from sqcompile.passes.printing import source_line
from sqcompile.recipe import RECIPES
from tests.models import make


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x, k, *, extra=None):
        y = self.norm(self.fc(x)) * k
        return {"y": y, "n": 3, "again": x}


def test_every_value_has_a_place():
    captured = capture(Scaled(), (torch.randn(3, 4), 2), {"extra": None})
    kinds = [port.kind for port in captured.inputs]
    assert kinds == ["param"] * 4 + ["buffer"] * 3 + ["input", "tangent"]
    assert Port("param", "fc.weight") in captured.inputs
    assert [p.name for p in captured.outputs if p.kind == "mutation"] == [
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    ]
    assert [p.name for p in captured.outputs if p.kind == "grad"] == [
        "fc.weight",
        "fc.bias",
        "norm.weight",
        "norm.bias",
    ]
    assert captured.constants == {1: 3}


@pytest.mark.parametrize("name", ["mlp", "resnet", "odd"])
def test_every_node_carries_the_users_line(name):
    model, inputs = make(name)
    captured = capture(model, inputs, {})
    graph, _ = run(captured.graph, integer_training(RECIPES["w4a4g4"]))
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    missing = [node.name for node in calls if not source_line(node).startswith("models.py:")]
    assert not missing


class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # the line to name
            return x
        return -x


class Mutates(nn.Module):
    def forward(self, x):
        return x.add_(1.0)


class Raises(nn.Module):
    def forward(self, x):
        return x @ torch.ones(77, 3)  # the line to name


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Branch(), ["test_capture.py:", "if x.sum() > 0", "Data-dependent", "torch.where"]),
        (Raises(), ["test_capture.py:", "x @ torch.ones(77, 3)", "raises RuntimeError: a and b"]),
        (Mutates(), ["changes", "not its inputs"]),
        (nn.GRU(4, 4), ["recurrent layers are not supported", "torch.compiler.disable"]),
        (nn.BatchNorm1d(4, momentum=None), ["batch norm needs a number as its momentum"]),
    ],
    ids=["branch", "raises", "mutates", "recurrent", "momentum"],
)
def test_errors_name_the_line_and_a_remedy(model, expected):
    with pytest.raises(CaptureError) as caught:
        capture(model, (torch.randn(3, 4),), {})
    assert caught.value.exit_code == 3
    for part in expected:
        assert part in str(caught.value)


def test_backward_products_belong_to_the_module_of_their_forward():
    model, inputs = make("resnet")
    graph, _ = run(capture(model, inputs, {}).graph, integer_training(RECIPES["w4a4g4"]))
    roles: dict[str, list[str]] = {}
    for node in graph.graph.nodes:
        if "bound" in node.meta:
            roles.setdefault(node.meta["module"], []).append(node.meta["role"])
    assert sorted(roles.pop("stem")) == ["fprop", "wgrad"]
    assert len(roles) == 6
    assert all(sorted(found) == ["dgrad", "fprop", "wgrad"] for found in roles.values())


def test_shapes_stay_constants_and_the_users_compiled_code_stays():
    compiled = []

    def backend(graph, _inputs):
        compiled.append(graph)
        return graph.forward

    mine = torch.compile(lambda x: x * 2 + 1, backend=backend)
    mine(torch.ones(3))
    model, _ = make("mlp")
    for batch in range(2, 14):
        captured = capture(model, (torch.randn(batch, 20),), {})
        (x,) = [n for n in captured.graph.graph.nodes if n.name == "x_0"]
        assert list(x.meta["val"].shape) == [batch, 20]
    mine(torch.ones(3))
    assert len(compiled) == 1


def test_a_frozen_first_layer_leaves_the_second_its_own_precision():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    model[0].requires_grad_(False)
    captured = capture(model, (torch.randn(2, 3, 9, 9),), {})
    graph, _ = run(captured.graph, integer_training(RECIPES["w4a4g4"]))
    bits = {
        (node.meta["module"], node.meta["role"]): node.meta["sq"].operands[0].bits
        for node in graph.graph.nodes
        if "bound" in node.meta
    }
    assert bits == {
        ("0", "fprop"): 8,
        ("1", "fprop"): 4,
        ("1", "wgrad"): 4,
        ("2", "fprop"): 8,
        ("2", "dgrad"): 8,
        ("2", "wgrad"): 8,
    }
