"""Golden tests of quantize_softmax and of what the passes behind it make of its operands."""

from sqcompile.ops.philox import stream_id
from sqcompile.passes.assign_precision import Operand, ProductSpec
from sqcompile.passes.fold_weight_scales import fold_weight_scales
from sqcompile.passes.quantize_operands import quantize_operands
from sqcompile.passes.quantize_softmax import quantize_softmax
from sqcompile.recipe import Recipe
from tests.passes.programs import graph, same

PROBABILITY = Operand("activation", 6, False, (0,))
VALUE = Operand("activation", 6, True, (0,))
GRADIENT = Operand("gradient", 6, True)


def spec(role, *operands, groups=1):
    return {"sq": ProductSpec("a", role, operands, groups, False, 0)}


ATTENTION = "x_0: f32[2, 2, 5, 5], x_1: f32[4, 5, 3], g_0: f32[4, 5, 3], rng: i64[4] -> y, dv, dx"


def test_softmax_gives_its_product_and_its_gradient_integers():
    before = graph(
        ATTENTION,
        """
        p = sq.softmax(x_0)
        a = aten.view(p, [4, 5, 5])
        y = sq.matmul(a, x_1, None, False, False)
        dv = sq.matmul(g_0, a, None, True, False)
        da = sq.matmul(g_0, x_1, None, False, True)
        dp = aten.view(da, [2, 2, 5, 5])
        dx = sq.softmax_backward(dp, p)
        """,
        y=spec("fprop", PROBABILITY, VALUE),
        dv=spec("dgrad", GRADIENT, PROBABILITY),
        da=spec("dgrad", GRADIENT, VALUE),
    )
    after = graph(
        ATTENTION,
        """
        x = aten.view(x_0, [4, 5, 5])
        both = sq.softmax_quantize(x, 6, False)
        q = both[0]
        s = both[1]
        a = aten.mul.Tensor(q, s)
        y = sq.matmul(a, x_1, None, False, False)
        b = aten.mul.Tensor(q, s)
        dv = sq.matmul(g_0, b, None, True, False)
        da = sq.matmul(g_0, x_1, None, False, True)
        dp = aten.view(da, [2, 2, 5, 5])
        g = aten.view(dp, [4, 5, 5])
        d = sq.softmax_quantized_backward(g, q, s)
        dx = aten.view(d, [2, 2, 5, 5])
        """,
    )
    done = quantize_softmax(before, Recipe())
    assert same(done, after)
    specs = {n.name: n.meta["sq"] for n in done.graph.nodes if "sq" in n.meta}
    assert specs["y"].operands[0].axes == specs["dv"].operands[1].axes == (0, 1)


def test_the_scale_of_rows_is_outer_in_forward_and_folded_in_backward():
    rows = Operand("activation", 6, False, (0, 1))
    signature = "x_0: f32[4, 5, 5], x_1: f32[4, 5, 3], g_0: f32[4, 5, 3], rng: i64[4]"
    both = """
        both = sq.softmax_quantize(x_0, 6, False)
        q = both[0]
        s = both[1]
    """
    before = graph(
        f"{signature} -> y, dv",
        both
        + """
        a = aten.mul.Tensor(q, s)
        y = sq.matmul(a, x_1, None, False, False)
        b = aten.mul.Tensor(q, s)
        dv = sq.matmul(g_0, b, None, True, False)
        """,
        q={"bits": 6, "signed": False},
        y=spec("fprop", rows, Operand("activation", 6, True)),
        dv=spec("dgrad", GRADIENT, rows),
    )
    after = graph(
        f"{signature} -> y, dv",
        both
        + """
        r = sq.absmax(x_1, None, [0, 1, 2])
        v = sq.quantize(x_1, r, 6, True)
        t = sq.quant_scale(r, 6, True, 1)
        acc = sq.shift_matmul(q, v, None, 1, False, False, 0)
        scale = aten.mul.Tensor(t, s)
        y = sq.dequantize(acc, [scale], None)
        row = aten.view(s, [4, 5, 1])
        h = aten.mul.Tensor(g_0, row)
        u = sq.absmax(h, None, [0, 1, 2])
        hq = sq.quantize_stochastic(h, u, None, None, rng, 6, STREAM)
        w = sq.quant_scale(u, 6, True, 1)
        bcc = sq.shift_matmul(hq, q, None, 1, True, False, 0)
        dv = sq.dequantize(bcc, [w], None)
        """.replace("STREAM", str(stream_id("a", "dgrad", "gradient", 0))),
    )
    assert same(quantize_operands(fold_weight_scales(before)), after)


