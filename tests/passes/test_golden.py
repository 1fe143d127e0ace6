"""Every pass up to quantize_operands, as the program before and the program after."""

import pytest

from sqcompile.errors import CaptureError
from sqcompile.ops.philox import stream_id
from sqcompile.passes.assign_precision import Operand, ProductSpec, assign_precision
from sqcompile.passes.canonicalize import canonicalize
from sqcompile.passes.fold_weight_scales import fold_weight_scales
from sqcompile.passes.quantize_operands import quantize_operands
from sqcompile.recipe import RECIPES
from tests.passes.programs import graph, same

WEIGHT = Operand("weight", 4, True, (0,))
ACTIVATION = Operand("activation", 4, False)
GRADIENT = Operand("gradient", 4, True)


def spec(role, operands, groups=4, outer=True, module="fc"):
    return {"sq": ProductSpec(module, role, operands, groups, outer, 0)}


def test_canonicalize_takes_products_to_their_roots():
    before = graph(
        "x_0: f32[4, 8], p_w: f32[6, 8], p_b: f32[6], g_0: f32[4, 6] -> y, dx, dw, db",
        """
        t = aten.t(p_w)
        y = aten.addmm(p_b, x_0, t)
        t1 = aten.t(t)
        dx = aten.mm(g_0, t1)
        t2 = aten.t(g_0)
        m = aten.mm(t2, x_0)
        t3 = aten.t(m)
        dw = aten.t(t3)
        s = aten.sum.dim_IntList(g_0, [0], True)
        db = aten.view(s, [6])
        """,
    )
    after = graph(
        "x_0: f32[4, 8], p_w: f32[6, 8], p_b: f32[6], g_0: f32[4, 6] -> y, dx, dw, db",
        """
        y = sq.matmul(x_0, p_w, p_b, False, True)
        dx = sq.matmul(g_0, p_w, None, False, False)
        dw = sq.matmul(g_0, x_0, None, True, False)
        s = sq.ordered_sum(g_0, [0], True)
        db = aten.view(s, [6])
        """,
    )
    assert same(canonicalize(before), after)


def test_canonicalize_puts_the_gradient_first():
    before = graph(
        "x_0: f32[4, 8], g_0: f32[4, 6] -> dw",
        """
        t = aten.t(x_0)
        dw = aten.mm(t, g_0)
        """,
    )
    after = graph(
        "x_0: f32[4, 8], g_0: f32[4, 6] -> dw",
        """
        m = sq.matmul(g_0, x_0, None, True, False)
        dw = aten.permute(m, [1, 0])
        """,
    )
    assert same(canonicalize(before), after)


def test_canonicalize_takes_convolution_backward_apart():
    shapes = "x_0: f32[2, 4, 5, 5], p_w: f32[6, 4, 3, 3], g_0: f32[2, 6, 5, 5]"
    before = graph(
        f"{shapes} -> dx, dw, db",
        """
        all = aten.convolution_backward(g_0, x_0, p_w, [6], [1, 1], [1, 1], [1, 1], False, [0, 0],
        1, [True, True, True])
        dx = all[0]
        dw = all[1]
        db = all[2]
        """,
    )
    after = graph(
        f"{shapes} -> dx, dw, db",
        """
        g = aten.permute(g_0, [0, 2, 3, 1])
        x = aten.permute(x_0, [0, 2, 3, 1])
        last = sq.conv_input_grad(g, p_w, [2, 5, 5, 4], [1, 1], [1, 1], [1, 1], 1)
        dx = aten.permute(last, [0, 3, 1, 2])
        dw = sq.conv_weight_grad(g, x, [6, 4, 3, 3], [1, 1], [1, 1], [1, 1], 1)
        db = sq.ordered_sum(g, [0, 1, 2], False)
        """,
    )
    assert same(canonicalize(before), after)


def test_canonicalize_makes_convolutions_channels_last():
    before = graph(
        "x_0: f32[2, 4, 7, 5], p_w: f32[6, 2, 3, 3], p_b: f32[6] -> y",
        """
        y = aten.convolution(x_0, p_w, p_b, [2, 1], [1, 0], [1, 1], False, [0, 0], 2)
        """,
    )
    after = graph(
        "x_0: f32[2, 4, 7, 5], p_w: f32[6, 2, 3, 3], p_b: f32[6] -> y",
        """
        x = aten.permute(x_0, [0, 2, 3, 1])
        last = sq.conv(x, p_w, p_b, [2, 1], [1, 0], [1, 1], 2)
        y = aten.permute(last, [0, 3, 1, 2])
        """,
    )
    assert same(canonicalize(before), after)


