"""Groups of elementwise ops on CUDA: the same bits as their ops one by one."""

from math import prod

import pytest
import torch
from torch import Tensor, fx

from sqcompile.backends import targets
from sqcompile.backends.fusion import Group, Plan
from sqcompile.backends.kernels import KernelSpec
from tests.backends.cuda.emulated import Emulated, emulated
from tests.backends.cuda.test_kernels import wrong
from tests.backends.graphs import written
from tests.backends.test_fusion import Build, activation, gradient, programs
from tests.conftest import require_tool

CUDA = targets.get("cuda", arch="sm_75")


def _steps(plan: Plan) -> list[tuple[KernelSpec, list[fx.Node], list[fx.Node]]]:
    """The spec of every step, what it reads and what it gives."""
    found = []
    for step in plan.steps:
        if isinstance(step, Group):
            found.append((step.spec, list(step.inputs), list(step.results)))
        else:
            spec, nodes = plan.specs[step]
            found.append((spec, [plan.memory[node] for node in nodes], [step]))
    return found


def _run(graph: fx.GraphModule, plan: Plan, kernels: Emulated, name: str) -> dict[fx.Node, Tensor]:
    """The values of a graph's nodes, step by step; views are their arguments."""
    values: dict[fx.Node, Tensor] = {}
    inputs = iter(INPUTS[name])
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(inputs).clone().contiguous()
    for index, (spec, reads, results) in enumerate(_steps(plan)):
        outputs = [torch.full(o.shape, 77).to(getattr(torch, o.dtype)) for o in spec.outputs]
        kernels.run(f"{name}-{index}", [*(values[node] for node in reads), *outputs])
        values |= dict(zip(results, outputs, strict=True))
    return values


PROGRAMS = programs()
INPUTS = {name: inputs for name, (_, inputs) in PROGRAMS.items()}
GRAPHS = {name: written(build, *inputs) for name, (build, inputs) in PROGRAMS.items()}
PLANS = {name: Plan(graph.graph, CUDA.kernels) for name, graph in GRAPHS.items()}


@pytest.fixture(scope="module")
def kernels() -> Emulated:
    require_tool("g++")
    return emulated(
        {
            f"{name}-{index}": spec
            for name, plan in PLANS.items()
            for index, (spec, _, _) in enumerate(_steps(plan))
        }
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_groups_give_the_bits_of_their_ops(name: str, kernels: Emulated) -> None:
    graph, plan = GRAPHS[name], PLANS[name]
    values = _run(graph, plan, kernels, name)
    (output,) = graph.graph.find_nodes(op="output")
    for node, want in zip(output.args[0], graph(*INPUTS[name]), strict=True):
        got = values[plan.memory[node]].reshape(want.shape)
        assert got.dtype == want.dtype
        assert not wrong(got, want.contiguous()).any(), node.name


def _names(build: Build, *inputs: Tensor) -> list[str]:
    plan = Plan(written(build, *inputs).graph, CUDA.kernels)
    return [spec.op for spec, _, _ in _steps(plan)]


def test_a_group_packs_and_measures_beside_what_it_stores() -> None:
    x = torch.randn(4, 16)
    assert _names(activation, x, x) == ["fused::add+relu+gt+pack_mask+absmax"]


def test_what_a_thread_cannot_pack_or_measure_has_a_kernel_of_its_own() -> None:
    x = torch.randn(4, 6)
    assert _names(activation, x, x) == ["fused::add+relu+gt+absmax", "sq::pack_mask"]
    packed = torch.zeros(prod(x.shape) // 8, dtype=torch.uint8)
    assert "sq::absmax" in _names(gradient, x, x, packed)
