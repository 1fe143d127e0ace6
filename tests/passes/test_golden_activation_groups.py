"""ShiftQuant of activations through the passes: the program before and the program after."""

import pytest

from sqcompile.ops.philox import stream_id
from sqcompile.passes.assign_precision import Operand, ProductSpec, assign_precision
from sqcompile.passes.bound_accumulators import bound_accumulators
from sqcompile.passes.fuse_epilogues import fuse_epilogues
from sqcompile.passes.fuse_norms import fuse_norms
from sqcompile.passes.fuse_residuals import fuse_residuals
from sqcompile.passes.gather_sums import gather_sums
from sqcompile.passes.quantize_operands import quantize_operands
from sqcompile.passes.share_quantized import share_quantized
from sqcompile.recipe import Recipe
from tests.passes.programs import graph, same

WEIGHT = Operand("weight", 4, True)
GRADIENT = Operand("gradient", 8, True)
TOKENS = Operand("activation", 4, False, clip=0.5, groups=3, group_axis=1, tokens=2)
COLUMNS = Operand("activation", 4, False, clip=0.5, groups=3, group_axis=1)
CHANNELS = Operand("activation", 4, False, groups=3, group_axis=3)


def spec(role, operands):
    return {"sq": ProductSpec("fc", role, operands, 1, False, 0), "role": role}


def test_activations_of_products_with_a_weight_have_groups():
    module = graph(
        "x_0: f32[4, 8], p_a: f32[6, 8], p_b: f32[6, 4], x_1: f32[2, 4, 8], x_2: f32[2, 8, 3], "
        "p_c: f32[2, 8, 3] -> h, k, y, z",
        """
        h = sq.matmul(x_0, p_a, None, False, True)
        k = sq.matmul(p_b, x_0, None, False, False)
        y = sq.matmul(x_1, x_2, None, False, False)
        z = sq.matmul(x_1, p_c, None, False, False)
        """,
        **{name: {"seq_nr": place} for place, name in enumerate("hkyz")},
    )
    done = assign_precision(module, Recipe(activation_groups=3, rules=()))
    found = {
        node.name: [(one.groups, one.group_axis) for one in node.meta["sq"].operands]
        for node in done.graph.nodes
        if "sq" in node.meta
    }
    assert found == {
        "h": [(3, 1), (1, 0)],
        # a product shifts its first operand, and has one range for all of it
        "k": [(1, 0), (1, 0)],
        "y": [(1, 0), (1, 0)],
        "z": [(1, 0), (1, 0)],
    }


def test_forward_shifts_and_the_weight_gradient_scales():
    stream = stream_id("fc", "backward", "gradient", 0)
    before = graph(
        "x_0: f32[4, 8], p_w: f32[6, 8], g_0: f32[4, 6], rng: i64[4] -> y, dw",
        """
        y = sq.matmul(x_0, p_w, None, False, True)
        dw = sq.matmul(g_0, x_0, None, True, False)
        """,
        y=spec("fprop", (COLUMNS, WEIGHT)),
        dw=spec("wgrad", (GRADIENT, COLUMNS)),
    )
    after = graph(
        "x_0: f32[4, 8], p_w: f32[6, 8], g_0: f32[4, 6], rng: i64[4] -> y, dw",
        f"""
        rc = sq.absmax(x_0, None, [0])
        whole = sq.absmax(rc, None, [0, 1])
        e = sq.group_exponent(rc, 3)
        r = sq.clip_range(whole, 0.5)
        xq = sq.quantize(x_0, r, 4, False, e)
        sx = sq.quant_scale(r, 4, False, 3)
        rw = sq.absmax(p_w, None, [0, 1])
        wq = sq.quantize(p_w, rw, 4, True)
        sw = sq.quant_scale(rw, 4, True, 1)
        acc = sq.shift_matmul(xq, wq, e, 3, False, True, 0)
        scale = aten.mul.Tensor(sx, sw)
        y = sq.dequantize(acc, [scale], None)
        rg = sq.absmax(g_0, None, [0, 1])
        gq = sq.quantize_stochastic(g_0, rg, None, None, rng, 8, {stream})
        sg = sq.quant_scale(rg, 8, True, 1)
        se = sq.group_scale(r, e, 4, False)
        dacc = sq.shift_matmul(gq, xq, None, 1, True, False, 0)
        columns = aten.mul.Tensor(sg, se)
        dw = sq.dequantize(dacc, [columns], None)
        """,
    )
    assert same(share_quantized(quantize_operands(before)), after)


