"""Golden tests of place_results: products write what is read next."""

import pytest

from sqcompile.passes.place_results import place_results
from tests.passes.programs import graph, same

HEADS = "a: i8[6, 5, 9], b: i8[6, 9, 16], s: f32[6, 1, 1], t: f32[16], r: f32[6, 5, 16]"
BMM = "sq.shift_matmul_dequantize(a, b, None, 1, False, False, 0, [t, s]"
TURNED = "a: i8[6, 9, 16], b: i8[6, 9, 5], s: f32[6, 1, 1], r: f32[6, 16, 5]"
BMM_T = "sq.shift_matmul_dequantize(a, b, None, 1, True, False, 0, [s]"


def test_place_results_brings_heads_together():
    before = graph(
        f"{HEADS} -> z",
        f"""
        y = {BMM}, None, False, r)
        v = aten.view(y, [2, 3, 5, 16])
        p = aten.transpose.int(v, 1, 2)
        c = aten.clone(p)
        z = aten.reshape(c, [10, 48])
        """,
    )
    after = graph(
        f"{HEADS} -> z",
        f"""
        y = {BMM}, None, False, r, None, [2, 3, 5, 16], [0, 2, 1, 3])
        z = aten.view(y, [10, 48])
        """,
    )
    assert same(place_results(before), after)


def test_place_results_takes_heads_apart():
    inputs = "a: i8[10, 9], b: i8[9, 48], s: f32[1]"
    product = "sq.shift_matmul_dequantize(a, b, None, 1, False, False, 0, [s], None, False"
    before = graph(
        f"{inputs} -> z",
        f"""
        y = {product})
        v = aten.view(y, [2, 5, 3, 16])
        p = aten.permute(v, [0, 2, 1, 3])
        z = aten.reshape(p, [6, 5, 16])
        """,
    )
    after = graph(
        f"{inputs} -> z",
        f"""
        y = {product}, None, None, [2, 5, 3, 16], [0, 2, 1, 3])
        z = aten.view(y, [6, 5, 16])
        """,
    )
    assert same(place_results(before), after)


def test_place_results_writes_columns_side_by_side():
    before = graph(
        f"{TURNED} -> z",
        f"""
        y = {BMM_T}, None, False)
        p = aten.permute(y, [0, 2, 1])
        v = aten.view(p, [2, 3, 5, 16])
        z = aten.transpose.int(v, 1, 2)
        """,
    )
    after = graph(
        f"{TURNED} -> z",
        f"""
        y = {BMM_T}, None, False, None, None, [2, 3, 16, 5], [0, 3, 1, 2])
        z = aten.view(y, [2, 5, 3, 16])
        """,
    )
    assert same(place_results(before), after)


def test_place_results_places_what_a_product_measured():
    product = BMM.replace("dequantize", "dequantize_absmax")
    before = graph(
        f"{HEADS} -> z",
        f"""
        both = {product}, t, True)
        y = both[0]
        m = both[1]
        v = aten.view(y, [2, 3, 5, 16])
        p = aten.transpose.int(v, 1, 2)
        n = aten.view(m, [1, 1, 1, 1])
        z = sq.quantize(p, n, 6, True)
        """,
    )
    after = graph(
        f"{HEADS} -> z",
        f"""
        both = {product}, t, True, [2, 3, 5, 16], [0, 2, 1, 3])
        y = both[0]
        m = both[1]
        n = aten.view(m, [1, 1, 1, 1])
        p = aten.view(y, [2, 5, 3, 16])
        z = sq.quantize(p, n, 6, True)
        """,
    )
    assert same(place_results(before), after)


def test_place_results_takes_out_permutations_that_undo_each_other():
    before = graph(
        f"{HEADS} -> z",
        f"""
        y = {BMM}, None, False)
        p = aten.permute(y, [0, 2, 1])
        v = aten.reshape(p, [2, 3, 16, 5])
        z = aten.transpose.int(v, -2, -1)
        """,
    )
    after = graph(f"{HEADS} -> z", f"y = {BMM}, None, False)\nz = aten.view(y, [2, 3, 5, 16])")
    assert same(place_results(before), after)


@pytest.mark.parametrize(
    ("inputs", "program"),
    [
        (HEADS, f"y = {BMM}, None, False)\nv = aten.view(y, [2, 3, 5, 16])\nz = aten.neg(v)"),
        (
            HEADS,
            f"y = {BMM}, None, False)\nv = aten.view(y, [6, 5, 2, 8])\n"
            "z = aten.permute(v, [0, 2, 1, 3])",
        ),
        (HEADS, f"y = {BMM}, None, False)\nz = aten.permute(y, [2, 1, 0])"),
        (TURNED, f"y = {BMM_T}, None, False, r)\nz = aten.permute(y, [0, 2, 1])"),
        (
            HEADS,
            f"y = {BMM}, None, False)\np = aten.permute(y, [1, 0, 2])\nn = aten.neg(y)\n"
            "v = aten.view(n, [5, 6, 16])\nz = aten.add.Tensor(p, v)",
        ),
        (
            HEADS,
            f"y = {BMM}, None, False)\nv = aten.view(y, [5, 6, 16])\n"
            "z = aten.permute(v, [1, 0, 2])",
        ),
    ],
    ids=["views", "short runs", "batches innermost", "a residual", "two readers", "other axes"],
)
def test_place_results_leaves(inputs, program):
    before = graph(f"{inputs} -> z", program)
    assert same(place_results(before), before)
