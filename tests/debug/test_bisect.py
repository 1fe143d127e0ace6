"""A layer that was made bad is found, and the proposed recipe helps."""

import pytest
import torch
from torch import nn

from sqcompile.capture import capture
from sqcompile.debug.bisect import Bisection, propose
from sqcompile.debug.layers import Call, prepared
from sqcompile.recipe import Recipe
from tests.debug.conftest import RNG


@pytest.fixture(scope="module")
def search():
    """Four linear layers; every row of the third has a weight twelve times the others, for a
    feature that is always 0: all that it does is to widen the grid of the weights."""
    torch.manual_seed(0)
    layers = [nn.Linear(16, 16) for _ in range(4)]
    with torch.no_grad():
        layers[2].weight[:, 0] = 12 * layers[2].weight.abs().max()
        layers[1].bias[0] = -1000.0
    model = nn.Sequential(
        layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], nn.ReLU(), layers[3]
    )
    x = torch.randn(32, 16)
    state = {name: value.detach().clone() for name, value in model.named_parameters()}
    return Bisection(prepared(capture(model, (x,), {})), Call((x,), state, RNG, None))


def test_the_bad_layer_costs_most_and_its_rule_helps(search):
    recipe = Recipe.load("w4a4g4")
    costs = search.costs(recipe)
    assert {(cost.layer, cost.role) for cost in costs} == {
        (layer, role) for layer in ("2", "4") for role in ("weights", "activations", "gradients")
    }
    assert (costs[0].layer, costs[0].role) == ("4", "weights")
    assert max(costs, key=lambda cost: cost.alone or 0) == costs[0]
    found = propose(search, recipe, costs, 1)
    assert found is not None and found.after == pytest.approx(costs[0].raised)
    assert found.after < 0.9 * found.before
    assert found.recipe.rules[-1].path == "4" and found.recipe.rules[-1].weight_bits == 8
    assert Recipe.from_json(found.recipe.to_json()) == found.recipe


def test_every_part_that_quantises_has_its_error(search):
    stages = list(search.stages(Recipe.load("w4a4g4")))
    assert [stage.name for stage in stages][0] == "products"
    assert all(0 < stage.gradients < 1 and stage.results > 0 for stage in stages)


def test_groups_of_layers_that_gain_nothing_are_not_asked_one_by_one(search, monkeypatch):
    errors = {"4": 0.5}
    asked = []

    def error(recipe):
        paths = {rule.path for rule in recipe.rules} - {"<first>", "<last>"}
        asked.append(paths)
        return min((errors.get(path, 1.0) for path in paths), default=1.0)

    monkeypatch.setattr(search, "error", error)
    layers = [str(number) for number in range(8)]
    worth = search._worth(Recipe.load("w4a4g4"), {"weight_bits": 8}, layers, 1.0)
    assert worth == ["4", "5", "6", "7"]
    assert asked == [set(layers), set(layers[:4]), set(layers[4:])]