def test_exponents_of_tokens_go_into_the_integers():
    stream = stream_id("fc", "backward", "gradient", 0)
    shapes = "x_0: f32[4, 8], p_w: f32[6, 8], g_0: f32[4, 6], rng: i64[4] -> y, dw"
    before = graph(
        shapes,
        """
        y = sq.matmul(x_0, p_w, None, False, True)
        dw = sq.matmul(g_0, x_0, None, True, False)
        """,
        y=spec("fprop", (TOKENS, WEIGHT)),
        dw=spec("wgrad", (GRADIENT, TOKENS)),
    )
    after = graph(
        shapes,
        f"""
        blocks = aten.view(x_0, [2, 2, 8])
        each = sq.absmax(blocks, None, [1])
        whole = sq.absmax(each, None, [0, 1, 2])
        e = sq.group_exponent(each, 3)
        r = sq.clip_range(whole, 0.5)
        q = sq.quantize(blocks, r, 4, False, e, 3)
        xq = aten.view(q, [4, 8])
        sb = sq.quant_scale(r, 4, False, 3)
        sx = aten.view(sb, [1, 1])
        rw = sq.absmax(p_w, None, [0, 1])
        wq = sq.quantize(p_w, rw, 4, True)
        sw = sq.quant_scale(rw, 4, True, 1)
        acc = sq.shift_matmul(xq, wq, None, 1, False, True, 0)
        scale = aten.mul.Tensor(sx, sw)
        y = sq.dequantize(acc, [scale], None)
        rg = sq.absmax(g_0, None, [0, 1])
        gq = sq.quantize_stochastic(g_0, rg, None, None, rng, 8, {stream})
        sg = sq.quant_scale(rg, 8, True, 1)
        dacc = sq.shift_matmul(gq, xq, None, 1, True, False, 0)
        both = aten.mul.Tensor(sg, sx)
        dw = sq.dequantize(dacc, [both], None)
        """,
    )
    done = share_quantized(quantize_operands(before))
    assert same(done, after)
    found = [n for n in done.graph.nodes if n.meta.get("bits") == TOKENS.stored_bits]
    assert len(found) == 1 and found[0].meta["val"].shape == (4, 8)


@pytest.mark.parametrize(
    ("rows", "most", "tokens"), [(64, 16, 16), (20, 16, 10), (7, 16, 7), (23, 16, 1), (8, 0, 0)]
)
def test_tokens_divide_the_rows_of_a_linear_layer(rows, most, tokens):
    module = graph(
        f"x_0: f32[{rows}, 8], p_a: f32[6, 8], x_1: f32[2, 5, 5, 8], p_b: f32[6, 8, 3, 3] -> y, z",
        """
        y = sq.matmul(x_0, p_a, None, False, True)
        z = sq.conv(x_1, p_b, None, [1, 1], [1, 1], [1, 1], 1)
        """,
        y={"seq_nr": 0},
        z={"seq_nr": 1},
    )
    done = assign_precision(module, Recipe(activation_groups=3, activation_tokens=most, rules=()))
    found = {n.name: n.meta["sq"].operands[0].tokens for n in done.graph.nodes if "sq" in n.meta}
    assert found == {"y": tokens, "z": 0}


SCALES = {
    1: (6, "group_scale", "s = aten.view(se, [1, 6, 1, 1])"),
    6: (1, "depthwise", "s = aten.view(se, [6, 1, 1, 1])"),
    2: (
        3,
        "groups",
        """
        a = aten.view(se, [2, 1, 3])
        b = aten.expand(a, [2, 3, 3])
        s = aten.reshape(b, [6, 3, 1, 1])
        """,
    ),
}
"""By groups of the convolution: inputs of a group, name, the scale of inputs as the weight lies."""


