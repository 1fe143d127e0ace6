"""A step that went through capture and passes, but not through a target's compiler."""

from types import SimpleNamespace

import pytest

from sqcompile.capture import capture
from sqcompile.passes.partition import partition
from sqcompile.passes.pipeline import integer_training, run
from sqcompile.recipe import Recipe
from tests.models import make


def rewritten(name, recipe="w4a4g4"):
    """What the report reads of a CompiledStep, of a shared test model."""
    model, inputs = make(name)
    recipe = Recipe.load(recipe)
    captured = capture(model, inputs, {})
    graph, stages = run(captured.graph, integer_training(recipe))
    parts = partition(graph, captured.outputs)
    binary = SimpleNamespace(vm=b"vm", objects=[b"code"], images={}, target="cpu")
    variant = SimpleNamespace(
        key=SimpleNamespace(leaves=tuple(str(list(x.shape)) for x in inputs), gradients=True),
        mode="train",
        signature=SimpleNamespace(saved=tuple(parts.saved)),
        executable=SimpleNamespace(binary=binary),
        forward=parts.forward,
        backward=parts.backward,
        stages=stages,
        kernels=[1, 2],
    )
    return SimpleNamespace(
        variants=[variant],
        recipe=recipe,
        target="cpu",
        training_state=lambda: {"seed": 7},
    )


@pytest.fixture(scope="session", params=["mlp", "resnet", "odd"])
def any_step(request):
    """(name, step) for every shared model."""
    return request.param, rewritten(request.param)


@pytest.fixture(scope="session")
def resnet():
    """The residual network's step."""
    return rewritten("resnet")
