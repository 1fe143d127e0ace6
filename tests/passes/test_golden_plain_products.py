"""plain_products: every epilogue as ops behind the product, which keeps its name and meta."""

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
