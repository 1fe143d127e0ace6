"""Training steps of whole models with groups of activations: the eager reference, the CPU target
and the CUDA target in the PTX emulator give the same bits."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import sqcompile
from examples import digits_resnet, gpt, resnet20
from sqcompile.backends import targets
from sqcompile.ops.conv import conv_fprop, conv_fprop_dequantize, conv_fprop_sums
from sqcompile.ops.norm_fused import l1_batch_norm_relu_quantize
from sqcompile.ops.norm_residual import l1_batch_norm_add_relu
from sqcompile.ops.product import shift_matmul, shift_matmul_dequantize
from sqcompile.ops.quantize import group_scale, quantize
from sqcompile.passes.editing import arguments, calls
from sqcompile.runtime.step import CompiledStep
from tests.backends.test_kernels import bits
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
    recipe: str = "w4a4g4"


MODELS = {
    "digits": Model(digits_resnet.DigitsResNet, lambda: (torch.rand(2, 1, 8, 8),)),
    "resnet20-one-block-a-stage": Model(
        lambda: resnet20.ResNet20(depth=1), lambda: (torch.randn(2, 3, 32, 32),)
    ),
    "gpt": Model(
        lambda: gpt.GPT(layers=2, width=32, heads=2, context=16),
        lambda: (torch.randint(gpt.VOCABULARY, (2, 16)),),
        "w6a6g6",
    ),
}


def compiled(name: str, target: str, arch: str = "") -> tuple[CompiledStep, tuple[Tensor, ...]]:
    """The training step of a model with the weights that seed 0 draws, and its inputs."""
    torch.manual_seed(0)
    model = MODELS[name]
    made, inputs = model.make(), model.inputs()
    chosen = targets.get(target, arch=arch) if arch else targets.get(target)
    return sqcompile.compile(made, inputs, target=chosen, recipe=model.recipe), inputs


def computed(step: CompiledStep, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Outputs, running statistics and gradients of one step, by name."""
    variant = step.prepare(*inputs)
    values = [value.detach().clone() for value in step.values_of(variant, inputs, {})]
    rng, generator = torch.tensor([5, 3, 1, 0]), torch.Generator().manual_seed(1)
    with torch.no_grad():
        outputs, saved = variant.run_forward(values, rng)
        tangents = [
            torch.randn(output.shape, generator=generator)
            for port, output in zip(variant.signature.outputs, outputs, strict=True)
            if port.kind == "output"
        ]
        gradients = variant.run_backward(saved, rng, tangents)
    ports = [*variant.signature.outputs, *variant.signature.gradients]
    names = [f"{port.kind} {port.name}" for port in ports]
    return dict(zip(names, [*outputs, *gradients], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_bit_of_a_step_is_that_of_the_reference_and_of_the_cpu(name: str) -> None:
    require_tool("g++")
    on_cpu, inputs = compiled(name, "cpu")
    assert sqcompile.verify(on_cpu, inputs).equal
    on_cuda, _ = compiled(name, "cuda", ARCH)
    on_cuda.prepare(*inputs).executable.emulate(ARCH)
    wanted, got = computed(on_cpu, inputs), computed(on_cuda, inputs)
    assert set(got) == set(wanted)
    differ = [one for one in wanted if not torch.equal(bits(got[one]), bits(wanted[one]))]
    assert not differ
    gradients = [one for one in got if one.startswith("grad ")]
    assert len(gradients) == len(list(on_cuda.parameters()))


def test_the_models_have_groups_of_activations() -> None:
    """The step of the digits has every form that carries group exponents."""
    step, _ = compiled("digits", "cpu")
    variant = step.variants[0]
    forward = [arguments(node) for node in calls(variant.forward, *PRODUCTS)]
    assert any(one.get("shift_groups", one.get("groups")) == 3 for one in forward)
    norms = [arguments(node) for node in calls(variant.forward, *NORMS)]
    assert any(one.get("groups", 1) == 3 for one in norms)
    assert calls(variant.forward, quantize)
    assert calls(variant.forward, group_scale) or calls(variant.backward, group_scale)
