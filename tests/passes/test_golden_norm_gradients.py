"""Golden tests of fuse_norm_gradients."""

import operator

import pytest

from sqcompile.passes.expose_absmax import expose_absmax
from sqcompile.passes.fuse_norm_gradients import fuse_norm_gradients
from sqcompile.passes.verifier import BrokenInvariant, verify
from tests.passes.programs import graph, same

INPUTS = (
    "x_g: i8[2, 5, 5, 6], s: f32[6], x_h: u8[150], x_k: i8[2, 5, 5, 6], c: f32[6], p_w: f32[6], "
    "w: f32[6, 1, 1, 1], rng: i64[4]"
)
PACKED = "b = sq.l1_batch_norm_packed_backward(x_g, s, x_h, c, p_w, 0.3352)"
BYTES = "b = sq.l1_batch_norm_backward(x_g, s, x_k, c, None, 0.3352)"
PAIR = """
    dx = b[0]
    dgamma = b[1]
    twice = aten.add.Tensor(dgamma, dgamma)
    v = aten.view(w, [1, 1, 1, 6])
    f = sq.shift_quantize_pair(dx, v, rng, True, 4, 4, 7)
    q = f[0]
    k = f[5]
    e = f[6]
    dbeta = b[2]
"""
OUTPUTS = f"{INPUTS} -> q, k, e, twice, dbeta"


@pytest.mark.parametrize("norm", [PACKED, BYTES], ids=["packed", "bytes"])
def test_a_norm_quantises_its_gradient(norm):
    """dgamma is read before the quantiser, so the weight's scale moves up."""
    before = graph(OUTPUTS, f"{norm}{PAIR}", q={"bits": 4, "signed": True, "role": "dgrad"})
    given = norm[norm.index("(") + 1 : -1]
    after = graph(
        OUTPUTS,
        f"""
        v = aten.view(w, [1, 1, 1, 6])
        f = sq.l1_batch_norm_backward_quantize({given}, v, rng, True, 4, 4, 7)
        q = f[0]
        k = f[5]
        e = f[6]
        dgamma = f[10]
        twice = aten.add.Tensor(dgamma, dgamma)
        dbeta = f[11]
        """,
    )
    done = fuse_norm_gradients(before)
    assert same(done, after)
    items = {n.args[1]: n for n in done.graph.nodes if n.target is operator.getitem}
    assert (items[0].name, items[0].meta["bits"], items[0].meta["role"]) == ("q", 4, "dgrad")
    verify(done, frozenset({"no dangling quantiser"}))
    exposed, _ = expose_absmax(done)
    assert [n.args[1] for n in exposed.graph.output_node().args[0][-2:]] == [4, 9]


def test_a_gradient_that_others_read_stays():
    before = graph(f"{OUTPUTS}, dx", f"{PACKED}{PAIR}")
    assert same(fuse_norm_gradients(before), before)


def test_a_gradient_of_something_else_stays():
    before = graph(
        f"{INPUTS} -> q, k",
        f"""
        {PACKED}
        dx = b[0]
        two = aten.add.Tensor(dx, dx)
        f = sq.shift_quantize_pair(two, None, rng, True, 4, 4, 7)
        q = f[0]
        k = f[5]
        """,
    )
    assert same(fuse_norm_gradients(before), before)


def test_integers_that_nothing_reads_dangle():
    before = graph(f"{INPUTS} -> q, dbeta", f"{PACKED}{PAIR}")
    with pytest.raises(BrokenInvariant, match="quantises what nothing reads"):
        verify(fuse_norm_gradients(before), frozenset({"no dangling quantiser"}))
