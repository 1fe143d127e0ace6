"""Golden tests of fuse_quantizers and of the absmaxes that stay visible behind it."""

import operator

import pytest

from sqcompile.ops.quantize import shift_quantize
from sqcompile.passes.editing import calls
from sqcompile.passes.expose_absmax import expose_absmax
from sqcompile.passes.fuse_quantizers import fuse_quantizers
from tests.passes.programs import graph, same

INPUTS = "g_0: f32[4, 6], s: f32[1, 6], rng: i64[4]"
DGRAD = """
    x = aten.mul.Tensor(g_0, s)
    m = sq.absmax(x, None, [1])
    c = sq.absmax(x, m, [0])
    r = sq.absmax(c, None, [0, 1])
    e = sq.group_exponent(c, 4)
    q = sq.quantize_stochastic(x, r, m, e, rng, 4, 7)
    a = sq.quant_scale(r, 4, True, 4)
    b = sq.outer_scale(m)
"""


def test_dgrad_takes_the_folded_scale_in():
    before = graph(f"{INPUTS} -> q, e, a, b", DGRAD, q={"bits": 4, "signed": True, "role": "dgrad"})
    after = graph(
        f"{INPUTS} -> q, e, a, b",
        """
        f = sq.shift_quantize(g_0, s, rng, [0], [1], 4, 4, 7)
        q = f[0]
        e = f[1]
        a = f[2]
        b = f[3]
        """,
    )
    done = fuse_quantizers(before)
    assert same(done, after)
    q = next(n for n in done.graph.nodes if n.target is operator.getitem and n.args[1] == 0)
    assert {key: q.meta[key] for key in ("bits", "signed", "role")} == {
        "bits": 4,
        "signed": True,
        "role": "dgrad",
    }


def test_wgrad_of_images_has_rows_as_groups():
    shapes = "g_0: f32[2, 5, 5, 6], rng: i64[4] -> q, e, a, b"
    before = graph(
        shapes,
        """
        m = sq.absmax(g_0, None, [0, 1, 2])
        c = sq.absmax(g_0, m, [3])
        r = sq.absmax(c, None, [0, 1, 2, 3])
        e = sq.group_exponent(c, 3)
        q = sq.quantize_stochastic(g_0, r, m, e, rng, 6, 7)
        a = sq.quant_scale(r, 6, True, 3)
        b = sq.outer_scale(m)
        """,
    )
    after = graph(
        shapes,
        """
        f = sq.shift_quantize(g_0, None, rng, [3], [0, 1, 2], 6, 3, 7)
        q = f[0]
        e = f[1]
        a = f[2]
        b = f[3]
        """,
    )
    assert same(fuse_quantizers(before), after)


@pytest.mark.parametrize("outer", ["m", "None"])
def test_without_groups(outer):
    measure = "m = sq.absmax(g_0, None, [1])" if outer == "m" else ""
    axes = "[0]" if outer == "m" else "[]"
    before = graph(
        f"{INPUTS} -> q, a",
        f"""
        {measure}
        r = sq.absmax(g_0, {outer}, [0, 1])
        q = sq.quantize_stochastic(g_0, r, {outer}, None, rng, 8, 7)
        a = sq.quant_scale(r, 8, True, 1)
        """,
    )
    after = graph(
        f"{INPUTS} -> q, a",
        f"""
        f = sq.shift_quantize(g_0, None, rng, {axes}, [], 8, 1, 7)
        q = f[0]
        a = f[2]
        """,
    )
    assert same(fuse_quantizers(before), after)


def test_a_product_that_others_read_stays():
    before = graph(f"{INPUTS} -> q, e, a, b, x", DGRAD)
    after = graph(
        f"{INPUTS} -> q, e, a, b, x",
        """
        x = aten.mul.Tensor(g_0, s)
        f = sq.shift_quantize(x, None, rng, [0], [1], 4, 4, 7)
        q = f[0]
        e = f[1]
        a = f[2]
        b = f[3]
        """,
    )
    assert same(fuse_quantizers(before), after)


@pytest.mark.parametrize("also", ["m", "c", "r"])
def test_an_absmax_that_others_read_stays(also):
    before = graph(f"{INPUTS} -> q, e, a, b, {also}", DGRAD)
    assert same(fuse_quantizers(before), before)


def test_a_scale_per_channel_stays():
    before = graph(
        f"{INPUTS} -> q",
        """
        r = sq.absmax(g_0, None, [0])
        q = sq.quantize_stochastic(g_0, r, None, None, rng, 8, 7)
        """,
    )
    assert same(fuse_quantizers(before), before)


def test_expose_absmax_shows_what_is_measured_inside():
    fused = fuse_quantizers(graph(f"{INPUTS} -> q, e, a, b", DGRAD))
    (node,) = calls(fused, shift_quantize)
    node.meta |= {"role": "dgrad", "module": "fc"}
    done, described = expose_absmax(fused)
    last = done.graph.output_node().args[0][-1]
    assert last.target is operator.getitem and last.args[1] == 4
    assert described == ["graph node g_0 (dgrad fc)"]


WEIGHT = """
    r = sq.absmax(w, None, [1])
    s = sq.quant_scale(r, 4, True, 1)
    q = sq.quantize(w, r, 4, True)
"""


def test_a_weight_is_measured_and_quantised_in_one_op():
    before = graph("w: f32[4, 6] -> q, s", WEIGHT)
    after = graph(
        "w: f32[4, 6] -> q, s",
        """
        f = sq.quantize_rows(w, 4, True)
        q = f[0]
        s = f[1]
        """,
    )
    assert same(fuse_quantizers(before), after)


def test_other_readers_of_a_weights_absmax_read_it_from_the_op():
    other = f"{WEIGHT}\n    t = sq.quant_scale(r, 8, True, 1)"
    before = graph("w: f32[4, 6] -> q, s, r, t", other)
    after = graph(
        "w: f32[4, 6] -> q, s, r, t",
        """
        f = sq.quantize_rows(w, 4, True)
        q = f[0]
        s = f[1]
        r = f[2]
        t = sq.quant_scale(r, 8, True, 1)
        """,
    )
    assert same(fuse_quantizers(before), after)


def test_rows_of_a_computed_tensor_stay():
    """A norm takes them in."""
    before = graph("x: f32[4, 6] -> q, s", f"w = aten.neg.default(x){WEIGHT}")
    assert same(fuse_quantizers(before), before)
