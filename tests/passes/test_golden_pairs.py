"""Golden tests of pair_quantizers, and that both quantisers of a gradient have one stream."""

import operator

import pytest

from sqcompile.ops.quantize_pair import shift_quantize_pair
from sqcompile.passes.assign_precision import assign_precision
from sqcompile.passes.editing import calls
from sqcompile.passes.expose_absmax import expose_absmax
from sqcompile.passes.pair_quantizers import pair_quantizers
from sqcompile.passes.verifier import BrokenInvariant, verify
from sqcompile.recipe import RECIPES
from tests.passes.programs import graph, same

INPUTS = "g_0: f32[2, 5, 5, 6], w: f32[6, 1, 1, 1], rng: i64[4]"
DGRAD = """
    s = aten.view(w, [1, 1, 1, 6])
    f = sq.shift_quantize(g_0, s, rng, [0], [3], 4, 4, 7)
    q = f[0]
    e = f[1]
"""
WGRAD = """
    h = sq.shift_quantize(g_0, None, rng, [3], [0, 1, 2], 4, 4, {stream})
    k = h[0]
    b = h[3]
"""
PAIR = """
    s = aten.view(w, [1, 1, 1, 6])
    f = sq.shift_quantize_pair(g_0, s, rng, True, 4, 4, 7)
    q = f[0]
    e = f[1]
    k = f[5]
    b = f[8]
"""
RESULTS = f"{INPUTS} -> q, e, k, b"


@pytest.mark.parametrize("wgrad_first", [False, True])
def test_dgrad_and_wgrad_of_one_stream_are_one_op(wgrad_first):
    wgrad = WGRAD.format(stream=7)
    before = graph(
        RESULTS,
        wgrad + DGRAD if wgrad_first else DGRAD + wgrad,
        q={"bits": 4, "signed": True, "role": "dgrad"},
        k={"bits": 4, "signed": True, "role": "wgrad"},
    )
    done = pair_quantizers(before)
    assert same(done, graph(RESULTS, PAIR))
    items = {n.args[1]: n for n in done.graph.nodes if n.target is operator.getitem}
    assert (items[0].name, items[0].meta["role"]) == ("q", "dgrad")
    assert (items[5].name, items[5].meta["role"]) == ("k", "wgrad")
    verify(done, frozenset({"no dangling quantiser"}))


@pytest.mark.parametrize(("axes", "outer"), [(("[0]", "[1]"), True), (("[]", "[]"), False)])
def test_a_linear_layer_without_groups(axes, outer):
    inputs = "g_0: f32[4, 6], rng: i64[4] -> q, k"
    before = graph(
        inputs,
        f"""
        f = sq.shift_quantize(g_0, None, rng, {axes[0]}, [], 8, 1, 7)
        q = f[0]
        h = sq.shift_quantize(g_0, None, rng, {axes[1]}, [], 8, 1, 7)
        k = h[0]
        """,
    )
    after = graph(
        inputs,
        f"""
        f = sq.shift_quantize_pair(g_0, None, rng, {outer}, 8, 1, 7)
        q = f[0]
        k = f[5]
        """,
    )
    assert same(pair_quantizers(before), after)


@pytest.mark.parametrize(
    "other",
    [
        WGRAD.format(stream=8),
        WGRAD.format(stream=7).replace("[3], [0, 1, 2], 4", "[3], [0, 1, 2], 6"),
        WGRAD.format(stream=7).replace("[3], [0, 1, 2]", "[0], [0, 1, 2]"),
        WGRAD.format(stream=7).replace("None", "s"),
    ],
    ids=["stream", "bits", "axes", "factor"],
)
def test_quantisers_that_differ_otherwise_stay(other):
    before = graph(RESULTS, DGRAD + other)
    assert same(pair_quantizers(before), before)


def test_the_gradient_of_one_product_alone_stays():
    before = graph(f"{INPUTS} -> q, e", DGRAD)
    assert same(pair_quantizers(before), before)


def test_both_absmaxes_are_exposed():
    paired = pair_quantizers(graph(RESULTS, DGRAD + WGRAD.format(stream=7)))
    done, described = expose_absmax(paired)
    assert [n.args[1] for n in done.graph.output_node().args[0][-2:]] == [4, 9]
    assert described == ["graph node g_0 ()"] * 2


def test_a_pair_of_which_one_half_is_not_read_dangles():
    (node,) = calls(paired := graph(f"{INPUTS} -> q, e", PAIR), shift_quantize_pair)
    for item in [user for user in node.users if user.args[1] >= 5]:
        paired.graph.erase_node(item)
    with pytest.raises(BrokenInvariant, match="quantises what nothing reads"):
        verify(paired, frozenset({"no dangling quantiser"}))


def test_the_gradients_of_a_product_have_its_occurrence():
    """A module called twice, whose first call wants no dX: each dW goes with its own dX."""
    module = graph(
        "x_0: f32[4, 6], p_a__weight: f32[6, 6], p_b__weight: f32[6, 6], g_0: f32[4, 6], "
        "g_1: f32[4, 6] -> y, z, dh, dv, dw",
        """
        h = sq.matmul(x_0, p_b__weight, None, False, True)
        y = sq.matmul(x_0, p_a__weight, None, False, True)
        z = sq.matmul(h, p_a__weight, None, False, True)
        dw = sq.matmul(g_0, x_0, None, True, False)
        dh = sq.matmul(g_1, p_a__weight, None, False, False)
        dv = sq.matmul(g_1, h, None, True, False)
        """,
        h={"seq_nr": 1},
        y={"seq_nr": 2},
        z={"seq_nr": 3},
        dw={"seq_nr": 2},
        dh={"seq_nr": 3},
        dv={"seq_nr": 3},
    )
    done = assign_precision(module, RECIPES["w4a4g4"])
    found = {n.name: n.meta["sq"] for n in done.graph.nodes if "sq" in n.meta}
    assert {name: found[name].occurrence for name in ("dw", "dh", "dv")} == {
        "dw": 0,
        "dh": 1,
        "dv": 1,
    }