def test_dropout_masks_the_integers_and_scales_their_rows():
    shapes = "x_0: f32[2, 5, 7], x_1: f32[2, 7, 3], m: u8[9], g_0: f32[2, 5, 3], g_1: f32[2, 5, 7]"
    before = graph(
        f"{shapes} -> y, dv, dx",
        """
        p = sq.softmax(x_0)
        k = sq.unpack_mask(m, [2, 5, 7])
        a = aten.mul.Tensor(p, 1.25)
        d = aten.where.ScalarOther(k, a, 0.0)
        y = sq.matmul(d, x_1, None, False, False)
        dv = sq.matmul(g_0, d, None, True, False)
        dx = sq.softmax_backward(g_1, p)
        """,
        y=spec("fprop", PROBABILITY, VALUE),
        dv=spec("dgrad", GRADIENT, PROBABILITY),
    )
    after = graph(
        f"{shapes} -> y, dv, dx",
        """
        both = sq.softmax_quantize(x_0, 6, False)
        q = both[0]
        s = both[1]
        t = aten.mul.Tensor(s, 1.25)
        k = sq.unpack_mask(m, [2, 5, 7])
        d = aten.where.ScalarOther(k, q, 0)
        a = aten.mul.Tensor(d, t)
        y = sq.matmul(a, x_1, None, False, False)
        u = aten.mul.Tensor(s, 1.25)
        l = sq.unpack_mask(m, [2, 5, 7])
        e = aten.where.ScalarOther(l, q, 0)
        b = aten.mul.Tensor(e, u)
        dv = sq.matmul(g_0, b, None, True, False)
        dx = sq.softmax_quantized_backward(g_1, q, s)
        """,
    )
    done = quantize_softmax(before, Recipe())
    assert same(done, after)
    late = [n for n in done.graph.nodes if n.meta.get("backward")]
    assert len(late) == 4, "backward masks again: one more tensor would be saved else"


def test_a_softmax_that_no_product_reads_is_saved_by_row():
    signature = "x_0: f32[4, 8], g_0: f32[4, 8] -> p, dx"
    before = graph(signature, "p = sq.softmax(x_0)\ndx = sq.softmax_backward(g_0, p)")
    after = graph(
        signature,
        """
        both = sq.softmax_quantize(x_0, 8, False)
        q = both[0]
        s = both[1]
        p = sq.softmax(x_0)
        dx = sq.softmax_quantized_backward(g_0, q, s)
        """,
    )
    assert same(quantize_softmax(before, Recipe()), after)


def test_what_backward_reads_in_float_anyway_stays():
    signature = "x_0: f32[4, 8], x_1: f32[4, 8], g_0: f32[4, 8] -> y, d, dx"
    program = """
        p = sq.softmax(x_0)
        y = aten.mul.Tensor(p, x_1)
        d = aten.mul.Tensor(g_0, p)
        dp = aten.mul.Tensor(g_0, x_1)
        dx = sq.softmax_backward(dp, p)
    """
    assert same(quantize_softmax(graph(signature, program), Recipe()), graph(signature, program))


def test_a_product_over_queries_keeps_its_own_quantiser():
    """The scale of a row would lie on the reduced axis of the forward product."""
    signature = "x_0: f32[4, 8], x_1: f32[4, 3] -> y"
    program = "p = sq.softmax(x_0)\ny = sq.matmul(p, x_1, None, True, False)"
    operands = spec("fprop", Operand("activation", 6, False), Operand("activation", 6, True))
    before, after = (graph(signature, program, y=operands) for _ in range(2))
    assert same(quantize_softmax(before, Recipe()), after)
