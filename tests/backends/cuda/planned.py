"""Graphs step by step in the emulator: one module for the kernels of all of them."""

from dataclasses import dataclass
from operator import getitem

import torch
from torch import Tensor, fx

from sqcompile.backends import targets
from sqcompile.backends.fusion import Group, Plan
from sqcompile.backends.kernels import KernelSpec
from tests.backends.cuda.emulated import ARCH, Emulated, emulated
from tests.backends.graphs import Build, written

CUDA = targets.get("cuda", arch=ARCH)
Programs = dict[str, tuple[Build, list[Tensor]]]


@dataclass(frozen=True)
class Step:
    """A kernel of a graph: its spec, the nodes that it reads and those that it gives."""

    spec: KernelSpec
    reads: list[fx.Node]
    gives: list[fx.Node]
    several: bool


def steps_of(graph: fx.GraphModule) -> tuple[Plan, list[Step]]:
    """What a graph computes, in order."""
    plan = Plan(graph.graph, CUDA.kernels)
    found = []
    for step in plan.steps:
        if isinstance(step, Group):
            found.append(Step(step.spec, list(step.inputs), list(step.results), False))
        else:
            spec, nodes = plan.specs[step]
            several = len(spec.outputs) > 1
            found.append(Step(spec, [plan.memory[node] for node in nodes], [step], several))
    return plan, found


class Planned:
    """Programs and their kernels."""

    def __init__(self, programs: Programs) -> None:
        self.inputs = {name: inputs for name, (_, inputs) in programs.items()}
        self.graphs = {name: written(build, *given) for name, (build, given) in programs.items()}
        self.plans = {name: steps_of(graph) for name, graph in self.graphs.items()}
        self.kernels: Emulated = emulated(
            {
                f"{name}-{index}": step.spec
                for name, (_, steps) in self.plans.items()
                for index, step in enumerate(steps)
            }
        )

    def run(self, name: str) -> list[Tensor]:
        """The outputs of a program."""
        graph, (plan, steps) = self.graphs[name], self.plans[name]
        values: dict[fx.Node, Tensor] = {}
        given = iter(self.inputs[name])
        for node in graph.graph.find_nodes(op="placeholder"):
            values[node] = next(given).clone().contiguous()
        for index, step in enumerate(steps):
            self._step(f"{name}-{index}", step, values)
        (output,) = graph.graph.find_nodes(op="output")
        return [
            values[plan.memory[node]].reshape(node.meta["val"].shape) for node in output.args[0]
        ]

    def _step(self, kernel: str, step: Step, values: dict[fx.Node, Tensor]) -> None:
        spec = step.spec
        outputs = [torch.full(o.shape, 77).to(getattr(torch, o.dtype)) for o in spec.outputs]
        run_time = CUDA.kernels[spec.op].run_time
        scalars = [torch.tensor([spec[name] for name in run_time])] if run_time else []
        self.kernels.run(kernel, [*(values[node] for node in step.reads), *scalars, *outputs])
        if not step.several:
            values |= dict(zip(step.gives, outputs, strict=True))
            return
        for user in step.gives[0].users:
            assert user.target is getitem
            values[user] = outputs[user.args[1]]
