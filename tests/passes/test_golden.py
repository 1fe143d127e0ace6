"""Every pass, shown as the program before and the program after."""

import pytest
import torch

from sqcompile.errors import CaptureError
from sqcompile.ops.philox import stream_id
from sqcompile.passes.assign_precision import Operand, ProductSpec, assign_precision
from sqcompile.passes.bound_accumulators import bound_accumulators
from sqcompile.passes.canonicalize import canonicalize
from sqcompile.passes.fold_weight_scales import fold_weight_scales
from sqcompile.passes.fuse_epilogues import fuse_epilogues
from sqcompile.passes.pack_saved import pack_saved
from sqcompile.passes.quantize_norms import quantize_norms
from sqcompile.passes.quantize_operands import quantize_operands
from sqcompile.passes.share_quantized import share_quantized
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
        dx = sq.conv_input_grad(g_0, p_w, [2, 4, 5, 5], [1, 1], [1, 1], [1, 1], 1)
        dw = sq.conv_weight_grad(g_0, x_0, [6, 4, 3, 3], [1, 1], [1, 1], [1, 1], 1)
        db = sq.ordered_sum(g_0, [0, 2, 3], False)
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


def test_quantize_norms_reads_the_accumulators_of_a_product():
    shapes = (
        "q: u8[2, 4, 5, 5], w: i8[6, 4, 3, 3], s: f32[1, 6, 1, 1], b: f32[1, 6, 1, 1], "
        "p_g: f32[6], p_b: f32[6], rng: i64[4]"
    )
    operands = (ACTIVATION, WEIGHT)
    before = graph(
        f"{shapes} -> y",
        """
        acc = sq.conv_fprop(q, w, [1, 1], [1, 1], [1, 1], 1, 0)
        x = sq.dequantize(acc, [s], b)
        n = sq.batch_norm(x, p_g, p_b, 1e-05)
        y = n[0]
        """,
        acc=spec("fprop", operands, groups=1),
    )
    after = graph(
        f"{shapes} -> y",
        """
        acc = sq.conv_fprop(q, w, [1, 1], [1, 1], [1, 1], 1, 0)
        sc = aten.view(s, [6])
        bc = aten.view(b, [6])
        n = sq.l1_batch_norm(acc, sc, bc, p_g, p_b, 1e-05, 16, 4, 0.3352)
        y = n[0]
        """,
    )
    assert same(quantize_norms(before, RECIPES["w4a4g4"]), after)


def test_quantize_norms_quantises_another_input_per_channel():
    before = graph(
        "x_0: f32[2, 6, 5, 5], rng: i64[4] -> y",
        """
        n = sq.batch_norm(x_0, None, None, 1e-05)
        y = n[0]
        """,
    )
    after = graph(
        "x_0: f32[2, 6, 5, 5], rng: i64[4] -> y",
        """
        r = sq.absmax(x_0, None, [0, 2, 3])
        q = sq.quantize(x_0, r, 8, True)
        s = sq.quant_scale(r, 8, True, 1)
        sc = aten.view(s, [6])
        n = sq.l1_batch_norm(q, sc, None, None, None, 1e-05, 16, 4, 0.3352)
        y = n[0]
        """,
    )
    assert same(quantize_norms(before, RECIPES["w4a4g4"]), after)


def test_quantize_norms_layer_norm_backward_has_two_gradient_quantisers():
    before = graph(
        "g_0: f32[4, 6], xhat: f32[4, 6], c: f32[4, 1], p_g: f32[6], rng: i64[4] -> dx, dg, db",
        """
        n = sq.layer_norm_backward(g_0, xhat, c, p_g)
        dx = n[0]
        dg = n[1]
        db = n[2]
        """,
    )
    h, g = stream_id("", "norm", "h", 0), stream_id("", "norm", "g", 0)
    after = graph(
        "g_0: f32[4, 6], xhat: f32[4, 6], c: f32[4, 1], p_g: f32[6], rng: i64[4] -> dx, dg, db",
        f"""
        h = aten.mul.Tensor(g_0, p_g)
        rh = sq.absmax(h, None, [1])
        hq = sq.quantize_stochastic(h, rh, None, None, rng, 8, {h})
        sh = sq.quant_scale(rh, 8, True, 1)
        dx = sq.l1_layer_norm_backward(hq, sh, xhat, c, 0.3352)
        rg = sq.absmax(g_0, None, [0])
        gq = sq.quantize_stochastic(g_0, rg, None, None, rng, 8, {g})
        sg = sq.quant_scale(rg, 8, True, 1)
        a = sq.l1_layer_norm_affine_backward(gq, sg, xhat, 0.3352)
        dg = a[0]
        db = a[1]
        """,
    )
    assert same(quantize_norms(before, RECIPES["w4a4g4"]), after)


