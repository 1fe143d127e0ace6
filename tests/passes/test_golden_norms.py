"""Golden tests of fuse_norms: what a norm takes in, and what it leaves alone."""

import pytest

from sqcompile.passes.fuse_norms import fuse_norms
from tests.passes.programs import graph, same

BATCH = (
    "acc: i32[2, 5, 5, 6], s: f32[6], b: f32[6], p_g: f32[6], p_b: f32[6], g_0: i8[2, 5, 5, 6], "
    "gs: f32[6]"
)
BITS = {"bits": 4, "signed": False}


def test_fuse_norms_takes_relu_quantiser_and_packing_into_a_batch_norm():
    before = graph(
        f"{BATCH} -> q, sq, mean, var, xp, mp, c",
        """
        n = sq.l1_batch_norm(acc, s, b, p_g, p_b, 1e-05, 16, 4, 0.3352)
        y = n[0]
        xhat = n[1]
        c = n[2]
        mean = n[3]
        var = n[4]
        xp = sq.pack_int4(xhat)
        z = aten.relu(y)
        m = aten.gt.Scalar(z, 0)
        mp = sq.pack_mask(m)
        r = sq.absmax(z, None, [0, 1, 2, 3])
        q = sq.quantize(z, r, 4, False)
        sq = sq.quant_scale(r, 4, False, 1)
        """,
        q=BITS,
        xp={"saves": ("xhat", 4)},
    )
    after = graph(
        f"{BATCH} -> q, sq, mean, var, xp, mp, c",
        """
        n = sq.l1_batch_norm_relu_quantize(
            acc, s, b, p_g, p_b, 1e-05, 16, 4, 0.3352, True, 4, False)
        q = n[0]
        r = n[1]
        xp = n[2]
        mp = n[3]
        c = n[4]
        mean = n[5]
        var = n[6]
        sq = sq.quant_scale(r, 4, False, 1)
        """,
    )
    done = fuse_norms(before)
    assert same(done, after)
    meta = {node.name: node.meta for node in done.graph.nodes}
    assert {key: meta["q"][key] for key in BITS} == BITS
    assert meta["xp"]["saves"] == ("xhat", 4)


def test_fuse_norms_takes_the_share_of_the_absmax():
    before = graph(
        f"{BATCH} -> q, s4",
        """
        n = sq.l1_batch_norm(acc, s, None, None, None, 1e-05, 16, 8, 0.0308)
        y = n[0]
        r = sq.absmax(y, None, [0, 1, 2, 3])
        h = sq.clip_range(r, 0.5)
        q = sq.quantize(y, h, 4, True)
        s4 = sq.quant_scale(h, 4, True, 1)
        """,
    )
    after = graph(
        f"{BATCH} -> q, s4",
        """
        n = sq.l1_batch_norm_relu_quantize(
            acc, s, None, None, None, 1e-05, 16, 8, 0.0308, False, 4, True, None, 0.5)
        q = n[0]
        h = n[1]
        s4 = sq.quant_scale(h, 4, True, 1)
        """,
    )
    assert same(fuse_norms(before), after)


def test_fuse_norms_without_relu_and_with_an_xhat_of_8_bits():
    before = graph(
        f"{BATCH} -> q, xhat",
        """
        n = sq.l1_batch_norm(acc, s, None, None, None, 1e-05, 16, 8, 0.0308)
        y = n[0]
        xhat = n[1]
        r = sq.absmax(y, None, [0, 1, 2, 3])
        q = sq.quantize(y, r, 8, True)
        """,
    )
    after = graph(
        f"{BATCH} -> q, xhat",
        """
        n = sq.l1_batch_norm_relu_quantize(
            acc, s, None, None, None, 1e-05, 16, 8, 0.0308, False, 8, True)
        q = n[0]
        xhat = n[2]
        """,
    )
    assert same(fuse_norms(before), after)


@pytest.mark.parametrize(
    "reader",
    ["o = aten.add.Tensor(y, y)", "o = aten.neg(z)", "o = sq.absmax(z, None, [0])"],
    ids=["of the norm", "of the ReLU", "per channel"],
)
def test_fuse_norms_leaves_a_batch_norm_whose_result_is_read_otherwise(reader):
    before = graph(
        f"{BATCH} -> q, o",
        f"""
        n = sq.l1_batch_norm(acc, s, b, p_g, p_b, 1e-05, 16, 4, 0.3352)
        y = n[0]
        z = aten.relu(y)
        r = sq.absmax(z, None, [0, 1, 2, 3])
        q = sq.quantize(z, r, 4, False)
        {reader}
        """,
    )
    assert same(fuse_norms(before), before)