def test_canonicalize_makes_max_pooling_channels_last():
    before = graph(
        "x_0: f32[2, 4, 7, 5], g_0: f32[2, 4, 3, 2] -> y, dx",
        """
        both = aten.max_pool2d_with_indices(x_0, [2, 2])
        y = both[0]
        at = both[1]
        dx = aten.max_pool2d_with_indices_backward(g_0, x_0, [2, 2], [], [0, 0], [1, 1], False, at)
        """,
    )
    after = graph(
        "x_0: f32[2, 4, 7, 5], g_0: f32[2, 4, 3, 2] -> y, dx",
        """
        x = aten.permute(x_0, [0, 2, 3, 1])
        both = sq.max_pool2d(x, [2, 2], [2, 2], [0, 0], [1, 1], False)
        last = both[0]
        y = aten.permute(last, [0, 3, 1, 2])
        tap = both[1]
        g = aten.permute(g_0, [0, 2, 3, 1])
        dlast = sq.max_pool2d_backward(g, tap, [2, 7, 5, 4], [2, 2], [2, 2], [0, 0], [1, 1])
        dx = aten.permute(dlast, [0, 3, 1, 2])
        """,
    )
    assert same(canonicalize(before), after)


def test_canonicalize_makes_average_pooling_channels_last():
    before = graph(
        "x_0: f32[2, 4, 7, 5], g_0: f32[2, 4, 3, 2] -> y, dx",
        """
        y = aten.avg_pool2d(x_0, [2, 2])
        dx = aten.avg_pool2d_backward(g_0, x_0, [2, 2], [], [0, 0], False, True, None)
        """,
    )
    after = graph(
        "x_0: f32[2, 4, 7, 5], g_0: f32[2, 4, 3, 2] -> y, dx",
        """
        x = aten.permute(x_0, [0, 2, 3, 1])
        last = sq.avg_pool2d(x, [2, 2], [2, 2], [0, 0])
        y = aten.permute(last, [0, 3, 1, 2])
        g = aten.permute(g_0, [0, 2, 3, 1])
        dlast = sq.avg_pool2d_backward(g, [2, 7, 5, 4], [2, 2], [2, 2], [0, 0])
        dx = aten.permute(dlast, [0, 3, 1, 2])
        """,
    )
    assert same(canonicalize(before), after)


def test_canonicalize_drops_a_permute_that_moves_nothing():
    before = graph(
        "x_0: f32[4, 8], z: f32[2, 3, 4, 5] -> y, v",
        """
        p = aten.permute(x_0, [0, -1])
        y = aten.relu(p)
        q = aten.permute(z, [0, 1, 2, 3])
        v = aten.neg(q)
        """,
    )
    after = graph(
        "x_0: f32[4, 8], z: f32[2, 3, 4, 5] -> y, v",
        """
        y = aten.relu(x_0)
        v = aten.neg(z)
        """,
    )
    assert same(canonicalize(before), after)


def test_canonicalize_makes_relu_backward_a_mask():
    before = graph(
        "x_0: f32[3], g_0: f32[3] -> y, dx",
        """
        y = aten.relu(x_0)
        d = aten.detach(y)
        dx = aten.threshold_backward(g_0, d, 0)
        """,
    )
    after = graph(
        "x_0: f32[3], g_0: f32[3] -> y, dx",
        """
        y = aten.relu(x_0)
        mask = aten.gt.Scalar(y, 0)
        dx = aten.where.ScalarOther(mask, g_0, 0.0)
        """,
    )
    assert same(canonicalize(before), after)


def test_assign_precision_follows_the_recipe_and_the_signs():
    module = graph(
        "x_0: f32[4, 8], p_a__weight: f32[6, 8], p_b__weight: f32[5, 6], "
        "p_c__weight: f32[3, 5], g_0: f32[4, 3] -> y, dh, dw",
        """
        h = sq.matmul(x_0, p_a__weight, None, False, True)
        r = aten.relu(h)
        k = sq.matmul(r, p_b__weight, None, False, True)
        y = sq.matmul(k, p_c__weight, None, False, True)
        dk = sq.matmul(g_0, p_c__weight, None, False, False)
        dh = sq.matmul(dk, p_b__weight, None, False, False)
        dw = sq.matmul(dk, r, None, True, False)
        """,
        h={"seq_nr": 1},
        k={"seq_nr": 2},
        y={"seq_nr": 3},
        dk={"seq_nr": 3},
        dh={"seq_nr": 2},
        dw={"seq_nr": 2},
    )
    done = assign_precision(module, RECIPES["w4a4g4"])
    found = {n.name: n.meta["sq"] for n in done.graph.nodes if "sq" in n.meta}
    assert found["h"].operands[0] == Operand("activation", 8, True)
    assert found["k"].operands == (Operand("activation", 4, False), WEIGHT)
    assert (found["k"].module, found["k"].role) == ("b", "fprop")
    assert found["y"].operands[1].bits == 8
    assert found["dk"].groups == 1
    assert (found["dh"].role, found["dh"].groups, found["dh"].operands[0].bits) == ("dgrad", 4, 4)
    assert (found["dw"].role, found["dw"].operands[1]) == ("wgrad", ACTIVATION)


