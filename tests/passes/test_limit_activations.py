"""Limited activations: the program before and after the pass, and against float64."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from sqcompile.capture import capture
from sqcompile.passes.assign_precision import Operand, ProductSpec, assign_precision
from sqcompile.passes.limit_activations import limit_activations
from sqcompile.passes.pipeline import integer_training, run
from sqcompile.recipe import Recipe
from tests.passes.programs import graph, same

LIMIT = 1.5
WEIGHT = Operand("weight", 4, True)
GRADIENT = Operand("gradient", 4, True)
SIGNED = Operand("activation", 4, True, limit=LIMIT)
UNSIGNED = Operand("activation", 4, False, limit=LIMIT)
END = """
    total = sq.ordered_sum({x}, [0, 1], True)
    there = aten.ne.Scalar(x_0, 0)
    rows = aten.sum.dim_IntList(there, [0], True)
    whole = aten.sum.dim_IntList(rows, [1], True)
    count = aten._to_copy.default(whole, dtype=f32)
    least = aten.clamp.default(count, 1.0)
    more = aten.mul.Tensor(total, 1.5)
    end = aten.div.Tensor(more, least)
"""


def spec(role, *operands, module="fc"):
    return {"sq": ProductSpec(module, role, operands, 1, False, 0)}


def test_products_read_what_is_inside_and_the_gradient_stops_outside():
    signature = "x_0: f32[4, 8], p_w: f32[6, 8], g_0: f32[4, 6] -> y, dx, dw"
    program = """
        y = sq.matmul({x}, p_w, None, False, True)
        {dx} = sq.matmul(g_0, p_w, None, False, False)
        dw = sq.matmul(g_0, {x}, None, True, False)
    """
    meta = {
        "y": spec("fprop", SIGNED, WEIGHT),
        "dx": spec("dgrad", GRADIENT, WEIGHT),
        "dw": spec("wgrad", GRADIENT, SIGNED),
    }
    before = graph(signature, program.format(x="x_0", dx="dx"), **meta)
    limited = (
        """
        size = aten.abs.default(x_0)
    """
        + END.format(x="size")
        + """
        inside = aten.le.Tensor(size, end)
        positive = aten.gt.Scalar(x_0, 0)
        below = aten.neg.default(end)
        beyond = aten.where.self(positive, end, below)
        x = aten.where.self(inside, x_0, beyond)
    """
    )
    stopped = "dx = aten.where.ScalarOther(inside, all, 0)"
    after = graph(signature, limited + program.format(x="x", dx="all") + stopped)
    assert same(limit_activations(before), after)


def test_behind_a_relu_one_mask_is_kept_for_both():
    signature = "x_0: f32[4, 8], p_w: f32[6, 8], g_0: f32[4, 6] -> y, dz"
    program = """
        y = sq.matmul({x}, p_w, None, False, True)
        relu = aten.gt.Scalar(x_0, 0)
        dx = sq.matmul(g_0, p_w, None, False, False)
        dz = aten.where.ScalarOther({mask}, dx, 0)
    """
    meta = {"y": spec("fprop", UNSIGNED, WEIGHT), "dx": spec("dgrad", GRADIENT, WEIGHT)}
    before = graph(signature, program.format(x="x_0", mask="relu"), **meta)
    limited = (
        END.format(x="x_0")
        + """
        inside = aten.le.Tensor(x_0, end)
        x = aten.where.self(inside, x_0, end)
    """
    )
    both = program.replace("dx =", "both = aten.logical_and.default(relu, inside)\n        dx =")
    after = graph(signature, limited + both.format(x="x", mask="both"))
    assert same(limit_activations(before), after)


def test_the_gradient_of_columns_is_rows():
    """x is read with its axes swapped, and the input gradient has them in their order."""
    meta = {"y": spec("fprop", UNSIGNED, WEIGHT), "all": spec("dgrad", GRADIENT, WEIGHT)}
    program = """
        y = sq.matmul({x}, p_w, None, True, True)
        all = sq.matmul(g_0, p_w, None, False, False)
    """
    signature = "x_0: f32[8, 4], p_w: f32[6, 8], g_0: f32[4, 6] -> y, "
    before = graph(f"{signature}all", program.format(x="x_0"), **meta)
    limited = (
        END.format(x="x_0")
        + """
        inside = aten.le.Tensor(x_0, end)
        rows_inside = aten.permute.default(inside, [1, 0])
        x = aten.where.self(inside, x_0, end)
    """
    )
    stopped = "dx = aten.where.ScalarOther(rows_inside, all, 0)"
    after = graph(f"{signature}dx", limited + program.format(x="x") + stopped)
    assert same(limit_activations(before), after)


def test_only_activations_beside_a_weight_are_limited_and_each_once():
    module = graph(
        "x_0: f32[2, 4, 8], x_1: f32[2, 4, 8], x_2: f32[4, 8], p_a: f32[6, 8], p_b: f32[5, 8] "
        "-> s, y, z",
        """
        s = sq.matmul(x_0, x_1, None, False, True)
        y = sq.matmul(x_2, p_a, None, False, True)
        z = sq.matmul(x_2, p_b, None, False, True)
        """,
        **{name: {"seq_nr": place} for place, name in enumerate("syz")},
    )
    precise = assign_precision(module, Recipe(activation_limit=2.0, rules=()))
    nodes = {node.name: node for node in limit_activations(precise).graph.nodes}
    assert [one.name for one in nodes["s"].args[:2]] == ["x_0", "x_1"]
    assert nodes["y"].args[0] is nodes["z"].args[0] is not nodes["x_2"]


class Net(nn.Module):
    """A product of x, as it lies or with its axes swapped, and one of its ReLU."""

    def __init__(self, swapped: bool) -> None:
        super().__init__()
        self.swapped = swapped
        self.first = nn.Linear(40, 24, bias=False)
        self.second = nn.Linear(24, 9, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x.t() if self.swapped else x)))


def end_of(x: Tensor) -> Tensor:
    """The limit in float64."""
    values = x.detach().double().abs()
    return LIMIT * values[values > 0].mean()


@pytest.mark.parametrize("swapped", [False, True], ids=["rows", "columns"])
def test_a_step_has_the_gradient_of_a_clamp_at_a_constant(swapped):
    torch.manual_seed(3)
    model, x = Net(swapped), torch.randn(40, 40, requires_grad=True)
    recipe = Recipe("fine", 8, 8, 8, groups=1, activation_limit=LIMIT, rules=())
    captured = capture(model, (x,), {})
    integer, _ = run(captured.graph, integer_training(recipe))
    tangent = torch.randn(40, 9)
    with torch.no_grad():
        values = [*model.parameters(), x.detach(), tangent, torch.tensor([7, 1, 0, 0])]
        results = integer(*values)
    by_name = {(port.kind, port.name): v for port, v in zip(captured.outputs, results, strict=True)}

    wide_model, wide = deepcopy(model).double(), x.detach().double().requires_grad_()
    cut = wide.clamp(-end_of(wide), end_of(wide))
    h = torch.relu(wide_model.first(cut.t() if swapped else cut))
    wide_model.second(h.clamp(max=float(end_of(h)))).backward(tangent.double())
    (dx,) = [v for v in results if v.shape == x.shape]
    pairs = [(dx, wide.grad)]
    pairs += [(by_name["grad", name], p.grad) for name, p in wide_model.named_parameters()]
    for got, wanted in pairs:
        error = (got - wanted).square().mean() / wanted.square().mean()
        # what 8 bits lose, and what is on the other side of an end in them
        assert float(error.sqrt()) < 0.1
    outside = (wide.abs() > end_of(wide)).detach()
    assert 0.05 < float(outside.double().mean()) < 0.4
    assert not dx[outside].any() and bool(dx[~outside].any())


@pytest.mark.parametrize("value", [0.0, 2.0**-140, 3.0], ids=["zeros", "subnormal", "equal"])
def test_nothing_is_cut_where_all_is_equal_or_zero(value):
    model = nn.Linear(8, 5, bias=False)
    x = torch.full((4, 8), value, requires_grad=True)
    captured = capture(model, (x,), {})
    recipe = Recipe(activation_limit=LIMIT, rules=())
    integer, _ = run(captured.graph, integer_training(recipe))
    with torch.no_grad():
        rng = torch.tensor([7, 1, 0, 0])
        results = integer(model.weight, x.detach(), torch.ones(4, 5), rng)
    (dx,) = [one for one in results if one.shape == x.shape]
    assert all(bool(one.isfinite().all()) for one in results) and bool(dx.any())