@pytest.mark.parametrize("groups", SCALES, ids=[name for _, name, _ in SCALES.values()])
def test_the_weight_gradient_of_a_convolution_has_a_scale_per_input_channel(groups):
    width, _, layout = SCALES[groups]
    window = f"[1, 1], [1, 1], [1, 1], {groups}"
    stream = stream_id("fc", "backward", "gradient", 0)
    shapes = (
        f"x_0: f32[2, 5, 5, 6], p_w: f32[6, {width}, 3, 3], g_0: f32[2, 5, 5, 6], rng: i64[4] "
        "-> y, dw"
    )
    before = graph(
        shapes,
        f"""
        y = sq.conv(x_0, p_w, None, {window})
        dw = sq.conv_weight_grad(g_0, x_0, [6, {width}, 3, 3], {window})
        """,
        y=spec("fprop", (CHANNELS, WEIGHT)),
        dw=spec("wgrad", (GRADIENT, CHANNELS)),
    )
    after = graph(
        shapes,
        f"""
        rc = sq.absmax(x_0, None, [0, 1, 2])
        r = sq.absmax(rc, None, [0, 1, 2, 3])
        e = sq.group_exponent(rc, 3)
        xq = sq.quantize(x_0, r, 4, False, e)
        sx = sq.quant_scale(r, 4, False, 3)
        rw = sq.absmax(p_w, None, [0, 1, 2, 3])
        wq = sq.quantize(p_w, rw, 4, True)
        sw = sq.quant_scale(rw, 4, True, 1)
        acc = sq.conv_fprop(xq, wq, {window}, 0, e, 3)
        scale = aten.mul.Tensor(sx, sw)
        y = sq.dequantize(acc, [scale], None)
        rg = sq.absmax(g_0, None, [0, 1, 2, 3])
        gq = sq.quantize_stochastic(g_0, rg, None, None, rng, 8, {stream})
        sg = sq.quant_scale(rg, 8, True, 1)
        se = sq.group_scale(r, e, 4, False)
        {layout}
        dacc = sq.conv_wgrad(gq, xq, None, 1, [6, {width}, 3, 3], {window}, 0)
        inputs = aten.mul.Tensor(sg, s)
        dw = sq.dequantize(dacc, [inputs], None)
        """,
    )
    assert same(share_quantized(quantize_operands(before)), after)


BATCH = "acc: i32[2, 5, 5, 6], s: f32[6], x_0: f32[2, 5, 5, 6]"
NORM = "acc, s, None, None, None, 1e-05, 16, 8, 0.0308"
RANGES = """
    rc = sq.absmax(z, None, [0, 1, 2])
    whole = sq.absmax(rc, None, [0, 1, 2, 3])
    e = sq.group_exponent(rc, 3)
    r = sq.clip_range(whole, 0.5)
    q = sq.quantize(z, r, 4, False, e)
"""


def test_fuse_norms_takes_ranges_and_groups_of_channels():
    before = graph(
        f"{BATCH} -> q, e, r",
        f"""
        n = sq.l1_batch_norm({NORM})
        y = n[0]
        z = aten.relu(y)
        {RANGES}
        """,
    )
    after = graph(
        f"{BATCH} -> q, e, r",
        f"""
        n = sq.l1_batch_norm_relu_quantize({NORM}, True, 4, False, None, 0.5, 3)
        q = n[0]
        e = n[7]
        r = n[1]
        """,
    )
    assert same(fuse_norms(before), after)


@pytest.mark.parametrize(
    ("exponent", "other"),
    [("None", "o = sq.group_exponent(rc, 3)"), ("e", "o = aten.neg(rc)")],
    ids=["integers of one group", "the absmax of channels is read otherwise"],
)
def test_fuse_norms_leaves_a_norm_whose_ranges_are_read_otherwise(exponent, other):
    before = graph(
        f"{BATCH} -> q, o, e",
        f"""
        n = sq.l1_batch_norm({NORM})
        y = n[0]
        rc = sq.absmax(y, None, [0, 1, 2])
        r = sq.absmax(rc, None, [0, 1, 2, 3])
        e = sq.group_exponent(rc, 3)
        q = sq.quantize(y, r, 4, True, {exponent})
        {other}
        """,
    )
    assert same(fuse_norms(before), before)


