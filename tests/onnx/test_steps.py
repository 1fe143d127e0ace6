"""Whole steps in onnxruntime: every integer product's sums and every result, bit for bit."""

import re
from pathlib import Path

import onnx
import pytest
import torch

import sqcompile
from sqcompile.errors import UsageError
from sqcompile.onnx.export import build, export
from sqcompile.ops import OPS
from sqcompile.recipe import Recipe
from sqcompile.runtime import graph_file
from tests.models import MODELS, make
from tests.onnx.runs import run, same
from tests.onnx.steps import check_equal, compare, eager, feeds, sources
from tests.zoo import ZOO

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def step(run_folder):
    """The run folder as a compiled step, its inputs, and the state of the draws."""
    torch.manual_seed(1)
    return sqcompile.load(run_folder), (torch.randn(4, 1, 6, 7),), torch.tensor([9, 3, 1, 0])


def test_evaluation_has_the_bits_of_the_kernels(run_folder, step):
    compiled, inputs, rng = step
    (variant,) = [one for one in compiled.variants if one.mode == "eval"]
    values = [value.detach() for value in compiled.values_of(variant, inputs, {})]
    outputs, _ = variant.run_forward(values, rng)
    got = run(build(run_folder, graph="eval"), {"input_0": inputs[0]})
    assert list(got) == ["output_0"] and same(got["output_0"], outputs[0])


def test_a_training_step_has_the_bits_of_the_kernels(run_folder, step):
    """Forward gives backward what it saved: their names are the same."""
    compiled, inputs, rng = step
    (variant,) = [one for one in compiled.variants if one.mode == "train"]
    values = [value.detach() for value in compiled.values_of(variant, inputs, {})]
    outputs, saved = variant.run_forward([value.clone() for value in values], rng)
    forward = run(build(run_folder, graph="forward"), {"input_0": inputs[0], "rng": rng})
    for port, expected in zip(variant.signature.outputs, outputs, strict=True):
        name = {"output": f"output_{port.name}", "mutation": f"{port.name}.updated"}[port.kind]
        assert same(forward[name], expected), name
    tangent = torch.randn(4, 3)
    wanted = variant.run_backward(saved, rng, [tangent])
    given = {**forward, "input_0": inputs[0], "rng": rng, "output_0.grad": tangent}
    backward = run(build(run_folder, graph="backward"), given)
    for port, expected in zip(variant.signature.gradients, wanted, strict=True):
        assert same(backward[f"{port.name}.grad"], expected), port.name


@pytest.mark.parametrize("kind", ["eval", "forward", "backward"])
def test_every_product_has_the_sums_of_its_reference(run_folder, step, kind):
    compiled, inputs, rng = step
    mode = "eval" if kind == "eval" else "train"
    (variant,) = [one for one in compiled.variants if one.mode == mode]
    folder = run_folder / f"variant_{compiled.variants.index(variant)}"
    graphs = graph_file.read(folder)
    values = [value.detach() for value in compiled.values_of(variant, inputs, {})]
    if kind == "backward":
        _, saved = variant.run_forward([value.clone() for value in values], rng)
        given = [*saved, rng, torch.randn(4, 3)]
    else:
        given = [*values, rng]
    graph = graphs["backward" if kind == "backward" else "forward"]
    results, sums = eager(graph, given)
    got = run(build(run_folder, graph=kind, accumulators=True), feeds(graph, given))
    check_equal(got, results, sums)
    assert len(sums) == {"eval": 4, "forward": 4, "backward": 7}[kind]


def test_weights_of_evaluation_are_stored_in_4_bits(run_folder):
    """But for the first and the last layer, which the recipe keeps in 8."""
    kinds = {
        one.name.partition(".")[0]: one.data_type
        for one in build(run_folder).graph.initializer
        if "_weight_q" in one.name
    }
    narrow, wide = onnx.TensorProto.INT4, onnx.TensorProto.INT8
    assert kinds == {"conv": wide, "second": narrow, "third": narrow, "head": wide}


