"""Layers of two runs: what is compared is the same thing on both sides."""

import pytest
import torch
from torch import nn

from sqcompile.capture import capture
from sqcompile.debug.difference import apart, layers, total
from sqcompile.debug.layers import Call, of_graph, of_module, prepared, quantising, until
from sqcompile.recipe import Recipe
from tests.debug.conftest import RNG


class Plain(nn.Module):
    """Convolutions and linear layers without norms: float graph and PyTorch compute the same."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.body = nn.Sequential(nn.Conv2d(6, 5, 3, bias=False), nn.ReLU())
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        return self.head(self.body(self.act(self.stem(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    model, x = Plain(), torch.randn(4, 3, 9, 7)
    target = torch.tensor([0, 1, 2, 3])
    state = {name: value.detach().clone() for name, value in model.named_parameters()}

    def loss(output):
        return nn.functional.cross_entropy(output, target)

    call = Call((x,), state, RNG, loss)
    return model, call, prepared(capture(model, (x,), {}))


def in_float(plain):
    _, call, step = plain
    return of_graph(step, call, until(quantising(Recipe()), "assign_precision"))


def test_the_float_graph_is_pytorch_layer_by_layer(plain):
    model, call, _ = plain
    eager, graph = of_module(model, call), in_float(plain)
    assert graph.loss == pytest.approx(eager.loss, rel=1e-5)
    found = list(layers(eager, graph))
    assert {(point.kind, point.name) for point, _ in found} == {
        *(("output", name) for name in ("stem", "body.0", "head")),
        *(("input gradient", name) for name in ("body.0", "head")),
        *(("gradient", name) for name, _ in model.named_parameters()),
        ("result", "0"),
    }
    for point, one in found:
        assert one.relative < 1e-5, point
        assert one.cosine == pytest.approx(1.0)


def test_quantised_layers_differ_less_with_more_bits(plain):
    _, call, step = plain
    exact = in_float(plain)
    four, eight = (of_graph(step, call, quantising(Recipe.load(r))) for r in ("w4a4g4", "w8a8g8"))
    first, apart_by = next((p, one) for p, one in layers(exact, four) if one.differing)
    assert str(first) == "output of stem"
    assert "test_layers.py" in four.lines[first] and apart_by.a != apart_by.b
    assert 0 < 20 * total(exact, eight, "gradient") < total(exact, four, "gradient") < 1


def test_apart_counts_bits_and_names_the_first_element():
    a = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    b = torch.tensor([[1.0, -0.0], [3.0, 5.0]])
    one = apart(a, b)
    assert (one.differing, one.index, one.relative) == (2, (0, 1), pytest.approx(26**-0.5))
    assert one.sqnr_db == pytest.approx(14.15, abs=0.01)
    equal = apart(a, a)
    assert (equal.differing, equal.relative, equal.index) == (0, 0.0, None)
    assert equal.to_json()["sqnr_db"] is None
