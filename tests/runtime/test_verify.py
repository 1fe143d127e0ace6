"""Bit for bit: the compiled step against its reference graph, on several CPUs and threads."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sqcompile
from sqcompile.backends import targets
from sqcompile.backends.cpu.build import assembly
from sqcompile.ops.conv import conv_fprop, conv_fprop_dequantize, conv_fprop_sums
from sqcompile.ops.product import shift_matmul, shift_matmul_dequantize
from sqcompile.ops.quantize import quantize
from sqcompile.passes.contraction import FLOAT_PRODUCTS
from sqcompile.passes.editing import arguments, calls
from sqcompile.recipe import Recipe
from tests.models import make

CPUS = ["", "x86-64-v3", "x86-64"]
FORWARD = (
    *(conv_fprop, conv_fprop_dequantize, conv_fprop_sums),
    *(shift_matmul, shift_matmul_dequantize),
)


@pytest.fixture(autouse=True)
def _threads():
    before = sqcompile.get_num_threads()
    yield
    sqcompile.set_num_threads(before)


@pytest.mark.parametrize("mcpu", CPUS, ids=["host", "avx2", "sse2"])
@pytest.mark.parametrize("name", ["mlp", "resnet", "odd", "groups", "rms", "attention", "gpt"])
def test_every_bit_of_a_step_is_the_references(name, mcpu):
    model, inputs = make(name)
    step = sqcompile.compile(model, inputs, target=targets.get("cpu", mcpu=mcpu))
    for threads in (1, 2):
        sqcompile.set_num_threads(threads)
        result = sqcompile.verify(step, inputs, seed=threads)
        assert result.equal, [row for row in result.rows if not row.equal]
    kinds = {row.kind for row in result.rows}
    assert {"output", "gradient", "saved"} <= kinds
    assert ("running statistic" in kinds) == (name in ("resnet", "odd"))
    names = [row.name for row in result.rows if row.kind == "gradient"]
    assert names == [name for name, _ in model.named_parameters()]


def verified(name, recipe):
    """A small model's step, whose bits are those of its references."""
    model, inputs = make(name)
    step = sqcompile.compile(model, inputs, recipe=recipe)
    result = sqcompile.verify(step, inputs)
    assert result.equal, [row for row in result.rows if not row.equal]
    return step


@pytest.mark.parametrize(
    "recipe", ["w4a4g4-limited", "w6a6g6", "w8a8g8", "paper-4bit", "naive-4bit"]
)
def test_every_recipe_is_bit_exact(recipe):
    verified("resnet", recipe)


@pytest.mark.parametrize("name", ["resnet", "odd", "attention"])
def test_groups_of_all_activations_are_bit_exact(name):
    recipe = Recipe(name="grouped", activation_clip=0.7, activation_groups=4, rules=())
    step = verified(name, recipe)
    given = [arguments(node) for graph in step.variants for node in calls(graph.forward, *FORWARD)]
    assert any(one.get("shift_groups", one.get("groups")) == 4 for one in given)


@pytest.mark.parametrize("name", ["odd", "attention", "gpt"])
def test_limited_activations_of_either_sign_are_bit_exact(name):
    recipe = Recipe(name="limited", activation_limit=2.0, activation_groups=2, rules=())
    step = verified(name, recipe)
    nodes = [node.name for graph in step.variants for node in graph.forward.graph.nodes]
    assert any(node.endswith("_limited") for node in nodes)


@pytest.mark.parametrize("name", ["odd", "attention"])
def test_exponents_of_tokens_are_bit_exact(name):
    recipe = Recipe(
        name="tokens", activation_clip=0.8, activation_groups=4, activation_tokens=3, rules=()
    )
    step = verified(name, recipe)
    given = [arguments(n) for graph in step.variants for n in calls(graph.forward, quantize)]
    assert any(one["shift_groups"] == 4 for one in given)


def test_as_many_groups_of_activations_as_fit_a_byte_are_bit_exact():
    verified("odd", Recipe(activation_groups=5, activation_clip=0.5, check_finite=True))


