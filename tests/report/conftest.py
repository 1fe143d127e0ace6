"""A step that went through capture and passes, but not through a target's compiler."""

from types import SimpleNamespace

import pytest
import torch

from sqcompile.api import rewrite
from sqcompile.debug.observe import drawn_tangents
from sqcompile.debug.statistics import tensors
from sqcompile.recipe import Recipe
from sqcompile.report.data import report, write
from sqcompile.runtime import stages
from tests.models import make


def rewritten(name, recipe="w4a4g4"):
    """What the report reads of a CompiledStep, of a shared test model."""
    model, inputs = make(name)
    recipe = Recipe.load(recipe)
    made = rewrite(model, inputs, {}, recipe)
    parts, stages = made.parts, made.stages
    binary = SimpleNamespace(vm=b"vm", objects=[b"code"], images={}, target="cpu")
    variant = SimpleNamespace(
        key=SimpleNamespace(leaves=tuple(str(list(x.shape)) for x in inputs), gradients=True),
        mode="train",
        signature=SimpleNamespace(saved=tuple(parts.saved)),
        executable=SimpleNamespace(binary=binary),
        forward=parts.forward,
        backward=parts.backward,
        stages=stages,
        kernels=[SimpleNamespace(name="mm", nodes=["forward/mm"])],
    )
    return SimpleNamespace(
        model=model,
        inputs=inputs,
        parts=parts,
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


ASSEMBLY = """\t.type\tNAME_compute_,@function
NAME_compute_:
.Lfunc_begin0:
\t.cfi_startproc
\tpushq\t%rbp
.Ltmp0:
\tleaq\t.L__tvm_parallel_lambda(%rip), %rdi
\tretq
\t.size\tNAME_compute_, .Lfunc_end0-NAME_compute_
\t.type\t.L__tvm_parallel_lambda,@function
.L__tvm_parallel_lambda:
.LBB1_1:
\tvpdpbusd\t%zmm0, %zmm1, %zmm2
\t.size\t.L__tvm_parallel_lambda, .Lfunc_end1-.L__tvm_parallel_lambda
"""


@pytest.fixture(scope="session")
def run_folder(resnet, tmp_path_factory):
    """A run folder of the residual network as far as a page reads it: graphs, statistics of its
    tensors, an assembly of one kernel, invented times. Nothing was compiled."""
    folder = tmp_path_factory.mktemp("run")
    variant = resnet.variants[0]
    calls = [f"forward/{node.name}" for node in variant.forward.graph.nodes]
    kernels = {call.partition("/")[2]: [call] for call in calls if "fprop" in call}
    data = report(resnet, eager_layers={"stem": 10**6}, tensors=measured(resnet))
    data["calls"] = kernels
    data["verification"] = [{"mode": "train", "equal": True, "values": 41, "different": []}]
    data["training"] = {"epochs": 1, "runs": {"w4a4g4": RUN, "fp32": RUN}}
    data["timing"] = {
        "device": "cpu",
        "environment": {"cpu": "A CPU", "cores": 2, "load": 0.5, "versions": {"torch": "2"}},
        "runs": [{"threads": 2, "rows": {"w4a4g4 step": TIME}, "kernels": times(kernels)}],
        "roofs": {"bytes_per_s": 1e10, "macs_per_s": 1e12},
    }
    write(data, folder)
    stages.write(folder, variant.stages)
    (folder / "variant_0").mkdir()
    assembly = ASSEMBLY.replace("NAME", next(iter(kernels)))
    (folder / "variant_0" / "kernels_0.s").write_text(assembly)
    for number, stage in enumerate(variant.stages):
        (folder / f"{number:02d}_{stage.name}.txt").write_text(stage.text)
    return folder


RUN = {"epochs": [{"loss": 0.5, "accuracy": 0.75}], "accuracy": 0.75, "step_ms": 12.0}
TIME = {"median_ms": 1.5, "p10_ms": 1.0, "p90_ms": 2.0, "runs": 20}


def times(kernels):
    """Times of kernels, each longer than the one before."""
    return [
        {"kernel": name, "function": "forward", "calls": 1, "milliseconds": 0.25 + number}
        for number, name in enumerate(kernels)
    ]


def measured(step):
    """Statistics of a step's tensors."""
    named = {
        "param": dict(step.model.named_parameters()),
        "buffer": dict(step.model.named_buffers()),
        "input": {str(place): value for place, value in enumerate(step.inputs)},
    }
    values = [named[port.kind][port.name].detach() for port in step.parts.inputs]
    return tensors(step.parts, values, torch.tensor([5, 0, 0, 0]), drawn_tangents(step.parts))
