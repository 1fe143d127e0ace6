"""What the statistics say of tensors, against the float graph's own numbers."""

import inspect
import json
import re

import pytest
import torch

from sqcompile.debug.observe import drawn_tangents, observe
from sqcompile.debug.quantisers import quantised, quantising
from sqcompile.debug.statistics import CHANNELS, tensors
from sqcompile.ops.quantize import quantize_rows
from sqcompile.ops.table import OPS
from tests.debug.conftest import RNG, rewritten


@pytest.fixture(scope="module")
def rows(any_step):
    graphs = any_step.graphs
    found = tensors(graphs, any_step.values, RNG, drawn_tangents(graphs))
    return {"found": found, "step": any_step}


def test_every_op_that_rounds_to_a_grid_is_known():
    rounding = re.compile(r"\.round\(\)|carried\(|_saved\(|\b(shift_)?quantize\w*\.reference\(")
    for name, op in OPS.items():
        source = inspect.getsource(inspect.unwrap(op.reference))
        if rounding.search(source.split('"""')[-1]):
            assert quantising(op.target), name


def test_rows_are_json_with_the_same_keys(rows):
    assert json.loads(json.dumps(rows["found"])) == rows["found"]
    assert len({tuple(row) for row in rows["found"]}) == 1


def test_every_product_has_its_weight_activation_and_gradients(rows):
    found = {(row["module"], row["kind"], row["role"]) for row in rows["found"]}
    layers = [name for name, m in rows["step"].model.named_modules() if hasattr(m, "weight")]
    products = [n for n in layers if rows["step"].model.get_submodule(n).weight.dim() > 1]
    assert len(products) >= 3
    for layer in products:
        assert (layer, "weight", "fprop") in found
        assert (layer, "gradient", "wgrad") in found


def test_a_weights_row_is_what_its_own_numbers_say(rows):
    step = rows["step"]
    for row in (row for row in rows["found"] if row["kind"] == "weight"):
        weight = dict(step.model.named_parameters())[f"{row['module']}.weight"].detach()
        q, scale, _ = quantize_rows.reference(weight, row["bits"], True)
        lost = (q.double() * scale.double() - weight.double()).square().sum()
        assert row["error"] == pytest.approx(float(lost / weight.double().square().sum()), rel=1e-3)
        assert row["absmax"] == pytest.approx(float(weight.abs().max()), rel=1e-3)
        assert row["scales"]["count"] == len(weight)
        assert row["zeros"] == pytest.approx(float((q == 0).float().mean()), rel=1e-3, abs=1e-9)
        assert sum(row["integers"]["counts"]) == weight.numel()


def test_the_estimate_at_the_tensors_own_bits_is_its_error(rows):
    """To nearest exactly where every element is in the sample; stochastic ones on the average."""
    for row in rows["found"]:
        if row["errors"] is None:
            continue
        groups = row["errors"]["groups"].index(row["groups"])
        estimate = row["errors"]["relative"][groups][row["errors"]["bits"].index(row["bits"])]
        tolerance = 1e-3 if row["rounding"] == "nearest" else 0.5
        assert estimate == pytest.approx(row["error"], rel=tolerance), row["name"]


def test_more_bits_lose_less(rows):
    for row in rows["found"]:
        for errors in row["errors"]["relative"] if row["errors"] else []:
            assert errors == sorted(errors, reverse=True)


def test_groups_count_their_channels(rows):
    grouped = [row for row in rows["found"] if row["exponents"]]
    assert grouped
    for row in grouped:
        assert len(row["exponents"]) == row["groups"] > 1
        assert sum(row["exponents"]) == row["channels"]["count"]
        assert len(row["channels"]["absmax"]) == min(CHANNELS, row["channels"]["count"])
        values, borders = row["channels"]["absmax"], row["channels"]["borders"]
        if not row["channels"]["sorted"]:
            first = sum(value > borders[0] * 1.001 for value in values)
            assert first == pytest.approx(row["exponents"][0], abs=1)


def test_a_clip_shows_in_the_clipped_share():
    step = rewritten("mlp")
    rows = tensors(step.graphs, step.values, RNG)
    clipped = {row["module"]: row["clipped"] for row in rows if row["kind"] == "activation"}
    assert clipped["middle"] > 0 == clipped["first"]


def test_integers_are_what_the_graph_hands_on(any_step):
    """A quantiser's integers, shifts taken off, times its step are the value that is compared."""
    for one in observe(any_step.graphs, any_step.values, RNG):
        for part in quantised(one.node.target, one.given, one.value):
            assert part.integers.min() >= part.low
            assert part.integers.max() <= part.high
            if part.place is None or part.kind == "normalised":
                continue
            stored = one.value[part.place] if isinstance(one.value, tuple) else one.value
            assert torch.equal(stored.float(), part.integers)