def test_assign_precision_refuses_second_derivatives():
    module = graph(
        "g_0: f32[4, 6], p_w: f32[6, 8] -> y",
        "y = sq.matmul(g_0, p_w, None, False, False)",
        y={"seq_nr": 9, "stack_trace": "model.py:3"},
    )
    with pytest.raises(CaptureError, match="second derivatives"):
        assign_precision(module, RECIPES["w4a4g4"])


def test_fold_weight_scales_moves_the_scale_into_the_gradient():
    before = graph(
        "g_0: f32[4, 6], p_w: f32[6, 8] -> dx",
        "dx = sq.matmul(g_0, p_w, None, False, False)",
        dx=spec("dgrad", (GRADIENT, WEIGHT)),
    )
    after = graph(
        "g_0: f32[4, 6], p_w: f32[6, 8] -> dx",
        """
        r = sq.absmax(p_w, None, [1])
        s = sq.quant_scale(r, 4, True, 1)
        row = aten.view(s, [1, 6])
        g = aten.mul.Tensor(g_0, row)
        dx = sq.matmul(g, p_w, None, False, False)
        """,
    )
    done = fold_weight_scales(before)
    assert same(done, after)
    product = next(n for n in done.graph.nodes if "sq" in n.meta)
    assert product.meta["sq"].operands[1].folded


def test_fold_weight_scales_leaves_a_tensor_scale_where_it_is():
    before = graph(
        "g_0: f32[4, 6], p_w: f32[6, 8] -> dx",
        "dx = sq.matmul(g_0, p_w, None, False, False)",
        dx=spec("dgrad", (GRADIENT, Operand("weight", 4, True))),
    )
    assert same(fold_weight_scales(before), before)


def test_quantize_operands_forward():
    before = graph(
        "x_0: f32[4, 8], p_w: f32[6, 8], p_b: f32[6], rng: i64[4] -> y",
        "y = sq.matmul(x_0, p_w, p_b, False, True)",
        y=spec("fprop", (ACTIVATION, WEIGHT)),
    )
    after = graph(
        "x_0: f32[4, 8], p_w: f32[6, 8], p_b: f32[6], rng: i64[4] -> y",
        """
        rx = sq.absmax(x_0, None, [0, 1])
        xq = sq.quantize(x_0, rx, 4, False)
        sx = sq.quant_scale(rx, 4, False, 1)
        rw = sq.absmax(p_w, None, [1])
        wq = sq.quantize(p_w, rw, 4, True)
        sw = sq.quant_scale(rw, 4, True, 1)
        row = aten.view(sw, [1, 6])
        acc = sq.shift_matmul(xq, wq, None, 1, False, True, 0)
        scale = aten.mul.Tensor(sx, row)
        bias = aten.view(p_b, [1, 6])
        y = sq.dequantize(acc, [scale], bias)
        """,
    )
    assert same(quantize_operands(before), after)


@pytest.mark.parametrize("outer", [True, False], ids=["outer-scales", "paper"])
def test_quantize_operands_shifts_the_gradient(outer):
    stream = stream_id("fc", "dgrad", "gradient", 0)
    folded = Operand("weight", 4, True, (0,), folded=True)
    before = graph(
        "g_0: f32[4, 6], p_w: f32[6, 8], rng: i64[4] -> dx",
        "dx = sq.matmul(g_0, p_w, None, False, False)",
        dx=spec("dgrad", (GRADIENT, folded), outer=outer),
    )
    rows = "rm = sq.absmax(g_0, None, [1])" if outer else ""
    name = "rm" if outer else "None"
    scale = (
        "so = sq.outer_scale(rm)\n        scale = aten.mul.Tensor(s, so)"
        if outer
        else "scale = sq.quant_scale(r, 4, True, 4)"
    )
    after = graph(
        "g_0: f32[4, 6], p_w: f32[6, 8], rng: i64[4] -> dx",
        f"""
        {rows}
        rk = sq.absmax(g_0, {name}, [0])
        r = sq.absmax(rk, None, [0, 1])
        e = sq.group_exponent(rk, 4)
        gq = sq.quantize_stochastic(g_0, r, {name}, e, rng, 4, {stream})
        s = sq.quant_scale(r, 4, True, 4)
        rw = sq.absmax(p_w, None, [1])
        wq = sq.quantize(p_w, rw, 4, True)
        acc = sq.shift_matmul(gq, wq, e, 4, False, False, 0)
        {scale}
        dx = sq.dequantize(acc, [scale], None)
        """,
    )
    assert same(quantize_operands(before), after)


def test_canonicalize_takes_a_square_root_that_rounds_correctly():
    before = graph("x_0: f32[3] -> y", "y = aten.sqrt(x_0)")
    assert same(canonicalize(before), graph("x_0: f32[3] -> y", "y = sq.sqrt(x_0)"))
