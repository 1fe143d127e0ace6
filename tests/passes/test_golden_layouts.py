"""Layouts around products, and paddings that are added, as programs before and after."""

from sqcompile.passes.assign_precision import Operand, ProductSpec
from sqcompile.passes.canonicalize import canonicalize
from sqcompile.passes.collapse_layouts import collapse_layouts
from sqcompile.passes.fuse_epilogues import fuse_epilogues
from sqcompile.passes.join_paddings import join_paddings
from tests.passes.programs import graph, same

OPERANDS = (Operand("activation", 4, True, (0,)), Operand("activation", 4, True, (0,)))
SCORES = {"sq": ProductSpec("attention", "fprop", OPERANDS, 1, True, 0)}


def test_scaled_and_transposed_operands_are_read_as_they_lie():
    before = graph(
        "q: f32[2, 9, 3, 16], k: f32[2, 9, 3, 16], g: f32[6, 9, 9] -> y, dq",
        """
        qt = aten.transpose.int(q, 1, 2)
        qc = aten.mul.Tensor(qt, 0.5)
        qv = aten.reshape(qc, [6, 9, 16])
        kt = aten.transpose.int(k, 1, 2)
        ks = aten.transpose.int(kt, -2, -1)
        kc = aten.mul.Tensor(ks, 0.5)
        kv = aten.reshape(kc, [6, 16, 9])
        s = sq.matmul(qv, kv, None, False, False)
        y = aten.view(s, [2, 3, 9, 9])
        d = sq.matmul(g, kv, None, False, True)
        dv = aten.view(d, [2, 3, 9, 16])
        dq = aten.mul.Tensor(dv, 0.5)
        """,
    )
    after = graph(
        "q: f32[2, 9, 3, 16], k: f32[2, 9, 3, 16], g: f32[6, 9, 9] -> y, dq",
        """
        qt = aten.permute(q, [0, 2, 1, 3])
        qv = aten.reshape(qt, [6, 9, 16])
        kt = aten.permute(k, [0, 2, 1, 3])
        kv = aten.reshape(kt, [6, 9, 16])
        s = sq.matmul(qv, kv, None, False, True)
        c = aten.mul.Tensor(s, 0.25)
        y = aten.reshape(c, [2, 3, 9, 9])
        d = sq.matmul(g, kv, None, False, False)
        e = aten.mul.Tensor(d, 0.25)
        dq = aten.reshape(e, [2, 3, 9, 16])
        """,
    )
    assert same(collapse_layouts(before), after)


def test_permutes_that_come_back_are_gone():
    before = graph(
        "a: f32[6, 9, 16], b: f32[6, 9, 8] -> y",
        """
        d = sq.matmul(a, b, None, True, False)
        t = aten.permute(d, [0, 2, 1])
        v = aten.view(t, [2, 3, 8, 16])
        m = aten.mul.Tensor(v, 0.5)
        y = aten.transpose.int(m, -2, -1)
        """,
    )
    after = graph(
        "a: f32[6, 9, 16], b: f32[6, 9, 8] -> y",
        """
        d = sq.matmul(a, b, None, True, False)
        m = aten.mul.Tensor(d, 0.5)
        y = aten.reshape(m, [2, 3, 16, 8])
        """,
    )
    assert same(collapse_layouts(before), after)


def test_a_number_stays_where_a_bias_or_another_reader_is():
    before = graph(
        "x: f32[4, 8], w: f32[6, 8], b: f32[6], z: f32[4, 8] -> y, u, v",
        """
        m = aten.mul.Tensor(x, 0.5)
        y = sq.matmul(m, w, b, False, True)
        n = aten.mul.Tensor(z, 0.5)
        u = sq.matmul(n, w, None, False, True)
        v = aten.relu(n)
        """,
    )
    assert same(collapse_layouts(before), before)


def test_a_permute_of_a_concatenation_is_one_of_its_parts():
    before = graph(
        "q: f32[2, 3, 9, 16], k: f32[2, 3, 9, 16] -> y",
        """
        q1 = aten.unsqueeze(q, 0)
        k1 = aten.unsqueeze(k, 0)
        c = aten.cat([q1, k1], 0)
        p = aten.permute(c, [1, 3, 0, 2, 4])
        y = aten.reshape(p, [18, 96])
        """,
    )
    after = graph(
        "q: f32[2, 3, 9, 16], k: f32[2, 3, 9, 16] -> y",
        """
        q1 = aten.permute(q, [0, 2, 1, 3])
        q2 = aten.reshape(q1, [2, 9, 1, 3, 16])
        k1 = aten.permute(k, [0, 2, 1, 3])
        k2 = aten.reshape(k1, [2, 9, 1, 3, 16])
        c = aten.cat([q2, k2], 2)
        y = aten.reshape(c, [18, 96])
        """,
    )
    assert same(collapse_layouts(before), after)


