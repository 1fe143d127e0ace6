"""Golden tests of the passes behind quantize_operands: norms, sharing, packing, fusing, bounds."""

import pytest
import torch

from sqcompile.ops.philox import stream_id
from sqcompile.passes.assign_precision import Operand, ProductSpec
from sqcompile.passes.bound_accumulators import bound_accumulators
from sqcompile.passes.fuse_epilogues import fuse_epilogues
from sqcompile.passes.pack_saved import pack_saved
from sqcompile.passes.quantize_norms import quantize_norms
from sqcompile.passes.share_quantized import share_quantized
from sqcompile.recipe import RECIPES
from tests.passes.programs import graph, same

WEIGHT = Operand("weight", 4, True, (0,))
ACTIVATION = Operand("activation", 4, False)
GRADIENT = Operand("gradient", 4, True)


def spec(role, operands, groups=4, outer=True, module="fc"):
    return {"sq": ProductSpec(module, role, operands, groups, outer, 0)}


def test_quantize_norms_reads_the_accumulators_of_a_product():
    shapes = (
        "q: u8[2, 5, 5, 4], w: i8[6, 4, 3, 3], s: f32[1, 1, 1, 6], b: f32[1, 1, 1, 6], "
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
        "x_0: f32[2, 5, 5, 6], rng: i64[4] -> y",
        """
        n = sq.batch_norm(x_0, None, None, 1e-05)
        y = n[0]
        """,
    )
    after = graph(
        "x_0: f32[2, 5, 5, 6], rng: i64[4] -> y",
        """
        r = sq.absmax(x_0, None, [0, 1, 2])
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
        dx = sq.l1_layer_norm_backward(hq, sh, xhat, c, 1.0)
        rg = sq.absmax(g_0, None, [0])
        gq = sq.quantize_stochastic(g_0, rg, None, None, rng, 8, {g})
        sg = sq.quant_scale(rg, 8, True, 1)
        a = sq.l1_layer_norm_affine_backward(gq, sg, xhat, 1.0)
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


def test_bound_accumulators_splits_a_weight_gradient_by_rows_of_the_image():
    operands = Operand("gradient", 8, True), Operand("activation", 8, False)
    before = graph(
        "g: i8[40, 50, 48, 4], x: u8[40, 50, 48, 5] -> y",
        "y = sq.conv_wgrad(g, x, None, 1, [4, 5, 1, 1], [1, 1], [0, 0], [1, 1], 1, 0)",
        y=spec("wgrad", operands, groups=1),
    )
    node = next(n for n in bound_accumulators(before).graph.nodes if n.name == "y")
    # a signed operand may be stored biased by 128
    assert node.args[-1] == (2**31 - 1) // (255 * 255 * 48)
