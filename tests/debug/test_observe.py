"""The graphs run node by node give what they give when they are called, and let values go."""

import torch

from sqcompile.debug.observe import drawn_tangents, handed_on, observe
from tests.debug.conftest import RNG


def test_every_value_is_the_one_of_the_graph_called_as_a_function(any_step):
    graphs, values = any_step.graphs, any_step.values
    tangents = drawn_tangents(graphs)
    with torch.no_grad():
        results = graphs.forward(*values, RNG)
        _, saved = handed_on(graphs, values, results)
        gradients = graphs.backward(*saved, RNG, *tangents)
    seen = {(one.pass_, one.name): one.value for one in observe(graphs, values, RNG, tangents)}
    for pass_, graph, wanted in (
        ("forward", graphs.forward, results),
        ("backward", graphs.backward, gradients),
    ):
        nodes = graph.graph.output_node().args[0]
        assert len(nodes) == len(wanted) > 3
        for node, value in zip(nodes, wanted, strict=True):
            assert torch.equal(seen[pass_, node.name], value)


def test_tangents_may_be_made_of_the_outputs(any_step):
    given = []

    def tangents(outputs):
        given.extend(outputs)
        return [torch.ones_like(one) for one in outputs]

    last = list(observe(any_step.graphs, any_step.values, RNG, tangents))[-1]
    assert last.pass_ == "backward"
    assert [tuple(one.shape) for one in given] == [(len(any_step.args[0]), 10)]


def test_without_tangents_only_forward_runs(any_step):
    passes = {one.pass_ for one in observe(any_step.graphs, any_step.values, RNG)}
    assert passes == {"forward"}


def test_values_are_let_go_of_behind_their_last_reader(any_step):
    import weakref

    alive = {}
    for one in observe(any_step.graphs, any_step.values, RNG):
        if one.node.op == "call_function" and isinstance(one.value, torch.Tensor):
            alive[one.name] = weakref.ref(one.value)
        del one
    kept = {node.name for node in any_step.graphs.forward.graph.output_node().args[0]}
    assert not [name for name, value in alive.items() if value() is not None and name not in kept]


def test_a_node_says_whose_it_is(any_step):
    found = [one for one in observe(any_step.graphs, any_step.values, RNG) if one.role == "fprop"]
    assert {one.module for one in found} >= {"head"} or {one.module for one in found} >= {"last"}
    assert any(".py:" in one.line for one in found)
