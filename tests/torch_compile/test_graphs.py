"""torch.compile(backend="sqcompile"): the bits of sqcompile.compile, whatever Dynamo hands over."""

import copy

import pytest
import torch
from torch import nn

import sqcompile
from sqcompile.dynamo import torch_backend
from sqcompile.recipe import Recipe
from sqcompile.runtime.clocks import training_state
from tests.torch_compile.modules import (
    FLAT,
    Broken,
    BrokenInPlace,
    compiled,
    counting,
    grads,
    halves,
    same,
)


def test_it_is_registered_under_its_name():
    assert "sqcompile" in torch._dynamo.list_backends()
    assert torch._dynamo.lookup_backend("sqcompile") is torch_backend


def small_mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)), torch.randn(6, 8)


def small_cnn():
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    head = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)]
    return nn.Sequential(*body, *head), torch.randn(3, 1, 6, 6)


@pytest.mark.parametrize("made", [small_mlp, small_cnn])
def test_the_bits_are_those_of_compile(made):
    model, x = made()
    other = copy.deepcopy(model)
    step = sqcompile.compile(model, (x,), recipe="w6a6g6", seed=3)
    again = compiled(other, recipe="w6a6g6", seed=3)
    pairs = [(m, torch.optim.SGD(m.parameters(), 0.05)) for m in (step, again)]
    for number in range(4):
        results = []
        for module, optimizer in pairs:
            out = module(x)
            out.square().mean().backward()
            results.append(out)
            if number % 2:  # two micro-steps a step
                optimizer.step()
        assert torch.equal(*results)
        assert same(grads(model), grads(other))
        assert same(model.state_dict(), other.state_dict())
    (clock,) = [c for c in training_state(again)["clocks"] if c["parameters"]]
    assert clock.pop("parameters") == [name for name, _ in model.named_parameters()]
    assert clock == step.training_state()
    for module, _ in pairs:
        module.eval()
    with torch.no_grad():
        assert torch.equal(step(x), again(x))


@pytest.mark.parametrize("kind", [Broken, BrokenInPlace])
def test_a_graph_break_changes_no_bit(kind):
    whole, x = halves()
    parts, _ = halves(kind)
    graphs = []
    first = torch.compile(whole, backend=torch_backend, options={"recipe": FLAT})
    second = torch.compile(parts, backend=counting(graphs), options={"recipe": FLAT})
    for _ in range(2):
        out = first(x), second(x)
        for one in out:
            one.sum().backward()
        assert torch.equal(*out)
        assert same(grads(whole), grads(parts))
    assert len(graphs) == 2


def test_views_stay_views_across_a_graph_break():
    layer = nn.Linear(4, 6)

    def of_an_input(x):
        flat, y = x.view(-1), layer(x)
        torch._dynamo.graph_break()
        return flat, y

    def of_an_output(x):
        y = layer(x)
        return y, y.view(-1), *y.chunk(2, 1)

    x = torch.randn(3, 4)
    flat, _ = compiled(of_an_input)(x)
    flat.fill_(7.0)
    assert (x == 7.0).all()

    y, flat, left, right = compiled(of_an_output)(x)
    assert torch.equal(torch.cat([left, right], 1), y)
    with torch.no_grad():
        flat.fill_(5.0)
    assert all((part == 5.0).all() for part in (y, left, right))
    (left.sum() + y.sum()).backward()
    assert torch.equal(layer.bias.grad, torch.tensor([6.0] * 3 + [3.0] * 3))


def test_a_graph_of_views_alone_is_left_to_torch():
    x = torch.randn(3, 4, requires_grad=True)
    out = compiled(lambda x: (x.view(-1)[2:], 3))(x)
    assert out[1] == 3 and out[0]._base is x


def test_a_write_into_memory_that_inputs_share_is_refused():
    def write(x, part):
        part.add_(1.0)
        return x * 2

    x = torch.randn(3, 4)
    with pytest.raises(Exception, match="memory that two inputs share"):
        compiled(write)(x, x[:2])


@pytest.mark.parametrize("dynamic", [None, True, False])
def test_every_shape_compiles_once_with_its_sizes_as_constants(dynamic):
    layer, graphs = nn.Linear(6, 3), []
    run = torch.compile(layer, backend=counting(graphs), dynamic=dynamic)
    for _ in range(2):
        for batch in (4, 5, 7):
            x = torch.randn(batch, 6)
            assert run(x).shape == (batch, 3)
    assert len(graphs) == 3


def test_numbers_are_constants():
    layer, graphs = nn.Linear(6, 3), []
    run = torch.compile(lambda x, by: layer(x) * by, backend=counting(graphs))
    x = torch.randn(4, 6)
    once = run(x, 1.0)
    for _ in range(2):
        for by in (2.0, 4.0, 3):
            assert torch.equal(run(x, by), once * by)
    assert len(graphs) == 4


def test_functions_of_several_modules():
    one, two = nn.Linear(6, 6), nn.Linear(6, 6)
    x = torch.randn(4, 6)

    def both(x):
        return {"sum": one(x) + two(x).relu(), "n": 3}

    out = compiled(both)(x)
    assert out["n"] == 3
    out["sum"].sum().backward()
    assert torch.equal(one.bias.grad, torch.full((6,), 4.0))
    assert two.weight.grad.shape == (6, 6)


def test_rules_go_by_module_path(monkeypatch):
    paths = []
    precision = Recipe.precision
    monkeypatch.setattr(
        Recipe, "precision", lambda self, *at: paths.append(at[0]) or precision(self, *at)
    )
    model, x = halves()
    compiled(lambda x: model(x))(x)
    compiled(nn.ModuleDict({"net": model})["net"])(x)
    assert paths == ["a", "b"] * 2
