"""Sums of a convolution for the norm behind it: the program before and the program after."""

import pytest

from sqcompile.ops import conv
from sqcompile.passes.assign_precision import Operand, ProductSpec
from sqcompile.passes.editing import calls
from sqcompile.passes.gather_sums import gather_sums
from tests.passes.programs import graph, same

OPERANDS = (Operand("activation", 4, False), Operand("weight", 4, True, (0,)))
FPROP = {"sq": ProductSpec("conv", "fprop", OPERANDS, 1, True, 0), "role": "fprop"}
INPUTS = "q: u8[2, 5, 5, 4], w: i8[6, 4, 3, 3], s: f32[6], b: f32[6]"
CONV = "q, w, [1, 1], [1, 1], [1, 1], 1, 0"
NORMS = {
    "plain": ("l1_batch_norm", "1e-05, 16, 4, 0.3352"),
    "fused": ("l1_batch_norm_relu_quantize", "1e-05, 16, 4, 0.3352, True, 4, False"),
}


@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_takes_the_sums_of_its_convolution(kind):
    op, rest = NORMS[kind]
    before = graph(
        f"{INPUTS} -> y",
        f"""
        acc = sq.conv_fprop({CONV})
        n = sq.{op}(acc, s, b, None, None, {rest})
        y = n[0]
        """,
        acc=FPROP,
    )
    after = graph(
        f"{INPUTS} -> y",
        f"""
        both = sq.conv_fprop_sums({CONV})
        acc = both[0]
        sums = both[1]
        n = sq.{op}(acc, s, b, None, None, {rest}, sums)
        y = n[0]
        """,
    )
    done = gather_sums(before)
    assert same(done, after)
    meta = {node.name: node.meta for node in done.graph.nodes}
    assert meta["conv_fprop_sums"]["sq"] is FPROP["sq"]
    assert meta["acc"]["role"] == meta["acc_sums"]["role"] == "fprop"


def test_two_norms_and_other_readers_share_one_convolution():
    before = graph(
        f"{INPUTS} -> y, z, d",
        f"""
        acc = sq.conv_fprop({CONV})
        n = sq.l1_batch_norm(acc, s, b, None, None, {NORMS["plain"][1]})
        m = sq.l1_batch_norm(acc, b, None, s, s, {NORMS["plain"][1]})
        y = n[0]
        z = m[0]
        d = sq.dequantize(acc, [s], None)
        """,
        acc=FPROP,
    )
    after = graph(
        f"{INPUTS} -> y, z, d",
        f"""
        both = sq.conv_fprop_sums({CONV})
        acc = both[0]
        sums = both[1]
        n = sq.l1_batch_norm(acc, s, b, None, None, {NORMS["plain"][1]}, sums)
        m = sq.l1_batch_norm(acc, b, None, s, s, {NORMS["plain"][1]}, sums)
        y = n[0]
        z = m[0]
        d = sq.dequantize(acc, [s], None)
        """,
    )
    assert same(gather_sums(before), after)


@pytest.mark.parametrize(
    "norm",
    [
        "sq.l1_batch_norm(x, s, b, None, None, 1e-05, 16, 4, 0.3352)",
        "sq.max_pool2d(y, [2, 2], [2, 2], [0, 0], [1, 1], False)",
    ],
)
def test_a_convolution_that_no_norm_reads_stays(norm):
    before = graph(
        f"{INPUTS}, x: i8[2, 5, 5, 6] -> y, z",
        f"""
        acc = sq.conv_fprop({CONV})
        y = sq.dequantize(acc, [s], b)
        n = {norm}
        z = n[0]
        """,
        acc=FPROP,
    )
    assert same(gather_sums(before), before)


@pytest.mark.parametrize(("channels", "sums"), [(455, True), (456, False)])
def test_a_long_reduction_leaves_the_sum_to_the_norm(channels, sums):
    module = graph(
        f"q: u8[2, 5, 5, {channels}], w: i8[6, {channels}, 3, 3], s: f32[6] -> y",
        f"""
        acc = sq.conv_fprop({CONV})
        n = sq.l1_batch_norm(acc, s, None, None, None, {NORMS["plain"][1]})
        y = n[0]
        """,
        acc=FPROP,
    )
    assert bool(calls(gather_sums(module), conv.conv_fprop_sums)) == sums
