"""Float functions, softmax and losses in canonicalize, as the program before and after."""

import pytest
import torch

from sqcompile.passes.assign_precision import nonnegative
from sqcompile.passes.canonicalize import canonicalize
from sqcompile.passes.fold_constants import fold_constants
from sqcompile.passes.partition import partition
from sqcompile.passes.save_slopes import save_slopes
from sqcompile.recipe import Recipe
from tests.passes.programs import graph, same

aten = torch.ops.aten
PAIR = "x_0: f32[4, 8], g_0: f32[4, 8] -> y, dx"


@pytest.mark.parametrize("name", ["exp", "expm1", "log", "erf", "tanh", "sigmoid"])
def test_functions_are_ours(name):
    before = graph("x_0: f32[4] -> y", f"y = aten.{name}(x_0)")
    assert same(canonicalize(before), graph("x_0: f32[4] -> y", f"y = sq.{name}(x_0)"))


ACTIVATIONS = {
    "gelu": (
        "y = aten.gelu(x_0)\ndx = aten.gelu_backward(g_0, x_0)",
        """
        c = sq.gelu_cdf(x_0, False)
        s = sq.gelu_slope(x_0, c, False)
        y = aten.mul.Tensor(x_0, c)
        dx = aten.mul.Tensor(g_0, s)
        """,
    ),
    "silu": (
        "y = aten.silu(x_0)\ndx = aten.silu_backward(g_0, x_0)",
        """
        c = sq.sigmoid(x_0)
        s = sq.silu_slope(x_0, c)
        y = aten.mul.Tensor(x_0, c)
        dx = aten.mul.Tensor(g_0, s)
        """,
    ),
    "hardswish": (
        "y = aten.hardswish(x_0)\ndx = aten.hardswish_backward(g_0, x_0)",
        """
        a = aten.add.Tensor(x_0, 3.0)
        c = aten.clamp(a, 0.0, 6.0)
        s = sq.hardswish_slope(c)
        m = aten.mul.Tensor(x_0, c)
        y = aten.div.Tensor(m, 6.0)
        dx = aten.mul.Tensor(g_0, s)
        """,
    ),
    "elu": (
        "y = aten.elu(x_0, 1.5, 2, 3)\ndx = aten.elu_backward(g_0, 1.5, 2, 3, False, x_0)",
        """
        y = sq.elu(x_0, 1.5, 2.0, 3.0)
        s = sq.elu_slope(y, 1.5, 2.0, 3.0, True)
        dx = aten.mul.Tensor(g_0, s)
        """,
    ),
    "elu of a negative alpha": (
        "y = aten.elu(x_0, -1.5)\ndx = aten.elu_backward(g_0, -1.5, 1, 1, False, x_0)",
        """
        s = sq.elu_slope(x_0, -1.5, 1.0, 1.0, False)
        y = sq.elu(x_0, -1.5, 1.0, 1.0)
        dx = aten.mul.Tensor(g_0, s)
        """,
    ),
    "celu": (
        "y = aten.celu(x_0, 2.0)\ndx = aten.elu_backward(g_0, 2.0, 1, 0.5, False, x_0)",
        """
        y = sq.elu(x_0, 2.0, 1.0, 0.5)
        s = sq.elu_slope(y, 2.0, 1.0, 0.5, True)
        dx = aten.mul.Tensor(g_0, s)
        """,
    ),
    "sigmoid": (
        "y = aten.sigmoid(x_0)\ndx = aten.sigmoid_backward(g_0, y)",
        "y = sq.sigmoid(x_0)\ns = sq.sigmoid_slope(y)\ndx = aten.mul.Tensor(g_0, s)",
    ),
    "tanh": (
        "y = aten.tanh(x_0)\ndx = aten.tanh_backward(g_0, y)",
        "y = sq.tanh(x_0)\ns = sq.tanh_slope(y)\ndx = aten.mul.Tensor(g_0, s)",
    ),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_of_activations_are_products_with_slopes(name):
    before, after = (graph(PAIR, program) for program in ACTIVATIONS[name])
    assert same(canonicalize(before), after)


def test_slopes_are_saved_in_integers():
    signature = "x_0: f32[4, 8], g_0: f32[4, 8], g_1: f32[4, 8] -> y, dx, z, dz"
    before = graph(
        signature,
        """
        c = sq.gelu_cdf(x_0, False)
        s = sq.gelu_slope(x_0, c, False)
        y = aten.mul.Tensor(x_0, c)
        dx = aten.mul.Tensor(g_0, s)
        z = sq.sigmoid(x_0)
        t = sq.sigmoid_slope(z)
        dz = aten.mul.Tensor(g_1, t)
        """,
    )
    after = graph(
        signature,
        """
        c = sq.gelu_cdf(x_0, False)
        s = sq.gelu_slope(x_0, c, False)
        q = sq.quantize_slope(s, 11.0, -1, 12)
        y = aten.mul.Tensor(x_0, c)
        dx = sq.slope_backward(g_0, q, -1, 0.09090909090909091)
        z = sq.sigmoid(x_0)
        t = sq.sigmoid_slope(z)
        r = sq.quantize_slope(t, 60.0, 0, 15)
        dz = sq.slope_backward(g_1, r, 0, 0.016666666666666666)
        """,
    )
    assert same(save_slopes(before, Recipe(activation_saved_bits=4)), after)


def test_a_slope_of_what_backward_reads_anyway_is_computed_there():
    """A gate: its gradient needs the sigmoid itself, so that a slope would be one more tensor."""
    program = """
        s = sq.sigmoid(x_0)
        t = sq.sigmoid_slope(s)
        y = aten.mul.Tensor(x_1, s)
        da = aten.mul.Tensor(g_0, s)
        ds = aten.mul.Tensor(g_0, x_1)
        dx = aten.mul.Tensor(ds, t)
    """
    signature = "x_0: f32[4], x_1: f32[4], g_0: f32[4] -> y, da, dx"
    after = save_slopes(graph(signature, program), Recipe())
    placeholders = after.graph.find_nodes(op="placeholder")
    ports = [type(placeholders[0].meta["port"])("output", "0")]
    ports += [type(ports[0])("grad", str(i), "input") for i in range(2)]
    assert partition(after, ports).saved == ["input:1", "s"]


def test_hardsigmoid_keeps_a_mask():
    before = graph(PAIR, "y = aten.hardsigmoid(x_0)\ndx = aten.hardsigmoid_backward(g_0, x_0)")
    after = graph(
        PAIR,
        """
        raised = aten.add.Tensor(x_0, 3.0)
        inside = aten.clamp(raised, 0.0, 6.0)
        y = aten.div.Tensor(inside, 6.0)
        above = aten.gt.Scalar(x_0, -3.0)
        below = aten.lt.Scalar(x_0, 3.0)
        mask = aten.logical_and(above, below)
        slope = aten.div.Tensor(g_0, 6.0)
        dx = aten.where.ScalarOther(mask, slope, 0.0)
        """,
    )
    assert same(canonicalize(before), after)


def test_softmax_goes_over_the_last_axis():
    before = graph(
        "x_0: f32[2, 3, 4] -> y, z",
        """
        y = aten._safe_softmax(x_0, -1)
        z = aten._log_softmax(x_0, 0, False)
        """,
    )
    after = graph(
        "x_0: f32[2, 3, 4] -> y, z",
        """
        y = sq.softmax(x_0)
        p = aten.permute(x_0, [1, 2, 0])
        l = sq.log_softmax(p)
        z = aten.permute(l, [2, 0, 1])
        """,
    )
    assert same(canonicalize(before), after)


def test_the_largest_of_several_axes_is_that_of_one():
    before = graph(
        "x_0: f32[2, 3, 4] -> y, z",
        "y = aten.amax(x_0, [-1])\nz = aten.amax(x_0, [0, 2], True)",
    )
    after = graph(
        "x_0: f32[2, 3, 4] -> y, z",
        """
        y = sq.amax(x_0)
        p = aten.permute(x_0, [1, 0, 2])
        v = aten.reshape(p, [3, 8])
        m = sq.amax(v)
        z = aten.view(m, [1, 3, 1])
        """,
    )
    assert same(canonicalize(before), after)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_nll_loss_is_picked_by_row_and_summed_in_order(reduction):
    number = ["none", "mean", "sum"].index(reduction)
    signature = f"x_0: f32[4, 5], x_1: i64[4], g_0: f32[{'4' if number == 0 else ''}] -> l, dx"
    before = graph(
        signature,
        f"""
        both = aten.nll_loss_forward(x_0, x_1, None, {number}, -100)
        l = both[0]
        n = both[1]
        dx = aten.nll_loss_backward(g_0, x_0, x_1, None, {number}, -100, n)
        """,
    )
    after = graph(
        signature,
        "both = sq.nll_loss(x_0, x_1, None, -100)\n"
        + {
            "none": """
                l = both[0]
                dx = sq.nll_loss_backward(g_0, x_1, None, -100, 5)
            """,
            "mean": """
                losses = both[0]
                weights = both[1]
                total = sq.ordered_sum(losses, [0], False)
                count = sq.ordered_sum(weights, [0], False)
                l = aten.div.Tensor(total, count)
                g = aten.div.Tensor(g_0, count)
                one = aten.view(g, [1])
                dx = sq.nll_loss_backward(one, x_1, None, -100, 5)
            """,
            "sum": """
                losses = both[0]
                l = sq.ordered_sum(losses, [0], False)
                one = aten.view(g_0, [1])
                dx = sq.nll_loss_backward(one, x_1, None, -100, 5)
            """,
        }[reduction],
    )
    assert same(canonicalize(before), after)


def test_mse_loss_is_taken_apart():
    before = graph(
        "x_0: f32[4, 8], x_1: f32[4, 8], g_0: f32[] -> l, dx",
        """
        l = aten.mse_loss(x_0, x_1)
        dx = aten.mse_loss_backward(g_0, x_0, x_1, 1)
        """,
    )
    after = graph(
        "x_0: f32[4, 8], x_1: f32[4, 8], g_0: f32[] -> l, dx",
        """
        d = aten.sub.Tensor(x_0, x_1)
        s = aten.mul.Tensor(d, d)
        t = sq.ordered_sum(s, [0, 1], False)
        l = aten.div.Tensor(t, 32.0)
        scaled = aten.mul.Tensor(g_0, 0.0625)
        e = aten.sub.Tensor(x_0, x_1)
        dx = aten.mul.Tensor(e, scaled)
        """,
    )
    assert same(canonicalize(before), after)


def test_huber_and_smooth_l1_losses_are_taken_apart():
    signature = "x_0: f32[4, 8], x_1: f32[4, 8], g_0: f32[] -> h, dh, s, ds"
    before = graph(
        signature,
        """
        h = aten.huber_loss(x_0, x_1, 2, 3.0)
        dh = aten.huber_loss_backward(g_0, x_0, x_1, 2, 3.0)
        s = aten.smooth_l1_loss(x_0, x_1, 1, 0.25)
        ds = aten.smooth_l1_loss_backward(g_0, x_0, x_1, 1, 0.25)
        """,
    )
    after = graph(
        signature,
        """
        d = aten.sub.Tensor(x_0, x_1)
        z = aten.abs(d)
        in_h = aten.lt.Scalar(z, 3.0)
        square = aten.mul.Tensor(z, z)
        low_h = aten.mul.Tensor(square, 0.5)
        far_h = aten.sub.Tensor(z, 1.5)
        high_h = aten.mul.Tensor(far_h, 3.0)
        each_h = aten.where.self(in_h, low_h, high_h)
        h = sq.ordered_sum(each_h, [0, 1], False)
        slope_h = aten.clamp(d, -3.0, 3.0)
        g_h = aten.mul.Tensor(g_0, 1.0)
        dh = aten.mul.Tensor(slope_h, g_h)
        in_s = aten.lt.Scalar(z, 0.25)
        low_s = aten.mul.Tensor(square, 2.0)
        high_s = aten.sub.Tensor(z, 0.125)
        each_s = aten.where.self(in_s, low_s, high_s)
        total = sq.ordered_sum(each_s, [0, 1], False)
        s = aten.div.Tensor(total, 32.0)
        part = aten.div.Tensor(d, 0.25)
        slope_s = aten.clamp(part, -1.0, 1.0)
        g_s = aten.mul.Tensor(g_0, 0.03125)
        ds = aten.mul.Tensor(slope_s, g_s)
        """,
    )
    assert same(canonicalize(before), after)


def test_a_count_that_divides_is_a_float_sum():
    before = graph(
        "x_0: f32[4], m: bool[4] -> y",
        """
        k = aten.bitwise_not(m)
        n = aten.sum(k)
        y = aten.div.Tensor(x_0, n)
        """,
    )
    after = graph(
        "x_0: f32[4], m: bool[4] -> y",
        """
        k = aten.logical_not(m)
        f = aten.mul.Tensor(k, 1.0)
        n = sq.ordered_sum(f, [0], False)
        y = aten.div.Tensor(x_0, n)
        """,
    )
    assert same(canonicalize(before), after)


def test_a_choice_of_two_numbers_reads_no_tensor_of_one():
    before = graph(
        "m: bool[4] -> y",
        """
        a = aten.scalar_tensor(0.0)
        b = aten.scalar_tensor(2.5)
        y = aten.where.self(m, a, b)
        """,
    )
    assert same(
        canonicalize(before), graph("m: bool[4] -> y", "y = aten.where.Scalar(m, 0.0, 2.5)")
    )


def test_powers_to_the_third_and_inverse_roots():
    before = graph("x_0: f32[4] -> y, z", "y = aten.pow.Tensor_Scalar(x_0, 3)\nz = aten.rsqrt(x_0)")
    after = graph(
        "x_0: f32[4] -> y, z",
        """
        s = aten.mul.Tensor(x_0, x_0)
        y = aten.mul.Tensor(s, x_0)
        r = sq.sqrt(x_0)
        z = aten.reciprocal(r)
        """,
    )
    assert same(canonicalize(before), after)


def test_constants_are_computed_once():
    module = graph(
        "x_0: f32[3, 3] -> y, z, ones",
        """
        o = aten.ones([3, 3])
        t = aten.tril(o)
        low = aten.sub.Tensor(t, o)
        y = aten.mul.Tensor(x_0, low)
        like = aten.full_like(x_0, 2.0)
        z = aten.add.Tensor(x_0, like)
        ones = aten.ones([3, 3])
        """,
    )
    folded = fold_constants(module)
    (constant,) = folded.graph.find_nodes(op="get_attr")
    assert getattr(folded, constant.target).equal(torch.ones(3, 3).tril() - 1)
    assert [
        node.args for node in folded.graph.find_nodes(op="call_function", target=aten.full.default)
    ] == [
        ([3, 3], 2.0),
        ([3, 3], 1.0),
    ]
    x = torch.randn(3, 3)
    for got, wanted in zip(folded(x), module(x), strict=True):
        assert got.equal(wanted)


def test_draws_are_no_constants():
    module = graph(
        "x_0: f32[3] -> y", "o = aten.ones([3])\nd = aten.bernoulli(o)\ny = aten.mul.Tensor(x_0, d)"
    )
    assert not fold_constants(module).graph.find_nodes(op="get_attr")


@pytest.mark.parametrize("name", ["exp", "sigmoid", "softmax"])
def test_what_is_never_negative_is_known(name):
    module = graph("x_0: f32[2, 3] -> y, z", f"y = sq.{name}(x_0)\nz = sq.log_softmax(x_0)")
    y, z = module.graph.output_node().args[0]
    assert nonnegative(y) and not nonnegative(z)


@pytest.mark.parametrize(
    ("ends", "known"),
    [("0.0, 6.0", True), ("0.0", True), ("-1.0, 6.0", False), ("0.0, -1.0", False)],
)
def test_a_clamp_is_never_negative_when_both_of_its_ends_are_not(ends, known):
    module = graph("x_0: f32[2, 3] -> y", f"y = aten.clamp(x_0, {ends})")
    (y,) = module.graph.output_node().args[0]
    assert nonnegative(y) == known
