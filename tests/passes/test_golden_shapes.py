"""Constants, dropout and shapes, as the program before and the program after."""

import pytest

from sqcompile.errors import CaptureError
from sqcompile.ops.philox import stream_id
from sqcompile.passes.canonicalize import canonicalize
from sqcompile.passes.channels_last import channels_last
from sqcompile.passes.draw_dropout import draw_dropout
from sqcompile.passes.fold_constants import fold_constants
from tests.passes.programs import graph, same


def test_what_depends_on_no_input_is_a_constant():
    before = graph(
        "x_0: f32[3, 3] -> y, z, c",
        """
        ones = aten.ones([3, 3])
        low = aten.tril(ones)
        y = aten.mul.Tensor(x_0, low)
        again = aten.tril(ones)
        z = aten.add.Tensor(x_0, again)
        c = aten.arange(2)
        """,
    )
    after = graph(
        "x_0: f32[3, 3] -> y, z, c",
        """
        low = constant([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]], "f32")
        y = aten.mul.Tensor(x_0, low)
        z = aten.add.Tensor(x_0, low)
        c = constant([0, 1], "i64")
        """,
    )
    done = fold_constants(before)
    assert same(done, after)
    assert len(list(done.buffers())) == 2, "equal constants are held once"


def test_a_constant_of_one_number_is_full_and_random_numbers_stay():
    before = graph(
        "x_0: f32[3] -> y, z",
        """
        two = aten.full([3], 2)
        four = aten.mul.Tensor(two, two)
        y = aten.mul.Tensor(x_0, four)
        r = aten.rand([3])
        z = aten.add.Tensor(x_0, r)
        """,
    )
    after = graph(
        "x_0: f32[3] -> y, z",
        """
        four = aten.full([3], 4)
        y = aten.mul.Tensor(x_0, four)
        r = aten.rand([3])
        z = aten.add.Tensor(x_0, r)
        """,
    )
    assert same(fold_constants(before), after)


def test_an_assertion_about_constants_goes_and_one_about_inputs_is_an_error():
    program = """
        c = aten.all(aten_input)
        a = aten._assert_async.msg(c, 'all must hold')
        y = aten.relu(x_0)
        """
    constant = "m = constant([True, True], 'bool')\n"
    held = graph("x_0: f32[3] -> y", constant + program.replace("aten_input", "m"))
    assert same(fold_constants(held), graph("x_0: f32[3] -> y", "y = aten.relu(x_0)"))
    open_ = graph("x_0: f32[3] -> y", program.replace("aten_input", "x_0"))
    with pytest.raises(CaptureError, match="all must hold"):
        fold_constants(open_)


def test_a_product_keeps_its_constant_operand_behind_a_transpose():
    before = graph(
        "x_0: f32[4, 3], g_0: f32[4, 2] -> y, dx",
        """
        c = constant([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "f32")
        y = aten.mm(x_0, c)
        t = aten.t(c)
        dx = aten.mm(g_0, t)
        """,
    )
    assert same(fold_constants(before), before)


def test_dropout_draws_its_mask_and_backward_unpacks_it_again():
    before = graph(
        "rng: i64[4], x_0: f32[4, 8], g_0: f32[4, 8] -> y, dx",
        """
        both = aten.native_dropout(x_0, 0.25, True)
        y = both[0]
        kept = both[1]
        dx = aten.native_dropout_backward(g_0, kept, 1.3333333333333333)
        """,
    )
    stream = stream_id("", "dropout", "mask", 0)
    after = graph(
        "rng: i64[4], x_0: f32[4, 8], g_0: f32[4, 8] -> y, dx",
        f"""
        packed = sq.dropout_mask(rng, [4, 8], 16384, {stream})
        kept = sq.unpack_mask(packed, [4, 8])
        scaled = aten.mul.Tensor(x_0, 1.3333333333333333)
        y = aten.where.ScalarOther(kept, scaled, 0.0)
        again = sq.unpack_mask(packed, [4, 8])
        dscaled = aten.mul.Tensor(g_0, 1.3333333333333333)
        dx = aten.where.ScalarOther(again, dscaled, 0.0)
        """,
    )
    assert same(draw_dropout(before), after)


def test_every_dropout_of_a_module_has_a_stream_and_feature_dropout_is_one():
    before = graph(
        "rng: i64[4], x_0: f32[4, 8] -> y, z",
        """
        b = aten.bernoulli.p(x_0, 0.75)
        y = aten.mul.Tensor(x_0, b)
        z = aten.bernoulli.p(x_0, 0.75)
        """,
    )
    streams = [stream_id("", "dropout", "mask", number) for number in (0, 1)]
    after = graph(
        "rng: i64[4], x_0: f32[4, 8] -> y, z",
        f"""
        packed = sq.dropout_mask(rng, [4, 8], 16384, {streams[0]})
        kept = sq.unpack_mask(packed, [4, 8])
        b = aten.mul.Tensor(kept, 1.0)
        y = aten.mul.Tensor(x_0, b)
        packed_1 = sq.dropout_mask(rng, [4, 8], 16384, {streams[1]})
        kept_1 = sq.unpack_mask(packed_1, [4, 8])
        z = aten.mul.Tensor(kept_1, 1.0)
        """,
    )
    assert same(draw_dropout(before), after)