def test_nodes_tell_module_and_line_and_the_model_its_recipe(run_folder, tmp_path):
    written = export(run_folder, tmp_path / "x.onnx", graph="backward")
    model = onnx.load(written["path"])
    texts = {node.doc_string for node in model.graph.node}
    assert any(text.startswith("second, net.py:18  h = F.relu(") for text in texts)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert '"w4a4g4"' in about["sqcompile.recipe"] and about["sqcompile.graph"] == "backward"
    quantiser = next(one for one in model.functions if one.name.startswith("shift_quantize"))
    assert "ShiftQuant of a gradient" in quantiser.doc_string
    shaped = {value.name for value in [*model.graph.value_info, *model.graph.output]}
    assert {name for node in model.graph.node for name in node.output if name} <= shaped


def test_without_functions_the_bits_are_the_same(run_folder, step):
    _, inputs, _ = step
    flat = build(run_folder, inline=True)
    assert not flat.functions
    whole = run(build(run_folder), {"input_0": inputs[0]})
    assert same(run(flat, {"input_0": inputs[0]})["output_0"], whole["output_0"])


@pytest.mark.parametrize("level", ["ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"])
def test_optimisations_keep_the_integers(run_folder, step, level):
    """Accumulators stay; floats may differ by what docs/onnx.md says."""
    _, inputs, _ = step
    model = build(run_folder, accumulators=True)
    plain, other = (run(model, {"input_0": inputs[0]}, one) for one in ("ORT_DISABLE_ALL", level))
    first = next(name for name in plain if name.endswith(".accumulator"))
    assert same(plain[first], other[first])
    torch.testing.assert_close(plain["output_0"], other["output_0"], rtol=1e-2, atol=1e-2)


def test_a_small_gpt_has_the_bits_of_the_references(monkeypatch):
    """Attention, softmax, layer norms, GELU, and an embedding whose weight the head shares."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import gpt

    torch.manual_seed(0)
    inputs = (torch.randint(256, (2, 8)),)
    found = sources(gpt.GPT(layers=1, width=16, heads=2, context=8), inputs, "w6a6g6")
    assert [compare(source, inputs) for source in found.values()] == [7, 7, 14]


def test_limited_activations_have_the_bits_of_the_references():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 5))
    recipe = Recipe("limited", activation_limit=1.5, activation_groups=3, rules=())
    inputs = (torch.randn(6, 12),)
    for source in sources(model, inputs, recipe).values():
        assert compare(source, inputs)


def test_inputs_of_functions_are_the_arguments_of_ops(run_folder):
    """A viewer shows a batch norm's inputs as gamma and beta, not as x_2 and x_3."""
    norms = []
    for function in build(run_folder, graph="forward").functions:
        op = OPS.get(f"sq::{function.name}") or OPS[f"sq::{re.sub('_[0-9]+$', '', function.name)}"]
        names = {name.removeprefix(f"{function.name}/") for name in function.input}
        known = {argument.name for argument in op.target._schema.arguments}
        assert {re.sub("_[0-9]+$", "", name) for name in names} <= known
        norms += [names] if "batch_norm" in op.name else []
    assert norms and all({"gamma", "beta"} <= names for names in norms)


def test_a_step_that_lacks_the_graph_is_refused(step):
    with pytest.raises(UsageError, match="export its folder"):
        build(step[0])


@pytest.mark.exhaustive
@pytest.mark.parametrize("recipe", ["w4a4g4", "w4a4g4-limited", "w6a6g6", "w8a8g8"])
@pytest.mark.parametrize("name", [*MODELS, *ZOO, "digits", "vit"])
def test_every_shared_model(name, recipe, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    torch.manual_seed(0)
    model, inputs = _made(name)
    for source in sources(model, inputs, recipe).values():
        compare(source, inputs)


def _made(name):
    if name == "digits":
        import digits_resnet

        return digits_resnet.make_model(), (torch.randn(4, 1, 8, 8),)
    if name == "vit":
        import vit

        return vit.ViT(1, 24, 2), (torch.randn(2, 3, 32, 32),)
    if name in ZOO:
        return ZOO[name][0](), ZOO[name][1]()
    return make(name)