def test_fuse_norms_leaves_an_xhat_that_is_read_unpacked():
    before = graph(
        f"{BATCH} -> q, xhat",
        """
        n = sq.l1_batch_norm(acc, s, b, p_g, p_b, 1e-05, 16, 4, 0.3352)
        y = n[0]
        xhat = n[1]
        r = sq.absmax(y, None, [0, 1, 2, 3])
        q = sq.quantize(y, r, 4, True)
        """,
    )
    assert same(fuse_norms(before), before)


def test_fuse_norms_gradients_read_packed_values():
    before = graph(
        f"{BATCH}, xp: u8[150] -> dx, dg, db",
        """
        xhat = sq.unpack_int4(xp, [2, 5, 5, 6], True)
        n = sq.l1_batch_norm_backward(g_0, gs, xhat, s, p_g, 0.3352)
        dx = n[0]
        dg = n[1]
        db = n[2]
        """,
    )
    after = graph(
        f"{BATCH}, xp: u8[150] -> dx, dg, db",
        """
        n = sq.l1_batch_norm_packed_backward(g_0, gs, xp, s, p_g, 0.3352)
        dx = n[0]
        dg = n[1]
        db = n[2]
        """,
    )
    assert same(fuse_norms(before), after)


@pytest.mark.parametrize("features", [6, 7])
def test_fuse_norms_takes_the_quantiser_of_a_layer_norm_with_even_rows(features):
    shapes = f"x: f32[4, {features}], p_g: f32[{features}], h: i8[4, {features}], hs: f32[4, 1]"
    before = graph(
        f"{shapes} -> y, dx",
        f"""
        r = sq.absmax(x, None, [1])
        q = sq.quantize(x, r, 8, True)
        s = sq.quant_scale(r, 8, True, 1)
        n = sq.l1_layer_norm(q, s, p_g, None, 1e-05, 16, 4, 0.3352)
        y = n[0]
        xhat = n[1]
        c = n[2]
        xp = sq.pack_int4(xhat)
        k = sq.unpack_int4(xp, [4, {features}], True)
        dx = sq.l1_layer_norm_backward(h, hs, k, c, 0.3352)
        """,
    )
    after = graph(
        f"{shapes} -> y, dx",
        """
        n = sq.quantize_l1_layer_norm(x, 8, p_g, None, 1e-05, 16, 4, 0.3352)
        y = n[0]
        xp = n[1]
        c = n[2]
        dx = sq.l1_layer_norm_packed_backward(h, hs, xp, c, 0.3352)
        """,
    )
    assert same(fuse_norms(before), after if features == 6 else before)


@pytest.mark.parametrize("order", ["g_0, p_g", "p_g, g_0"])
def test_fuse_norms_takes_the_gradients_quantiser_into_the_input_gradient(order):
    inputs = (
        "g_0: f32[4, 6], p_g: f32[6], xp: u8[12], k: i8[4, 6], c: f32[4, 1], rng: i64[4] -> dx, dz"
    )
    before = graph(
        inputs,
        f"""
        h = aten.mul.Tensor({order})
        r = sq.absmax(h, None, [1])
        q = sq.quantize_stochastic(h, r, None, None, rng, 8, 7)
        s = sq.quant_scale(r, 8, True, 1)
        u = sq.unpack_int4(xp, [4, 6], True)
        dx = sq.l1_layer_norm_backward(q, s, u, c, 0.3352)
        rg = sq.absmax(g_0, None, [1])
        qg = sq.quantize_stochastic(g_0, rg, None, None, rng, 8, 9)
        sg = sq.quant_scale(rg, 8, True, 1)
        dz = sq.l1_layer_norm_backward(qg, sg, k, c, 0.3352)
        """,
    )
    after = graph(
        inputs,
        """
        n = sq.quantize_l1_layer_norm_backward(g_0, p_g, rng, 8, 7, xp, c, 0.3352)
        dx = n[0]
        m = sq.quantize_l1_layer_norm_backward(g_0, None, rng, 8, 9, k, c, 0.3352)
        dz = m[0]
        """,
    )
    assert same(fuse_norms(before), after)


@pytest.mark.parametrize(
    "reader", ["o = aten.neg(q)", "o = aten.neg(r)"], ids=["integers", "absmax"]
)
def test_fuse_norms_leaves_a_gradients_quantiser_that_is_read_otherwise(reader):
    before = graph(
        "g_0: f32[4, 6], k: i8[4, 6], c: f32[4, 1], rng: i64[4] -> dx, o",
        f"""
        r = sq.absmax(g_0, None, [1])
        q = sq.quantize_stochastic(g_0, r, None, None, rng, 8, 7)
        s = sq.quant_scale(r, 8, True, 1)
        dx = sq.l1_layer_norm_backward(q, s, k, c, 0.3352)
        {reader}
        """,
    )
    assert same(fuse_norms(before), before)
