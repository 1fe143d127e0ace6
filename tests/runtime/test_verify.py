"""Bit for bit: the compiled step against its reference graph, on several CPUs and threads."""

import re

import pytest
import torch

import sqcompile
from sqcompile.backends import targets
from sqcompile.backends.cpu.build import assembly
from sqcompile.passes.contraction import FLOAT_PRODUCTS
from sqcompile.passes.editing import calls
from tests.models import make

CPUS = ["", "x86-64-v3", "x86-64"]


@pytest.fixture(autouse=True)
def _threads():
    before = sqcompile.get_num_threads()
    yield
    sqcompile.set_num_threads(before)


@pytest.mark.parametrize("mcpu", CPUS, ids=["host", "avx2", "sse2"])
@pytest.mark.parametrize("name", ["mlp", "resnet", "odd", "groups", "rms"])
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


@pytest.mark.parametrize("recipe", ["w6a6g6", "w8a8g8", "paper-4bit", "naive-4bit"])
def test_every_recipe_is_bit_exact(recipe):
    model, inputs = make("resnet")
    step = sqcompile.compile(model, inputs, recipe=recipe)
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
