"""The passes up to quantize_operands, as the program before and the program after."""

import pytest

from sqcompile.errors import CaptureError
from sqcompile.ops.philox import stream_id
from sqcompile.passes.assign_precision import Operand, ProductSpec, assign_precision
from sqcompile.passes.fold_weight_scales import fold_weight_scales
from sqcompile.passes.quantize_operands import quantize_operands
from sqcompile.recipe import RECIPES
from tests.passes.programs import graph, same

WEIGHT = Operand("weight", 4, True, (0,))
ACTIVATION = Operand("activation", 4, False)
GRADIENT = Operand("gradient", 4, True)


def spec(role, operands, groups=4, outer=True, module="fc"):
    return {"sq": ProductSpec(module, role, operands, groups, outer, 0)}


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
    grouped = Operand("activation", 4, False, clip=0.7, groups=3, group_axis=1)
    assert found["k"].operands == (grouped, WEIGHT)
    assert (found["k"].module, found["k"].role) == ("b", "fprop")
    assert found["y"].operands[1].bits == 8
    assert found["dk"].groups == 1
    assert (found["dh"].role, found["dh"].groups, found["dh"].operands[0].bits) == ("dgrad", 4, 4)
    assert (found["dw"].role, found["dw"].operands[1]) == ("wgrad", found["k"].operands[0])


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
    stream = stream_id("fc", "backward", "gradient", 0)
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


CONV = "[2, 2], [1, 1], [1, 1], 1"
IMAGES = "x_0: f32[2, 7, 9, 3], p_w: f32[6, 3, 3, 3], p_b: f32[6], g_0: f32[2, 4, 5, 6]"


def test_quantize_operands_forward_convolution():
    before = graph(
        f"{IMAGES}, rng: i64[4] -> y",
        f"y = sq.conv(x_0, p_w, p_b, {CONV})",
        y=spec("fprop", (ACTIVATION, WEIGHT)),
    )
    after = graph(
        f"{IMAGES}, rng: i64[4] -> y",
        f"""
        rx = sq.absmax(x_0, None, [0, 1, 2, 3])
        xq = sq.quantize(x_0, rx, 4, False)
        sx = sq.quant_scale(rx, 4, False, 1)
        rw = sq.absmax(p_w, None, [1, 2, 3])
        wq = sq.quantize(p_w, rw, 4, True)
        sw = sq.quant_scale(rw, 4, True, 1)
        channels = aten.view(sw, [1, 1, 1, 6])
        acc = sq.conv_fprop(xq, wq, {CONV}, 0)
        scale = aten.mul.Tensor(sx, channels)
        bias = aten.view(p_b, [1, 1, 1, 6])
        y = sq.dequantize(acc, [scale], bias)
        """,
    )
    assert same(quantize_operands(before), after)


def test_the_input_gradient_of_a_convolution_has_a_scale_per_sample():
    before = graph(
        f"{IMAGES}, rng: i64[4] -> dx",
        f"dx = sq.conv_input_grad(g_0, p_w, [2, 7, 9, 3], {CONV})",
        dx=spec("dgrad", (GRADIENT, WEIGHT)),
    )
    stream = stream_id("fc", "backward", "gradient", 0)
    after = graph(
        f"{IMAGES}, rng: i64[4] -> dx",
        f"""
        rw = sq.absmax(p_w, None, [1, 2, 3])
        sw = sq.quant_scale(rw, 4, True, 1)
        channels = aten.view(sw, [1, 1, 1, 6])
        g = aten.mul.Tensor(g_0, channels)
        rm = sq.absmax(g, None, [1, 2, 3])
        rk = sq.absmax(g, rm, [0, 1, 2])
        r = sq.absmax(rk, None, [0, 1, 2, 3])
        e = sq.group_exponent(rk, 4)
        gq = sq.quantize_stochastic(g, r, rm, e, rng, 4, {stream})
        s = sq.quant_scale(r, 4, True, 4)
        wq = sq.quantize(p_w, rw, 4, True)
        acc = sq.conv_dgrad(gq, wq, e, 4, [2, 7, 9, 3], {CONV}, 0)
        so = sq.outer_scale(rm)
        scale = aten.mul.Tensor(s, so)
        dx = sq.dequantize(acc, [scale], None)
        """,
    )
    done = quantize_operands(fold_weight_scales(before))
    assert same(done, after)
    shapes = {node.name: list(node.meta["val"].shape) for node in after.graph.nodes if node.users}
    assert shapes["e"] == [1, 1, 1, 6] and shapes["rm"] == [2, 1, 1, 1]


def test_the_weight_gradient_of_a_convolution_has_a_scale_per_output_channel():
    before = graph(
        f"{IMAGES}, rng: i64[4] -> dw",
        f"dw = sq.conv_weight_grad(g_0, x_0, [6, 3, 3, 3], {CONV})",
        dw=spec("wgrad", (GRADIENT, ACTIVATION)),
    )
    stream = stream_id("fc", "backward", "gradient", 0)
    after = graph(
        f"{IMAGES}, rng: i64[4] -> dw",
        f"""
        rm = sq.absmax(g_0, None, [0, 1, 2])
        rk = sq.absmax(g_0, rm, [3])
        r = sq.absmax(rk, None, [0, 1, 2, 3])
        e = sq.group_exponent(rk, 4)
        gq = sq.quantize_stochastic(g_0, r, rm, e, rng, 4, {stream})
        s = sq.quant_scale(r, 4, True, 4)
        so = sq.outer_scale(rm)
        outer = aten.view(so, [6, 1, 1, 1])
        rx = sq.absmax(x_0, None, [0, 1, 2, 3])
        xq = sq.quantize(x_0, rx, 4, False)
        sx = sq.quant_scale(rx, 4, False, 1)
        acc = sq.conv_wgrad(gq, xq, e, 4, [6, 3, 3, 3], {CONV}, 0)
        scalar = aten.mul.Tensor(s, sx)
        scale = aten.mul.Tensor(scalar, outer)
        dw = sq.dequantize(acc, [scale], None)
        """,
    )
    done = quantize_operands(before)
    assert same(done, after)
    shapes = {node.name: list(node.meta["val"].shape) for node in after.graph.nodes if node.users}
    assert shapes["e"] == [2, 4, 5, 1] and shapes["rm"] == [1, 1, 1, 6]