def test_share_quantized_keeps_one_of_equal_quantisers():
    done = share_quantized(
        graph(
            "x: f32[4, 8], rng: i64[4] -> a, b, c, d",
            """
            r = sq.absmax(x, None, [0, 1])
            a = sq.quantize(x, r, 4, True)
            r2 = sq.absmax(x, None, [0, 1])
            b = sq.quantize(x, r2, 4, True)
            c = sq.quantize_stochastic(x, r, None, None, rng, 4, 1)
            d = sq.quantize_stochastic(x, r2, None, None, rng, 4, 2)
            """,
        )
    )
    calls = [node for node in done.graph.nodes if node.op == "call_function"]
    assert [node.name for node in calls] == ["r", "a", "c", "d"]


def test_pack_saved_packs_what_crosses_to_backward():
    shapes = "x_0: f32[4, 8], r: f32[1, 1], g_0: f32[4, 8]"
    before = graph(
        f"{shapes} -> q, dx, dw",
        """
        q = sq.quantize(x_0, r, 4, True)
        m = aten.gt.Scalar(x_0, 0)
        dx = aten.where.ScalarOther(m, g_0, 0.0)
        dw = aten.mul.Tensor(g_0, q)
        """,
        q={"bits": 4, "signed": True},
    )
    after = graph(
        f"{shapes} -> q, dx, dw",
        """
        q = sq.quantize(x_0, r, 4, True)
        qp = sq.pack_int4(q)
        m = aten.gt.Scalar(x_0, 0)
        mp = sq.pack_mask(m)
        m2 = sq.unpack_mask(mp, [4, 8])
        dx = aten.where.ScalarOther(m2, g_0, 0.0)
        q2 = sq.unpack_int4(qp, [4, 8], True)
        dw = aten.mul.Tensor(g_0, q2)
        """,
    )
    assert same(pack_saved(before), after)


def test_pack_saved_leaves_eight_bits():
    before = graph(
        "x_0: f32[4, 8], r: f32[1, 1], g_0: f32[4, 8] -> dw",
        """
        q = sq.quantize(x_0, r, 8, True)
        dw = aten.mul.Tensor(g_0, q)
        """,
        q={"bits": 8, "signed": True},
    )
    assert same(pack_saved(before), before)


def test_fuse_epilogues_takes_dequantise_and_relu_into_the_product():
    shapes = "a: u8[4, 8], b: i8[6, 8], s: f32[1, 6], bias: f32[1, 6]"
    before = graph(
        f"{shapes} -> y",
        """
        acc = sq.shift_matmul(a, b, None, 1, False, True, 0)
        d = sq.dequantize(acc, [s], bias)
        y = aten.relu(d)
        """,
        acc=spec("fprop", (ACTIVATION, WEIGHT), groups=1),
    )
    after = graph(
        f"{shapes} -> y",
        "y = sq.shift_matmul_dequantize(a, b, None, 1, False, True, 0, [s], bias, True)",
    )
    assert same(fuse_epilogues(before), after)


def test_fuse_epilogues_keeps_accumulators_that_a_norm_reads():
    before = graph(
        "a: u8[4, 8], b: i8[6, 8], s: f32[1, 6], c: f32[6] -> y, x",
        """
        acc = sq.shift_matmul(a, b, None, 1, False, True, 0)
        y = sq.dequantize(acc, [s], None)
        n = sq.l1_batch_norm(acc, c, None, None, None, 1e-05, 16, 4, 0.3352)
        x = n[0]
        """,
        acc=spec("fprop", (ACTIVATION, WEIGHT), groups=1),
    )
    assert same(fuse_epilogues(before), before)


@pytest.mark.parametrize(
    ("k", "bits", "chunk"), [(1024, 4, 0), (66311, 8, 0), (66312, 8, 66311), (200000, 8, 66311)]
)
def test_bound_accumulators_splits_long_reductions(k, bits, chunk):
    signed = Operand("activation", bits, True), Operand("weight", bits, True, (0,))
    before = graph(
        f"a: i8[2, {k}], b: i8[3, {k}] -> y",
        "y = sq.shift_matmul(a, b, None, 1, False, True, 0)",
        y=spec("fprop", signed, groups=1),
    )
    node = next(n for n in bound_accumulators(before).graph.nodes if n.name == "y")
    assert node.args[-1] == chunk
    assert node.meta["val"].dtype == (torch.int64 if chunk else torch.int32)
    assert node.meta["bound"] < 2**31


def test_bound_accumulators_counts_the_shift_of_the_gradient():
    operands = Operand("gradient", 8, True), Operand("activation", 8, False)
    before = graph(
        "g: i8[30000, 4], x: u8[30000, 5], e: i8[30000, 1] -> y",
        "y = sq.shift_matmul(g, x, e, 4, True, False, 0)",
        y=spec("wgrad", operands, groups=4),
    )
    node = next(n for n in bound_accumulators(before).graph.nodes if n.name == "y")
    assert node.args[-1] == (2**31 - 1) // ((127 << 3) * 255)


def test_canonicalize_takes_a_square_root_that_rounds_correctly():
    before = graph("x_0: f32[3] -> y", "y = aten.sqrt(x_0)")
    assert same(canonicalize(before), graph("x_0: f32[3] -> y", "y = sq.sqrt(x_0)"))