def test_a_lone_permute_stays_as_the_model_has_it():
    before = graph(
        "x: f32[2, 3, 4, 5] -> y",
        """
        p = aten.permute(x, [0, 2, 3, 1])
        c = aten.clone(p)
        y = aten.reshape(c, [40, 3])
        """,
    )
    assert same(collapse_layouts(before), before)


def test_a_number_behind_a_product_multiplies_its_smallest_scale():
    before = graph(
        "a: i8[2, 4, 8], b: i8[2, 6, 8], s: f32[2, 4, 1], r: f32[1, 1, 1] -> z",
        """
        acc = sq.shift_matmul(a, b, None, 1, False, True, 0)
        d = sq.dequantize(acc, [s, r], None)
        y = aten.mul.Tensor(d, 0.25)
        z = aten.view(y, [8, 6])
        """,
        acc=SCORES,
    )
    after = graph(
        "a: i8[2, 4, 8], b: i8[2, 6, 8], s: f32[2, 4, 1], r: f32[1, 1, 1] -> z",
        """
        c = aten.mul.Tensor(r, 0.25)
        y = sq.shift_matmul_dequantize(a, b, None, 1, False, True, 0, [s, c], None, False)
        z = aten.view(y, [8, 6])
        """,
    )
    assert same(fuse_epilogues(before), after)


def test_an_absmax_of_the_result_in_another_order_is_the_products():
    before = graph(
        "a: i8[6, 4, 8], b: i8[6, 8, 16], s: f32[6, 1, 1] -> q",
        """
        acc = sq.shift_matmul(a, b, None, 1, False, False, 0)
        d = sq.dequantize(acc, [s], None)
        v = aten.view(d, [2, 3, 4, 16])
        t = aten.transpose.int(v, 1, 2)
        y = aten.reshape(t, [8, 48])
        r = sq.absmax(y, None, [0, 1])
        q = sq.quantize(y, r, 4, True)
        """,
        acc=SCORES,
    )
    after = graph(
        "a: i8[6, 4, 8], b: i8[6, 8, 16], s: f32[6, 1, 1] -> q",
        """
        both = sq.shift_matmul_dequantize_absmax(a, b, None, 1, False, False, 0, [s], None, False)
        d = both[0]
        v = aten.view(d, [2, 3, 4, 16])
        t = aten.transpose.int(v, 1, 2)
        y = aten.reshape(t, [8, 48])
        m = both[1]
        r = aten.view(m, [1, 1])
        q = sq.quantize(y, r, 4, True)
        """,
    )
    assert same(fuse_epilogues(before), after)


def test_a_sum_of_paddings_apart_is_a_concatenation():
    before = graph(
        "a: f32[1, 4], b: f32[1, 4], c: f32[2, 4] -> y",
        """
        pc = aten.constant_pad_nd(c, [0, 0, 3, 0])
        pa = aten.constant_pad_nd(a, [0, 0, 0, 4])
        s = aten.add.Tensor(pc, pa)
        pb = aten.constant_pad_nd(b, [0, 0, 1, 3])
        y = aten.add.Tensor(s, pb)
        """,
    )
    after = graph(
        "a: f32[1, 4], b: f32[1, 4], c: f32[2, 4] -> y",
        """
        z = aten.full([1, 4], 0.0)
        y = aten.cat([a, b, z, c], 0)
        """,
    )
    assert same(join_paddings(before), after)


def test_paddings_that_overlap_or_differ_in_axis_stay_a_sum():
    before = graph(
        "a: f32[2, 4], b: f32[2, 4], c: f32[3, 3] -> y, z",
        """
        pa = aten.constant_pad_nd(a, [0, 0, 0, 1])
        pb = aten.constant_pad_nd(b, [0, 0, 1, 0])
        y = aten.add.Tensor(pa, pb)
        pc = aten.constant_pad_nd(c, [1, 0])
        z = aten.add.Tensor(pa, pc)
        """,
    )
    assert same(join_paddings(before), before)


def test_gradients_of_all_parts_are_put_together_and_padding_by_nothing_goes():
    before = graph(
        "g: f32[2, 4], h: f32[2, 4], w: f32[2, 4] -> y, v",
        """
        a = aten.select_backward(g, [2, 2, 4], 0, 0)
        b = aten.select_backward(h, [2, 2, 4], 0, 1)
        y = aten.add.Tensor(a, b)
        v = aten.slice_backward(w, [2, 4], 0, 0, 2, 1)
        """,
    )
    after = graph(
        "g: f32[2, 4], h: f32[2, 4], w: f32[2, 4] -> y, v",
        """
        a = aten.unsqueeze(g, 0)
        b = aten.unsqueeze(h, 0)
        y = aten.cat([a, b], 0)
        v = aten.alias(w)
        """,
    )
    done = canonicalize(before)
    # An output that is an input: the alias of the program after stands for it.
    assert same(done, canonicalize(after))
