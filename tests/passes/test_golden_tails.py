"""Golden tests of fuse_tails: what a product adds and masks."""

import pytest

from sqcompile.passes.fuse_tails import fuse_tails
from tests.passes.programs import graph, same

LINEAR = "g_0: i8[10, 8], w: i8[8, 32], s: f32[1], x_0: f32[10, 32], m: u8[40]"
PRODUCT = "sq.shift_matmul_dequantize(g_0, w, None, 1, False, False, 0, [s], None, False"
IMAGE = "g_0: i8[2, 5, 5, 8], w: i8[8, 16, 3, 3], s: f32[1], x_0: f32[2, 5, 5, 16], m: u8[100]"
DGRAD = (
    "sq.conv_dgrad_dequantize(g_0, w, None, 1, [2, 5, 5, 16], [1, 1], [1, 1], [1, 1], 1, 0, "
    "[s], None, False"
)


@pytest.mark.parametrize("order", ["y, x_0", "x_0, y"])
def test_fuse_tails_takes_the_sum_and_the_mask_of_an_input_gradient(order):
    before = graph(
        f"{IMAGE} -> z",
        f"""
        k = sq.unpack_mask(m, [2, 5, 5, 16])
        y = {DGRAD})
        a = aten.add.Tensor({order})
        z = aten.where.ScalarOther(k, a, 0.0)
        """,
    )
    after = graph(f"{IMAGE} -> z", f"z = {DGRAD}, x_0, m)")
    assert same(fuse_tails(before), after)


def test_fuse_tails_looks_through_views():
    before = graph(
        f"{LINEAR}, r: f32[2, 5, 32] -> z",
        f"""
        y = {PRODUCT})
        v = aten.view(y, [2, 5, 32])
        z = aten.add.Tensor(r, v)
        """,
    )
    after = graph(
        f"{LINEAR}, r: f32[2, 5, 32] -> z",
        f"""
        f = aten.reshape(r, [10, 32])
        y = {PRODUCT}, f)
        z = aten.view(y, [2, 5, 32])
        """,
    )
    assert same(fuse_tails(before), after)


def test_fuse_tails_lets_the_later_of_two_products_add():
    before = graph(
        f"{LINEAR} -> z",
        f"""
        y = {PRODUCT})
        v = {PRODUCT})
        z = aten.add.Tensor(y, v)
        """,
    )
    after = graph(f"{LINEAR} -> z", f"y = {PRODUCT})\nz = {PRODUCT}, y)")
    assert same(fuse_tails(before), after)


@pytest.mark.parametrize(
    "tail",
    [
        "z = aten.add.Tensor(y, s)",
        "z = aten.mul.Tensor(y, x_0)",
        "k = sq.unpack_mask(m, [10, 32])\nz = aten.where.ScalarOther(k, y, 1.0)",
        "k = sq.unpack_mask(m, [10, 32])\nz = aten.where.ScalarOther(k, x_0, 0.0)",
        "a = aten.neg(y)\nb = aten.add.Tensor(y, x_0)\nz = aten.add.Tensor(a, b)",
    ],
    ids=["a scalar", "a product", "other than zero", "another tensor", "two readers"],
)
def test_fuse_tails_leaves_other_readers(tail):
    before = graph(f"{LINEAR} -> z", f"y = {PRODUCT})\n{tail}")
    assert same(fuse_tails(before), before)


def test_fuse_tails_leaves_masks_of_rows_that_fill_no_vectors():
    before = graph(
        "g_0: i8[10, 8], w: i8[8, 24], s: f32[1], m: u8[30] -> z",
        f"""
        k = sq.unpack_mask(m, [10, 24])
        y = {PRODUCT})
        z = aten.where.ScalarOther(k, y, 0.0)
        """,
    )
    assert same(fuse_tails(before), before)
