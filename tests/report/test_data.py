"""report.json: counts against independent ones, and what it says of rules and floats."""

import json
from math import prod

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sqcompile.errors import UsageError
from sqcompile.recipe import Recipe, Rule
from sqcompile.report.data import not_integer, read, report, unused_rules, write
from sqcompile.report.products import products
from sqcompile.report.saved import eager_saved_bytes, saved_by_layer, saved_tensors
from tests.models import make
from tests.passes.programs import graph
from tests.report.conftest import rewritten


def test_forward_macs_are_those_that_torch_counts_for_the_float_model(any_step):
    name, step = any_step
    model, inputs = make(name)
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    data = report(step)
    forward = sum(p["macs"] for p in data["products"] if p["pass"] == "forward")
    assert forward == counter.get_total_flops() // 2
    assert data["macs"]["integer"] == data["macs"]["on_target"] == data["macs"]["total"]
    assert data["macs"]["integer_share"] == 1.0


def test_a_gradient_costs_what_its_forward_product_does(any_step):
    """Torch counts the gradients of grouped convolutions as if they had no groups."""
    _, step = any_step
    macs: dict = {}
    for p in report(step)["products"]:
        macs.setdefault(p["module"], {}).setdefault(p["role"], []).append(p["macs"])
    for roles in macs.values():
        assert sorted(roles["wgrad"]) == sorted(roles["fprop"])
        assert set(roles.get("dgrad", [])) <= set(roles["fprop"])


def test_products_have_role_module_bits_and_groups(resnet):
    found = report(resnet)["products"]
    assert not_integer({"products": found}) == []
    by_place = {(p["module"], p["role"]): p for p in found}
    assert by_place["stem", "fprop"]["operands"] == ["s8", "s8"]
    assert ("stem", "dgrad") not in by_place
    inner = by_place["blocks.0.conv2", "wgrad"]
    assert (inner["operands"], inner["groups"], inner["pass"]) == (["s4", "u4"], 4, "backward")
    assert inner["shapes"] == [[4, 6, 6, 8], [4, 6, 6, 8], [8, 8, 3, 3]]
    assert "self.conv2(h)" in inner["line"]


@pytest.mark.parametrize(
    ("program", "macs"),
    [
        ("y = aten.mm(x_0, x_1)", 4 * 8 * 8),
        ("y = aten.addmm(p_b, x_0, x_1)", 4 * 8 * 8),
        ("y = sq.matmul(x_0, x_1, None, False, False)", 4 * 8 * 8),
    ],
)
def test_a_product_left_in_float_is_seen(program, macs):
    left = graph("x_0: f32[4, 8], x_1: f32[8, 8], p_b: f32[8] -> y", program)
    (found,) = products(left, "forward")
    assert (found.macs, found.integer, found.operands) == (macs, False, ("float32", "float32"))
    assert not_integer({"products": [found.to_json()]}) == [
        f"y  {found.op} () reads float32 and float32"
    ]


def test_a_convolution_left_in_float_is_seen():
    left = graph(
        "x_0: f32[2, 4, 6, 6], p_w: f32[8, 4, 3, 3] -> y",
        "y = aten.convolution(x_0, p_w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)",
    )
    (found,) = products(left, "forward")
    assert (found.macs, found.integer) == (2 * 8 * 36 * 36, False)


def test_saved_bytes_add_up_and_leave_parameters_out(any_step):
    _, step = any_step
    saved = report(step)["saved"]
    assert saved["bytes"] == sum(t["bytes"] for t in saved["tensors"]) > 0
    assert not [t for t in saved["tensors"] if t["name"].startswith(("param:", "buffer:"))]
    packed = [t for t in saved["tensors"] if t["of"].endswith("4 bit")]
    assert packed and all(t["dtype"] == "uint8" for t in packed)
    assert sum(layer["bytes"] for layer in saved["layers"]) == saved["bytes"]
    assert {layer["fp32_eager_bytes"] for layer in saved["layers"]} == {None}


def test_bytes_are_told_by_layer_beside_those_of_pytorch(resnet):
    model, inputs = make("resnet")
    eager = saved_by_layer(model, inputs)
    saved = report(resnet, eager_layers=eager)["saved"]
    assert saved["fp32_eager_bytes"] == sum(eager.values()) == eager_saved_bytes(model, inputs)
    by_module = {layer["module"]: layer for layer in saved["layers"]}
    assert set(by_module) >= set(eager)
    norm = by_module["blocks.0.norm1"]
    assert norm["fp32_eager_bytes"] > 4 * norm["bytes"] > 0
    masks = [t for t in saved["tensors"] if t["of"].endswith("1 bit")]
    assert masks and {t["module"] for t in masks} <= {"", "blocks.0", "blocks.1"}


def test_eager_bytes_count_each_storage_once():
    linear = torch.nn.Linear(8, 4, bias=False)
    x = torch.randn(2, 8)
    assert eager_saved_bytes(linear, (x,)) == 2 * 8 * 4  # x; the weight is held anyway
    twice = torch.nn.Sequential(torch.nn.ReLU(), linear)
    assert eager_saved_bytes(twice, (x.requires_grad_(),)) == 2 * 8 * 4  # relu's result, by both


def test_counting_eager_bytes_changes_nothing():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.Dropout())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    eager_saved_bytes(model, (torch.randn(4, 8, generator=torch.Generator().manual_seed(0)),))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_rule_that_matches_nothing_is_told(resnet):
    found = products(resnet.variants[0].forward, "forward")
    recipe = Recipe(rules=(Rule("blocks.*", 6), Rule("heads", 8), Rule("<last>", 8)))
    assert unused_rules(recipe, found) == ["heads"]


def test_written_and_read_back(resnet, tmp_path):
    data = report(resnet, eager_layers={"stem": 1230, "head": 4})
    path = write(data, tmp_path)
    assert read(tmp_path) == data == json.loads(path.read_text())
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
    assert data["executed_by"] == "cpu"
    assert data["saved"]["fp32_eager_bytes"] == 1234
    assert data["seed"] == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), ("{", "is damaged"), ("[]", "not a report of this version")],
)
def test_a_folder_without_a_report(tmp_path, content, message):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(UsageError, match=message):
        read(tmp_path)


def test_a_transformer_keeps_scales_in_float_and_nothing_else_of_its_layers():
    """What its loss keeps, log-softmax's result, is float; scales are one a row or a feature."""
    saved = saved_tensors(rewritten("gpt", "w6a6g6").variants[0])
    floats = {one.name: one.shape for one in saved if one.dtype == "float32"}
    assert floats.pop("log_softmax") == (10, 7)
    rows_or_features = (
        shape[-1:] in ((1,), ()) or prod(shape[:-1]) == 1 for shape in floats.values()
    )
    assert all(rows_or_features), floats
    names = {one.name: one.dtype for one in saved}
    assert names["softmax_quantize_0"] == names["gelu_slope_q"] == "uint8"
