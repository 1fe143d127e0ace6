"""Training steps of whole models with groups of activations: the CUDA target in the PTX emulator
gives the bits of the eager reference, as the CPU target does."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sqcompile
from examples import digits_resnet, gpt, resnet20, vit
from sqcompile.backends import targets
from sqcompile.ops.conv import conv_fprop, conv_fprop_dequantize, conv_fprop_sums
from sqcompile.ops.norm_fused import l1_batch_norm_relu_quantize
from sqcompile.ops.norm_residual import l1_batch_norm_add_relu
from sqcompile.ops.product import shift_matmul, shift_matmul_dequantize
from sqcompile.ops.quantize import group_scale, quantize
from sqcompile.passes.editing import arguments, calls
from sqcompile.recipe import Recipe
from sqcompile.runtime.step import CompiledStep
from tests import models
from tests.conftest import require_tool

ARCH = "sm_80"
PRODUCTS = (
    *(conv_fprop, conv_fprop_dequantize, conv_fprop_sums),
    *(shift_matmul, shift_matmul_dequantize),
)
NORMS = (l1_batch_norm_relu_quantize, l1_batch_norm_add_relu)


@dataclass(frozen=True)
class Model:
    """A model, its inputs and the recipe it is compiled with."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    recipe: str | Recipe = "w4a4g4"


MODELS = {
    "digits": Model(digits_resnet.DigitsResNet, lambda: (torch.rand(2, 1, 8, 8),)),
    "small-gpt": Model(*models.MODELS["gpt"], "w6a6g6"),
    "limited": Model(
        lambda: nn.Sequential(nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 5)),
        lambda: (torch.randn(9, 20),),
        Recipe("limited", activation_groups=3, activation_limit=2.0, rules=()),
    ),
    "resnet20-one-block-a-stage": Model(
        lambda: resnet20.ResNet20(depth=1), lambda: (torch.randn(2, 3, 32, 32),)
    ),
    "gpt": Model(
        lambda: gpt.GPT(layers=2, width=32, heads=2, context=16),
        lambda: (torch.randint(gpt.VOCABULARY, (2, 16)),),
        "w6a6g6",
    ),
}
OFTEN = ("digits", "small-gpt", "limited")
ALL_4_BIT = replace(Recipe.load("w4a4g4"), name="all-4-bit", rules=())
INT4 = {
    "two-layers": Model(
        lambda: nn.Sequential(nn.Linear(70, 12), nn.ReLU(), nn.Linear(12, 5)),
        lambda: (torch.randn(9, 70),),
        ALL_4_BIT,
    ),
    "two-convolutions": Model(
        lambda: nn.Sequential(
            *(nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Conv2d(8, 12, 3, stride=2),
        ),
        lambda: (torch.randn(2, 4, 7, 5),),
        ALL_4_BIT,
    ),
    "digits-int4": MODELS["digits"],
    "gpt-int4": replace(MODELS["gpt"], recipe="w4a4g4"),
    "vit-int4": Model(
        lambda: vit.ViT(layers=1, width=32, heads=2), lambda: (torch.randn(2, 3, 32, 32),)
    ),
}
"""Steps with products of nibbles."""
OFTEN_INT4 = ("two-layers", "two-convolutions")
OF_CONVOLUTIONS = ("two-convolutions", "digits-int4")
"""Those with convolutions whose operands all have 4 bits."""


def compiled(
    model: Model, target: str, **options: str | bool
) -> tuple[CompiledStep, tuple[Tensor, ...]]:
    """The training step of a model with the weights that seed 0 draws, and its inputs."""
    torch.manual_seed(0)
    made, inputs = model.make(), model.inputs()
    chosen = targets.get(target, **options)
    return sqcompile.compile(made, inputs, target=chosen, recipe=model.recipe), inputs


def names(of: dict[str, Model], often: tuple[str, ...] = ()) -> list[Any]:
    """Parameters, of which those in `often` always run."""
    rare = [pytest.mark.exhaustive]
    return [pytest.param(name, marks=[] if name in often else rare) for name in of]


@pytest.mark.slow
@pytest.mark.parametrize("name", names(MODELS, OFTEN))
def test_every_bit_of_a_step_is_that_of_the_reference(name: str) -> None:
    require_tool("g++")
    step, inputs = compiled(MODELS[name], "cuda", arch=ARCH)
    step.prepare(*inputs).executable.emulate(ARCH)
    result = sqcompile.verify(step, inputs)
    assert result.equal
    gradients = [row for row in result.rows if row.kind == "gradient"]
    assert len(gradients) == len(list(step.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("name", names(INT4, OFTEN_INT4))
def test_every_bit_of_a_step_of_nibbles_is_that_of_the_reference(name: str) -> None:
    require_tool("g++")
    step, inputs = compiled(INT4[name], "cuda", arch=ARCH, int4=True)
    executable = step.prepare(*inputs).executable
    sources = {
        file: text.partition('extern "C"')[2]
        for file, text in executable.binary.sources.items()
        if file.endswith(".cu")
    }
    used = "".join(sources.values())
    assert "sq_m16n8k64_u4_s4" in used and "sq_m16n8k64_s4_s4" in used
    gradients = [text for file, text in sources.items() if "conv_wgrad" in file]
    assert any("sq_m16n8k64_s4" in text for text in gradients) == (name in OF_CONVOLUTIONS)
    executable.emulate(ARCH)
    assert sqcompile.verify(step, inputs).equal


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MODELS | INT4)
def test_every_bit_of_a_step_on_the_cpu_is_that_of_the_reference(name: str) -> None:
    step, inputs = compiled((MODELS | INT4)[name], "cpu")
    assert sqcompile.verify(step, inputs).equal


def test_the_models_have_groups_of_activations() -> None:
    """The step of the digits has every form that carries group exponents."""
    step, _ = compiled(MODELS["digits"], "cuda", arch=ARCH)
    variant = step.variants[0]
    forward = [arguments(node) for node in calls(variant.forward, *PRODUCTS)]
    assert any(one.get("shift_groups", one.get("groups")) == 3 for one in forward)
    norms = [arguments(node) for node in calls(variant.forward, *NORMS)]
    assert any(one.get("groups", 1) == 3 for one in norms)
    assert calls(variant.forward, quantize)
    assert calls(variant.forward, group_scale) or calls(variant.backward, group_scale)
