"""Golden tests of RMS and group norms, through quantize_norms and fuse_norms."""

import pytest

from sqcompile.ops.pack import pack_int4, unpack_int4
from sqcompile.ops.philox import stream_id
from sqcompile.passes.editing import calls
from sqcompile.passes.fuse_norms import fuse_norms
from sqcompile.passes.pack_saved import pack_saved
from sqcompile.passes.quantize_norms import quantize_norms
from sqcompile.recipe import RECIPES
from tests.passes.programs import graph, same


def test_quantize_norms_rms_norm_has_no_fraction_bits():
    before = graph(
        "x_0: f32[4, 6], p_g: f32[6], rng: i64[4] -> y, xhat, c",
        """
        n = sq.layer_norm(x_0, p_g, None, 1e-06, False)
        y = n[0]
        xhat = n[1]
        c = n[2]
        """,
    )
    after = graph(
        "x_0: f32[4, 6], p_g: f32[6], rng: i64[4] -> y, xhat, c",
        """
        r = sq.absmax(x_0, None, [1])
        q = sq.quantize(x_0, r, 8, True)
        s = sq.quant_scale(r, 8, True, 1)
        n = sq.l1_layer_norm(q, s, p_g, None, 1e-06, 0, 4, 1.0, False)
        y = n[0]
        xhat = n[1]
        c = n[2]
        """,
    )
    assert same(quantize_norms(before, RECIPES["w4a4g4"]), after)


def test_quantize_norms_group_norm_is_quantised_per_sample_and_group():
    shapes = "x_0: f32[2, 3, 5, 6], p_g: f32[6], p_b: f32[6], g_0: f32[2, 3, 5, 6], rng: i64[4]"
    before = graph(
        f"{shapes} -> y, dx, dg, db",
        """
        n = sq.group_norm(x_0, p_g, p_b, 2, 1e-05)
        y = n[0]
        xhat = n[1]
        c = n[2]
        b = sq.group_norm_backward(g_0, xhat, c, p_g)
        dx = b[0]
        dg = b[1]
        db = b[2]
        """,
    )
    after = graph(
        f"{shapes} -> y, dx, dg, db",
        f"""
        x = aten.view(x_0, [2, 15, 2, 3])
        r = sq.absmax(x, None, [1, 3])
        q = sq.quantize(x, r, 8, True)
        s = sq.quant_scale(r, 8, True, 1)
        gamma = aten.view(p_g, [2, 3])
        beta = aten.view(p_b, [2, 3])
        n = sq.l1_group_norm(q, s, gamma, beta, 1e-05, 16, 4, 1.0)
        yg = n[0]
        y = aten.view(yg, [2, 3, 5, 6])
        xhat = n[1]
        c = n[2]
        g = aten.view(g_0, [2, 15, 2, 3])
        gamma2 = aten.view(p_g, [2, 3])
        h = aten.mul.Tensor(g, gamma2)
        rh = sq.absmax(h, None, [1, 3])
        re = aten.expand(rh, [2, 1, 2, 3])
        rc = aten.reshape(re, [2, 1, 6])
        hc = aten.view(h, [2, 15, 6])
        q3 = sq.quantize_stochastic(hc, rc, None, None, rng, 8, {stream_id("", "norm", "h", 0)})
        hq = aten.view(q3, [2, 15, 2, 3])
        sh = sq.quant_scale(rh, 8, True, 1)
        dxg = sq.l1_group_norm_backward(hq, sh, xhat, c, 1.0)
        dx = aten.view(dxg, [2, 3, 5, 6])
        gr = aten.view(g_0, [30, 6])
        rg = sq.absmax(gr, None, [0])
        gq = sq.quantize_stochastic(gr, rg, None, None, rng, 8, {stream_id("", "norm", "g", 0)})
        sg = sq.quant_scale(rg, 8, True, 1)
        k = aten.view(xhat, [30, 6])
        a = sq.l1_layer_norm_affine_backward(gq, sg, k, 1.0)
        dg = a[0]
        db = a[1]
        """,
    )
    assert same(quantize_norms(before, RECIPES["w4a4g4"]), after)


@pytest.mark.parametrize("pixels", [4, 5])
def test_fuse_norms_gradients_of_a_group_norm_read_packed_samples_of_even_size(pixels):
    inputs = (
        f"xp: u8[{pixels * 9}], h: i8[6, {pixels}, 1, 3], hs: f32[6, 1, 1, 1], "
        f"q: i8[{pixels * 6}, 3], qs: f32[1, 3] -> dx, dg"
    )
    before = graph(
        inputs,
        f"""
        k = sq.unpack_int4(xp, [6, {pixels}, 1, 3], True)
        dx = sq.l1_group_norm_backward(h, hs, k, hs, 0.3352)
        rows = aten.view(k, [{pixels * 6}, 3])
        a = sq.l1_layer_norm_affine_backward(q, qs, rows, 0.3352)
        dg = a[0]
        """,
    )
    whole = "dx = sq.l1_group_norm_packed_backward(h, hs, xp, hs, 0.3352)"
    unpacked = f"""
        k = sq.unpack_int4(xp, [6, {pixels}, 1, 3], True)
        dx = sq.l1_group_norm_backward(h, hs, k, hs, 0.3352)
        """
    after = graph(
        inputs,
        f"""
        {unpacked if pixels % 2 else whole}
        a = sq.l1_layer_norm_affine_packed_backward(q, qs, xp, 0.3352)
        dg = a[0]
        """,
    )
    assert same(fuse_norms(before), after)


def test_a_group_norm_saves_its_integers_packed():
    shapes = "x_0: f32[2, 3, 5, 6], g_0: f32[2, 3, 5, 6], rng: i64[4] -> y, dg"
    program = """
        n = sq.group_norm(x_0, None, None, 2, 1e-05)
        y = n[0]
        xhat = n[1]
        c = n[2]
        b = sq.group_norm_backward(g_0, xhat, c, None)
        dg = b[1]
        """
    done = pack_saved(quantize_norms(graph(shapes, program), RECIPES["w4a4g4"]))
    assert [node.meta["saves"][1] for node in calls(done, pack_int4)] == [4]
    assert len(calls(done, unpack_int4)) == 1
