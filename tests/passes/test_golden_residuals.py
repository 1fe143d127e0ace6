"""Golden tests of fuse_residuals: which sums and ReLUs a batch norm takes in."""

import pytest

from sqcompile.passes.fuse_residuals import fuse_residuals
from tests.passes.programs import graph, same

SIGNATURE = "acc: i32[2, 5, 5, 6], s: f32[6], p_g: f32[6], p_b: f32[6], x_0: f32[2, 5, 5, 6]"
NORM = "sq.l1_batch_norm(acc, s, None, p_g, p_b, 1e-05, 16, 4, 0.3352)"
FUSED = "sq.l1_batch_norm_add_relu(acc, s, None, p_g, p_b, 1e-05, 16, 4, 0.3352"


@pytest.mark.parametrize("order", ["y, x_0", "x_0, y"])
def test_fuse_residuals_takes_sum_relu_absmax_and_packing(order):
    before = graph(
        f"{SIGNATURE} -> z, q, mp, xp, c, mean, var",
        f"""
        n = {NORM}
        y = n[0]
        xhat = n[1]
        c = n[2]
        mean = n[3]
        var = n[4]
        xp = sq.pack_int4(xhat)
        a = aten.add.Tensor({order})
        z = aten.relu(a)
        m = aten.gt.Scalar(z, 0)
        mp = sq.pack_mask(m)
        r = sq.absmax(z, None, [0, 1, 2, 3])
        q = sq.quantize(z, r, 4, False)
        """,
    )
    after = graph(
        f"{SIGNATURE} -> z, q, mp, xp, c, mean, var",
        f"""
        n = {FUSED}, x_0, True)
        r = n[1]
        xp = n[2]
        mp = n[3]
        c = n[4]
        mean = n[5]
        var = n[6]
        z = n[0]
        q = sq.quantize(z, r, 4, False)
        """,
    )
    assert same(fuse_residuals(before), after)


def test_fuse_residuals_takes_a_lone_relu_and_a_lone_sum():
    before = graph(
        f"{SIGNATURE} -> z, t",
        f"""
        n = {NORM}
        y = n[0]
        z = aten.relu(y)
        k = {NORM}
        v = k[0]
        t = aten.add.Tensor(v, z)
        """,
    )
    after = graph(
        f"{SIGNATURE} -> z, t",
        f"""
        n = {FUSED}, None, True)
        z = n[0]
        k = {FUSED}, z, False)
        t = k[0]
        """,
    )
    assert same(fuse_residuals(before), after)


def test_fuse_residuals_lets_the_later_of_two_norms_add():
    before = graph(
        f"{SIGNATURE} -> z",
        f"""
        n = {NORM}
        y = n[0]
        k = {NORM}
        v = k[0]
        t = aten.add.Tensor(y, v)
        z = aten.relu(t)
        """,
    )
    after = graph(
        f"{SIGNATURE} -> z",
        f"""
        n = {NORM}
        y = n[0]
        k = {FUSED}, y, True)
        z = k[0]
        """,
    )
    assert same(fuse_residuals(before), after)


@pytest.mark.parametrize(
    ("middle", "end"),
    [
        ("a = aten.add.Tensor(y, p_b)", "z = aten.relu(a)"),
        ("a = aten.add.Tensor(y, x_0)", "z = aten.mul.Tensor(y, a)"),
        ("a = aten.neg(y)", "z = aten.relu(a)"),
    ],
    ids=["a row is added", "the norm is read twice", "something between"],
)
def test_fuse_residuals_leaves_other_readers(middle, end):
    before = graph(f"{SIGNATURE} -> z", f"n = {NORM}\ny = n[0]\n{middle}\n{end}")
    assert same(fuse_residuals(before), before)


def test_fuse_residuals_leaves_an_xhat_that_is_read_unpacked():
    before = graph(
        f"{SIGNATURE} -> z, xhat",
        f"""
        n = {NORM}
        y = n[0]
        xhat = n[1]
        z = aten.relu(y)
        """,
    )
    assert same(fuse_residuals(before), before)
