"""Rewritten steps of the shared models: graphs without a target's compiler."""

from types import SimpleNamespace

import pytest
import torch

from sqcompile.api import rewrite
from sqcompile.recipe import Recipe
from tests.models import make

RNG = torch.tensor([5, 0, 0, 0])


def rewritten(name, recipe="w4a4g4"):
    """A shared model with its graphs and the values that forward reads."""
    torch.manual_seed(0)
    model, args = make(name)
    graphs = rewrite(model, args, {}, Recipe.load(recipe)).parts
    kinds = {
        "param": dict(model.named_parameters()),
        "buffer": dict(model.named_buffers()),
        "input": {str(place): value for place, value in enumerate(args)},
    }
    values = [kinds[port.kind][port.name].detach() for port in graphs.inputs]
    return SimpleNamespace(model=model, args=args, graphs=graphs, values=values)


@pytest.fixture(scope="session", params=["mlp", "resnet"])
def any_step(request):
    """The rewritten step of a row norm's and of a batch norm's model."""
    return rewritten(request.param)