@pytest.mark.parametrize("also", ["", "w = sq.absmax(z, None, [0, 1, 2, 3])"])
def test_fuse_residuals_gives_range_and_groups(also):
    outputs = "z, q, e, w" if also else "z, q, e"
    before = graph(
        f"{BATCH} -> {outputs}",
        f"""
        n = sq.l1_batch_norm({NORM})
        y = n[0]
        a = aten.add.Tensor(y, x_0)
        z = aten.relu(a)
        {RANGES}
        {also}
        """,
    )
    after = graph(
        f"{BATCH} -> {outputs}",
        f"""
        n = sq.l1_batch_norm_add_relu({NORM}, x_0, True, None, 3)
        z = n[0]
        w = n[1]
        e = n[7]
        r = sq.clip_range(w, 0.5)
        q = sq.quantize(z, r, 4, False, e)
        """,
    )
    assert same(fuse_residuals(before), after)


def test_fuse_residuals_leaves_groups_of_two_kinds_to_an_absmax():
    rest = """
        rc = sq.absmax(z, None, [0, 1, 2])
        e = sq.group_exponent(rc, 3)
        f = sq.group_exponent(rc, 2)
    """
    program = "n = sq.{}\ny = n[0]\n{}" + rest
    before = graph(
        f"{BATCH} -> z, e, f", program.format(f"l1_batch_norm({NORM})", "z = aten.relu(y)")
    )
    after = graph(
        f"{BATCH} -> z, e, f",
        f"n = sq.l1_batch_norm_add_relu({NORM}, None, True)\nz = n[0]{rest}",
    )
    assert same(fuse_residuals(before), after)


CONV = "q, w, [1, 1], [1, 1], [1, 1], 1, 0"
INTEGERS = "q: u8[2, 5, 5, 6], w: i8[6, 6, 3, 3], e: i8[1, 1, 1, 6], s: f32[6]"
FPROP = spec("fprop", (CHANNELS, WEIGHT))


def test_sums_and_epilogues_keep_the_shifts():
    before = graph(
        f"{INTEGERS} -> y, d",
        f"""
        acc = sq.conv_fprop({CONV}, e, 3)
        n = sq.l1_batch_norm({NORM})
        y = n[0]
        own = sq.conv_fprop({CONV}, e, 3)
        d = sq.dequantize(own, [s], None)
        """,
        acc=FPROP,
        own=FPROP,
    )
    after = graph(
        f"{INTEGERS} -> y, d",
        f"""
        both = sq.conv_fprop_sums({CONV}, e, 3)
        acc = both[0]
        sums = both[1]
        n = sq.l1_batch_norm({NORM}, sums)
        y = n[0]
        d = sq.conv_fprop_dequantize({CONV}, [s], None, False, e, 3)
        """,
    )
    assert same(fuse_epilogues(gather_sums(before)), after)


def test_the_bound_counts_the_shift_where_there_is_one():
    module = graph(
        f"{INTEGERS}, g: i8[2, 5, 5, 6] -> y, dw",
        f"""
        y = sq.conv_fprop({CONV}, e, 3)
        dw = sq.conv_wgrad(g, q, None, 1, [6, 6, 3, 3], [1, 1], [1, 1], [1, 1], 1, 0)
        """,
        y=FPROP,
        dw=spec("wgrad", (GRADIENT, CHANNELS)),
    )
    bounds = {
        n.name: n.meta["bound"] for n in bound_accumulators(module).graph.nodes if "sq" in n.meta
    }
    # 15 << 2 by a weight that a target may bias to 255; 15 by such a gradient
    assert bounds == {"y": 6 * 9 * 60 * 255, "dw": 2 * 25 * 15 * 255}


def test_the_bound_counts_shifts_that_integers_carry_in_both_products():
    module = graph(
        "q: u8[20, 8], w: i8[6, 8], g: i8[20, 6] -> y, dw",
        """
        y = sq.shift_matmul(q, w, None, 1, False, True, 0)
        dw = sq.shift_matmul(g, q, None, 1, True, False, 0)
        """,
        y=spec("fprop", (TOKENS, WEIGHT)),
        dw=spec("wgrad", (GRADIENT, TOKENS)),
    )
    bounds = {
        n.name: n.meta["bound"] for n in bound_accumulators(module).graph.nodes if "sq" in n.meta
    }
    # six bits, by a weight or gradient that a target may bias to 255
    assert bounds == {"y": 8 * 63 * 255, "dw": 20 * 63 * 255}
