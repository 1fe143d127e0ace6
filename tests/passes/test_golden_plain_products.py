"""plain_products: every epilogue as ops behind the product, which keeps its name and meta."""

import pytest
import torch

from sqcompile.passes.assign_precision import Operand, ProductSpec
from sqcompile.passes.plain_products import plain_products
from tests.passes.programs import graph, same

SUM = torch.ops.aten.sum.dim_IntList
PRODUCT = "q, w, None, 1, False, True, 0"
SHIFT_MATMUL = torch.ops.sq.shift_matmul.default
SPEC = ProductSpec(
    "fc", "fprop", (Operand("activation", 4, False), Operand("weight", 4, True, (0,))), 1, False, 0
)


def test_every_part_of_a_matrix_products_epilogue_is_an_op():
    before = graph(
        "q: u8[4, 8], w: i8[6, 8], s: f32[1, 6], b: f32[1, 6], r: f32[4, 6], m: u8[3] -> y",
        f"y = sq.shift_matmul_dequantize({PRODUCT}, [s], b, True, r, m, [4, 3, 2], [1, 0, 2])",
        y={"sq": SPEC},
    )
    after = graph(
        "q: u8[4, 8], w: i8[6, 8], s: f32[1, 6], b: f32[1, 6], r: f32[4, 6], m: u8[3] -> y",
        f"""
        acc = sq.shift_matmul({PRODUCT})
        scaled = sq.dequantize(acc, [s], b)
        positive = aten.relu(scaled)
        added = aten.add.Tensor(positive, r)
        kept = sq.unpack_mask(m, [4, 6])
        masked = aten.where.ScalarOther(kept, added, 0.0)
        split = aten.reshape(masked, [4, 3, 2])
        y = aten.permute(split, [1, 0, 2])
        """,
        acc={"sq": SPEC},
    )
    found = plain_products(before)
    assert same(found, after)
    (product,) = found.graph.find_nodes(op="call_function", target=SHIFT_MATMUL)
    assert product.name == "y" and product.meta["sq"] is SPEC


def test_absmax_is_of_the_result_before_it_is_placed():
    inputs = "q: i8[4, 8], w: i8[6, 8], s: f32[1, 6] -> y, r"
    before = graph(
        inputs,
        f"""
        both = sq.shift_matmul_dequantize_absmax({PRODUCT}, [s], None, False, [4, 3, 2], [1, 0, 2])
        y = both[0]
        r = both[1]
        """,
    )
    after = graph(
        inputs,
        f"""
        acc = sq.shift_matmul({PRODUCT})
        flat = sq.dequantize(acc, [s], None)
        split = aten.reshape(flat, [4, 3, 2])
        y = aten.permute(split, [1, 0, 2])
        r = sq.absmax(flat, None, [0, 1])
        """,
    )
    assert same(plain_products(before), after)


SCALED = "q: i8[4, 8], w: i8[6, 8], v: f32[6, 8], a: f32[1, 1] -> m, z"
RELU = f"""
    step = sq.quant_scale(a, 8, True, 1)
    rows = sq.quantize_rows(v, 8, True)
    flat = rows[1]
    row = aten.view(flat, [1, 6])
    number = aten.mul.Tensor(step, NUMBER)
    s = aten.mul.Tensor(number, row)
    y = sq.shift_matmul_dequantize({PRODUCT}, [s], BIAS, True)
    m = aten.gt.Scalar(y, 0)
    z = READER
"""
"""A ReLU behind a product whose scale is that of a weight and of an activation, times a number."""


def relu_of(number="2.0", bias="None", reader="sq.absmax(y, None, [0])", inputs=SCALED):
    program = RELU.replace("NUMBER", number).replace("BIAS", bias).replace("READER", reader)
    return plain_products(graph(inputs, program))


def dequantized(found):
    (node,) = found.graph.find_nodes(op="call_function", target=torch.ops.sq.dequantize.default)
    return node


def test_a_relu_behind_positive_scales_is_one_of_integers():
    found = relu_of()
    acc = dequantized(found).args[0]
    assert acc.target is torch.ops.aten.relu.default and acc.args[0].target is SHIFT_MATMUL
    assert acc.name == "y_relu" and acc.args[0].name == "y"
    assert acc.meta["val"].dtype == torch.int32


@pytest.mark.parametrize(
    "other",
    [
        {"number": "-2.0"},
        {"number": "0.0"},
        {"bias": "b", "inputs": SCALED.replace(" ->", ", b: f32[1, 6] ->")},
        {"reader": "aten.clone(y)"},
        {
            "reader": "sq.absmax(a, y, [0])",
            "inputs": SCALED.replace("a: f32[1, 1]", "a: f32[4, 6]"),
        },
    ],
    ids=["a negative factor", "zero", "a bias", "a reader that shows -0", "as another operand"],
)
def test_a_relu_that_could_show_is_one_of_floats(other):
    found = relu_of(**other)
    assert dequantized(found).args[0].target is SHIFT_MATMUL


def test_both_relus_are_equal_in_what_reads_them():
    """Products of scales may underflow: the mask and the absmax are the same."""
    torch.manual_seed(0)
    q, w = (torch.randint(-127, 128, size, dtype=torch.int8) for size in ((4, 8), (6, 8)))
    program = RELU.replace("NUMBER", "2.0").replace("BIAS", "None")
    before = graph(SCALED, program.replace("READER", "sq.absmax(y, None, [0])"))
    for large in (1.0, 2.0**-99, 2.0**60, 0.0):
        v, a = torch.randn(6, 8) * large, torch.full((1, 1), large)
        ours, theirs = plain_products(before)(q, w, v, a), before(q, w, v, a)
        assert all(map(torch.equal, ours, theirs))


def test_a_convolutions_sums_are_sums():
    inputs = "q: u8[2, 5, 5, 4], w: i8[6, 4, 3, 3] -> acc, sums"
    before = graph(
        inputs,
        """
        both = sq.conv_fprop_sums(q, w, [1, 1], [1, 1], [1, 1], 1, 0)
        acc = both[0]
        sums = both[1]
        """,
        both={"sq": SPEC},
    )
    after = graph(
        inputs,
        """
        acc = sq.conv_fprop(q, w, [1, 1], [1, 1], [1, 1], 1, 0)
        sums = aten.sum.dim_IntList(acc, [0, 1, 2])
        """,
        acc={"sq": SPEC},
    )
    found = plain_products(before)
    assert same(found, after)
    (sums,) = found.graph.find_nodes(op="call_function", target=SUM)
    assert sums.name == "both_sums" and sums.meta["range"] == (-3780, 3780)  # 4 * 9 * 15 * 7


def test_gradients_keep_their_shapes_and_shifts():
    inputs = "g: i8[2, 3, 3, 6], w: i8[6, 4, 3, 3], e: i8[1, 1, 1, 6], s: f32[1, 1, 1, 1] -> dx"
    window = "[2, 5, 5, 4], [1, 1], [0, 0], [1, 1], 1, 0"
    before = graph(inputs, f"dx = sq.conv_dgrad_dequantize(g, w, e, 4, {window}, [s], None, False)")
    after = graph(
        inputs,
        f"""
        acc = sq.conv_dgrad(g, w, e, 4, {window})
        dx = sq.dequantize(acc, [s], None)
        """,
    )
    assert same(plain_products(before), after)
