"""A kernel that is not what its node says is found as the first node that differs."""

import pytest
import torch

import sqcompile
from sqcompile.debug.native import differing
from sqcompile.debug.observe import drawn_tangents, program
from tests.debug.conftest import RNG
from tests.models import make


@pytest.fixture(scope="module")
def step():
    torch.manual_seed(0)
    model, args = make("mlp")
    compiled = sqcompile.compile(model, args)
    (variant,) = compiled.variants
    return variant, compiled.values_of(variant, args, {})


def found(step):
    variant, values = step
    return list(differing(variant, values, RNG, drawn_tangents(program(variant))))


def node_of(graph, op):
    return next(node for node in graph.graph.nodes if op in str(node.target))


def test_right_kernels_differ_nowhere(step):
    assert found(step) == []


@pytest.mark.parametrize(
    ("which", "op", "place", "wrong"),
    [
        ("backward", "sq.shift_quantize_pair", 5, 2),  # groups: other exponents
        ("forward", "sq.quantize_rows", 1, 3),  # bits of a weight
    ],
)
def test_a_wrong_kernel_is_the_first_to_differ(step, which, op, place, wrong):
    """The graph is changed in place of the kernel: one of them is not what the other is."""
    graph = getattr(step[0], which)
    nodes = [node for node in graph.graph.nodes if op in str(node.target)]
    node = next(node for node in nodes if node.args[place] != wrong and node.args[place] < 8)
    right = node.args[place]
    node.update_arg(place, wrong)
    try:
        first, *rest = found(step)
    finally:
        node.update_arg(place, right)
    assert (first.name, first.pass_, first.op) == (node.name, which, op)
    assert rest and first.apart.a != first.apart.b
    assert first.to_json()["pass"] == which