def test_an_embedding_takes_rows_and_its_gradient_adds_them():
    before = graph(
        "p_w: f32[9, 4], x_0: i64[2, 3], g_0: f32[2, 3, 4] -> y, dw",
        """
        y = aten.embedding(p_w, x_0, 1)
        dw = aten.embedding_dense_backward(g_0, x_0, 9, 1, False)
        """,
    )
    after = graph(
        "p_w: f32[9, 4], x_0: i64[2, 3], g_0: f32[2, 3, 4] -> y, dw",
        """
        i = aten.reshape(x_0, [6])
        rows = sq.take(p_w, i, 0)
        y = aten.reshape(rows, [2, 3, 4])
        g = aten.reshape(g_0, [6, 4])
        j = aten.reshape(x_0, [6])
        dw = sq.take_backward(g, j, 0, 9, 1)
        """,
    )
    assert same(canonicalize(before), after)


def test_parts_are_slices_and_a_roll_is_two():
    before = graph(
        "x_0: f32[4, 6] -> a, b, c, r",
        """
        parts = aten.split.Tensor(x_0, 4, 1)
        a = parts[0]
        b = parts[1]
        rows = aten.unbind.int(x_0, 0)
        c = rows[2]
        r = aten.roll(x_0, [1], [1])
        """,
    )
    after = graph(
        "x_0: f32[4, 6] -> a, b, c, r",
        """
        a = aten.slice.Tensor(x_0, 1, 0, 4)
        b = aten.slice.Tensor(x_0, 1, 4, 6)
        c = aten.select.int(x_0, 0, 2)
        end = aten.slice.Tensor(x_0, 1, 5, 6)
        rest = aten.slice.Tensor(x_0, 1, 0, 5)
        r = aten.cat([end, rest], 1)
        """,
    )
    assert same(canonicalize(before), after)


def test_an_assignment_is_a_concatenation():
    before = graph(
        "x_0: f32[4, 6], g_0: f32[4, 2] -> y, z",
        """
        number = constant(0.5, "f32")
        column = aten.select.int(x_0, 1, 0)
        filled = aten.fill.Tensor(column, number)
        y = aten.select_scatter(x_0, filled, 1, 0)
        z = aten.slice_scatter(x_0, g_0, 1, 2, 4)
        """,
    )
    after = graph(
        "x_0: f32[4, 6], g_0: f32[4, 2] -> y, z",
        """
        number = constant(0.5, "f32")
        filled = aten.expand(number, [4])
        part = aten.unsqueeze(filled, 1)
        rest = aten.slice.Tensor(x_0, 1, 1, 6)
        y = aten.cat([part, rest], 1)
        front = aten.slice.Tensor(x_0, 1, 0, 2)
        back = aten.slice.Tensor(x_0, 1, 4, 6)
        z = aten.cat([front, g_0, back], 1)
        """,
    )
    assert same(canonicalize(before), after)


def test_the_gradient_of_a_slice_with_steps():
    before = graph("g_0: f32[2, 3] -> dx", "dx = aten.slice_backward(g_0, [2, 8], 1, 1, 8, 3)")
    after = graph(
        "g_0: f32[2, 3] -> dx",
        """
        apart = aten.unsqueeze(g_0, 2)
        wide = aten.constant_pad_nd(apart, [0, 2], 0.0)
        line = aten.reshape(wide, [2, 9])
        dx = aten.constant_pad_nd(line, [1, -2], 0.0)
        """,
    )
    assert same(canonicalize(before), after)


def test_uneven_windows_are_tables_along_height_and_width():
    before = graph("x_0: f32[2, 3, 4, 3] -> y", "y = aten._adaptive_avg_pool2d(x_0, [2, 2])")
    after = graph(
        "x_0: f32[2, 3, 4, 3] -> y",
        """
        f = constant([0, 2], "i32")
        w = constant([[0.5, 0.5], [0.5, 0.5]], "f32")
        rows = sq.resample(x_0, 2, f, w, None, None)
        h = constant([0, 1], "i32")
        v = constant([[0.5, 0.5], [0.5, 0.5]], "f32")
        y = sq.resample(rows, 3, h, v, None, None)
        """,
    )
    assert same(canonicalize(before), after)


def test_ops_along_an_axis_stay_channels_last():
    before = graph(
        "x_0: f32[2, 4, 5, 3] -> a, b, c",
        """
        x = aten.permute(x_0, [0, 3, 1, 2])
        f = constant([0, 2], "i32")
        w = constant([[0.5, 0.5], [0.5, 0.5]], "f32")
        p = sq.resample(x, 2, f, w, None, None)
        a = aten.permute(p, [0, 2, 3, 1])
        q = sq.take(x, f, 1)
        b = aten.permute(q, [0, 2, 3, 1])
        r = aten.flip(x, [-1])
        c = aten.permute(r, [0, 2, 3, 1])
        """,
    )
    after = graph(
        "x_0: f32[2, 4, 5, 3] -> a, b, c",
        """
        f = constant([0, 2], "i32")
        w = constant([[0.5, 0.5], [0.5, 0.5]], "f32")
        a = sq.resample(x_0, 1, f, w, None, None)
        b = sq.take(x_0, f, 3)
        c = aten.flip(x_0, [2])
        """,
    )
    assert same(channels_last(before), after)