MASKS = {
    "bool": torch.ones(5, 5, dtype=torch.bool).tril(),
    "all-masked-row": torch.arange(5) > torch.arange(5)[:, None],
    "float": torch.randn(2, 1, 5, 5).masked_fill(torch.ones(5, 5).triu(1) > 0, -torch.inf),
}


@pytest.mark.parametrize("name", MASKS)
def test_masked_attention_is_bit_exact_and_finite(name):
    model, (x,) = make("attention")
    step = sqcompile.compile(model, (x, MASKS[name]))
    assert sqcompile.verify(step, (x, MASKS[name])).equal
    step(x, MASKS[name]).sum().backward()
    assert all(p.grad.isfinite().all() for p in step.parameters())


class Dropping(nn.Module):
    """Attention with dropout whose weights are a result too."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, dropout=0.3, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)


def test_attention_with_dropout_multiplies_masked_integers():
    torch.manual_seed(0)
    inputs = (torch.randn(3, 7, 16),)
    step = sqcompile.compile(Dropping(), inputs)
    assert sqcompile.verify(step, inputs).equal
    floats = [n for n in step.variants[0].signature.saved if n.startswith(("softmax", "where"))]
    assert floats == ["softmax_quantize_0_packed", "softmax_quantize_1"]


class Losses(nn.Module):
    """Every loss that a model may have inside, and every activation."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x, target):
        x = self.first(x)
        positive = x.abs() + 1.0
        h = F.gelu(x, approximate="tanh") + F.silu(x) + F.hardswish(x) + F.hardsigmoid(x)
        h = h + torch.tanh(x) * torch.sigmoid(x) + F.elu(x) + F.selu(x) + F.celu(x, 1.5)
        h = h + torch.exp(x) + torch.erf(x) + positive.log() * positive.rsqrt() + 1.0 / positive
        h = self.last(h)
        weight = torch.tensor([1.0, 2.0, 3.0, 0.5, 0.25, 1.5])
        return (
            F.cross_entropy(h, target, label_smoothing=0.1)
            + F.cross_entropy(h, target, ignore_index=2, reduction="sum")
            + F.cross_entropy(h, target, weight, reduction="none").mean()
            + F.cross_entropy(h, h.softmax(0))
            + F.mse_loss(h, x)
            + F.l1_loss(h, x)
            + F.huber_loss(h, x, delta=0.5)
            + F.smooth_l1_loss(h, x, reduction="sum")
            + h.amax((0, 1)) * h.amax(0).sum()
        )


def test_losses_and_activations_of_a_model_are_bit_exact():
    torch.manual_seed(0)
    inputs = torch.rand(7, 6), torch.randint(0, 6, (7,))
    step = sqcompile.compile(Losses(), inputs)
    assert sqcompile.verify(step, inputs).equal


def test_evaluation_is_bit_exact_with_and_without_gradients():
    model, inputs = make("resnet")
    step = sqcompile.compile(model.eval(), inputs)
    assert sqcompile.verify(step, inputs).equal
    with torch.no_grad():
        assert sqcompile.verify(step, inputs).equal
    assert len(step.variants) == 2


def test_a_wrong_kernel_is_noticed():
    model, inputs = make("mlp")
    step = sqcompile.compile(model, inputs)
    variant = step.variants[0]
    first = next(n for n in variant.forward.graph.nodes if n.meta.get("role") == "fprop")
    quantizer = next(n for n in variant.forward.graph.nodes if n.name == "x_0_q")
    quantizer.args = (*quantizer.args[:2], 7, *quantizer.args[3:])
    variant.forward.recompile()
    result = sqcompile.verify(step, inputs)
    assert first is not None and not result.equal
    assert any(row.kind == "saved" and row.differing for row in result.rows)


@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_no_fused_multiply_add_and_no_float_product(name):
    model, inputs = make(name)
    step = sqcompile.compile(model, inputs)
    for variant in step.variants:
        code = "\n".join(map(assembly, variant.executable.binary.sources.values()))
        assert not re.findall(r"\bvfn?m(?:add|sub)\w*|\bfml[as]\b|\bvdpbf16ps\b", code)
        for graph in (variant.forward, variant.backward):
            assert not calls(graph, *FLOAT_PRODUCTS)
