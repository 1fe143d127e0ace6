"""canonicalize, as the program before and the program after."""

from sqcompile.passes.canonicalize import canonicalize
from tests.passes.programs import graph, same


def test_canonicalize_takes_products_to_their_roots():
    before = graph(
        "x_0: f32[4, 8], p_w: f32[6, 8], p_b: f32[6], g_0: f32[4, 6] -> y, dx, dw, db",
        """
        t = aten.t(p_w)
        y = aten.addmm(p_b, x_0, t)
        t1 = aten.t(t)
        dx = aten.mm(g_0, t1)
        t2 = aten.t(g_0)
        m = aten.mm(t2, x_0)
        t3 = aten.t(m)
        dw = aten.t(t3)
        s = aten.sum.dim_IntList(g_0, [0], True)
        db = aten.view(s, [6])
        """,
    )
    after = graph(
        "x_0: f32[4, 8], p_w: f32[6, 8], p_b: f32[6], g_0: f32[4, 6] -> y, dx, dw, db",
        """
        y = sq.matmul(x_0, p_w, p_b, False, True)
        dx = sq.matmul(g_0, p_w, None, False, False)
        dw = sq.matmul(g_0, x_0, None, True, False)
        s = sq.ordered_sum(g_0, [0], True)
        db = aten.view(s, [6])
        """,
    )
    assert same(canonicalize(before), after)


def test_canonicalize_puts_the_gradient_first():
    before = graph(
        "x_0: f32[4, 8], g_0: f32[4, 6] -> dw",
        """
        t = aten.t(x_0)
        dw = aten.mm(t, g_0)
        """,
    )
    after = graph(
        "x_0: f32[4, 8], g_0: f32[4, 6] -> dw",
        """
        m = sq.matmul(g_0, x_0, None, True, False)
        dw = aten.permute(m, [1, 0])
        """,
    )
    assert same(canonicalize(before), after)


def test_canonicalize_takes_convolution_backward_apart():
    shapes = "x_0: f32[2, 4, 5, 5], p_w: f32[6, 4, 3, 3], g_0: f32[2, 6, 5, 5]"
    before = graph(
        f"{shapes} -> dx, dw, db",
        """
        all = aten.convolution_backward(g_0, x_0, p_w, [6], [1, 1], [1, 1], [1, 1], False, [0, 0],
        1, [True, True, True])
        dx = all[0]
        dw = all[1]
        db = all[2]
        """,
    )
    after = graph(
        f"{shapes} -> dx, dw, db",
        """
        g = aten.permute(g_0, [0, 2, 3, 1])
        x = aten.permute(x_0, [0, 2, 3, 1])
        last = sq.conv_input_grad(g, p_w, [2, 5, 5, 4], [1, 1], [1, 1], [1, 1], 1)
        dx = aten.permute(last, [0, 3, 1, 2])
        dw = sq.conv_weight_grad(g, x, [6, 4, 3, 3], [1, 1], [1, 1], [1, 1], 1)
        db = sq.ordered_sum(g, [0, 1, 2], False)
        """,
    )
    assert same(canonicalize(before), after)


def test_canonicalize_makes_convolutions_channels_last():
    before = graph(
        "x_0: f32[2, 4, 7, 5], p_w: f32[6, 2, 3, 3], p_b: f32[6] -> y",
        """
        y = aten.convolution(x_0, p_w, p_b, [2, 1], [1, 0], [1, 1], False, [0, 0], 2)
        """,
    )
    after = graph(
        "x_0: f32[2, 4, 7, 5], p_w: f32[6, 2, 3, 3], p_b: f32[6] -> y",
        """
        x = aten.permute(x_0, [0, 2, 3, 1])
        last = sq.conv(x, p_w, p_b, [2, 1], [1, 0], [1, 1], 2)
        y = aten.permute(last, [0, 3, 1, 2])
        """,
    )
    assert same(canonicalize(before), after)


def test_canonicalize_makes_max_pooling_channels_last():
    before = graph(
        "x_0: f32[2, 4, 7, 5], g_0: f32[2, 4, 3, 2] -> y, dx",
        """
        both = aten.max_pool2d_with_indices(x_0, [2, 2])
        y = both[0]
        at = both[1]
        dx = aten.max_pool2d_with_indices_backward(g_0, x_0, [2, 2], [], [0, 0], [1, 1], False, at)
        """,
    )
    after = graph(
        "x_0: f32[2, 4, 7, 5], g_0: f32[2, 4, 3, 2] -> y, dx",
        """
        x = aten.permute(x_0, [0, 2, 3, 1])
        both = sq.max_pool2d(x, [2, 2], [2, 2], [0, 0], [1, 1], False)
        last = both[0]
        y = aten.permute(last, [0, 3, 1, 2])
        tap = both[1]
        g = aten.permute(g_0, [0, 2, 3, 1])
        dlast = sq.max_pool2d_backward(g, tap, [2, 7, 5, 4], [2, 2], [2, 2], [0, 0], [1, 1])
        dx = aten.permute(dlast, [0, 3, 1, 2])
        """,
    )
    assert same(canonicalize(before), after)


def test_canonicalize_makes_average_pooling_channels_last():
    before = graph(
        "x_0: f32[2, 4, 7, 5], g_0: f32[2, 4, 3, 2] -> y, dx",
        """
        y = aten.avg_pool2d(x_0, [2, 2])
        dx = aten.avg_pool2d_backward(g_0, x_0, [2, 2], [], [0, 0], False, True, None)
        """,
    )
    after = graph(
        "x_0: f32[2, 4, 7, 5], g_0: f32[2, 4, 3, 2] -> y, dx",
        """
        x = aten.permute(x_0, [0, 2, 3, 1])
        last = sq.avg_pool2d(x, [2, 2], [2, 2], [0, 0])
        y = aten.permute(last, [0, 3, 1, 2])
        g = aten.permute(g_0, [0, 2, 3, 1])
        dlast = sq.avg_pool2d_backward(g, [2, 7, 5, 4], [2, 2], [2, 2], [0, 0])
        dx = aten.permute(dlast, [0, 3, 1, 2])
        """,
    )
    assert same(canonicalize(before), after)


def test_canonicalize_drops_a_permute_that_moves_nothing():
    before = graph(
        "x_0: f32[4, 8], z: f32[2, 3, 4, 5] -> y, v",
        """
        p = aten.permute(x_0, [0, -1])
        y = aten.relu(p)
        q = aten.permute(z, [0, 1, 2, 3])
        v = aten.neg(q)
        """,
    )
    after = graph(
        "x_0: f32[4, 8], z: f32[2, 3, 4, 5] -> y, v",
        """
        y = aten.relu(x_0)
        v = aten.neg(z)
        """,
    )
    assert same(canonicalize(before), after)


def test_canonicalize_makes_relu_backward_a_mask():
    before = graph(
        "x_0: f32[3], g_0: f32[3] -> y, dx",
        """
        y = aten.relu(x_0)
        d = aten.detach(y)
        dx = aten.threshold_backward(g_0, d, 0)
        """,
    )
    after = graph(
        "x_0: f32[3], g_0: f32[3] -> y, dx",
        """
        y = aten.relu(x_0)
        mask = aten.gt.Scalar(y, 0)
        dx = aten.where.ScalarOther(mask, g_0, 0.0)
        """,
    )
    assert same(canonicalize(before), after)


def test_canonicalize_takes_a_square_root_that_rounds_correctly():
    before = graph("x_0: f32[3] -> y", "y = aten.sqrt(x_0)")
    assert same(canonicalize(before), graph("x_0: f32[3] -> y", "y = sq.sqrt(x_0)"))


def test_canonicalize_takes_an_inverse_square_root_in_two_roundings():
    before = graph("x_0: f32[3] -> y", "y = aten.rsqrt(x_0)")
    after = """
        root = sq.sqrt(x_0)
        y = aten.reciprocal(root)
        """
    assert same(canonicalize(before), graph("x_0: f32[3] -> y", after))


def test_canonicalize_takes_a_third_power_from_left_to_right():
    before = graph("x_0: f32[3] -> y", "y = aten.pow.Tensor_Scalar(x_0, 3)")
    after = """
        square = aten.mul.Tensor(x_0, x_0)
        y = aten.mul.Tensor(square, x_0)
        """
    assert same(canonicalize(before), graph("x_0: f32[3] -> y", after))
