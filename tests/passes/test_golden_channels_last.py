"""Golden tests of channels_last: the program before, the program after, and equal values."""

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from sqcompile.capture import capture
from sqcompile.passes.canonicalize import canonicalize
from sqcompile.passes.channels_last import channels_last
from tests.passes.programs import graph, same

CONV = "[1, 1], [1, 1], [1, 1], 1"
SHAPES = "x_0: f32[2, 5, 6, 3], p_w: f32[4, 3, 3, 3], p_v: f32[4, 4, 3, 3]"
IMAGE = "x_0: f32[2, 5, 6, 4]"


def becomes(before: GraphModule, after: GraphModule) -> bool:
    """Whether the pass makes `after` of `before`, and both compute the same."""
    done = channels_last(before)
    assert same(done, after)
    generator = torch.Generator().manual_seed(1)
    inputs = [
        torch.randn(node.meta["val"].shape, generator=generator)
        for node in before.graph.find_nodes(op="placeholder")
    ]
    for got, wanted in zip(done(*inputs), before(*inputs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    for node, wanted in zip(_outputs(done), _outputs(before), strict=True):
        assert node.meta["val"].shape == wanted.meta["val"].shape
    return True


def _outputs(module: GraphModule) -> tuple[torch.fx.Node, ...]:
    return module.graph.output_node().args[0]


def test_permutes_that_undo_each_other_go():
    before = graph(
        f"{SHAPES} -> y",
        f"""
        h = sq.conv(x_0, p_w, None, {CONV})
        first = aten.permute(h, [0, 3, 1, 2])
        last = aten.permute(first, [0, 2, 3, 1])
        back = aten.permute(last, [0, -1, 1, 2])
        again = aten.permute(back, [0, 2, -1, 1])
        y = sq.conv(again, p_v, None, {CONV})
        """,
    )
    after = graph(
        f"{SHAPES} -> y",
        f"""
        h = sq.conv(x_0, p_w, None, {CONV})
        y = sq.conv(h, p_v, None, {CONV})
        """,
    )
    assert becomes(before, after)


def test_elementwise_ops_between_two_convolutions_compute_channels_last():
    before = graph(
        f"{SHAPES} -> y",
        f"""
        h = sq.conv(x_0, p_w, None, {CONV})
        first = aten.permute(h, [0, 3, 1, 2])
        r = aten.relu(first)
        m = aten.mul.Tensor(r, 0.5)
        s = aten.add.Tensor(m, first)
        mask = aten.gt.Scalar(s, 0)
        z = aten.where.ScalarOther(mask, s, 1.0)
        last = aten.permute(z, [0, 2, 3, 1])
        y = sq.conv(last, p_v, None, {CONV})
        """,
    )
    after = graph(
        f"{SHAPES} -> y",
        f"""
        h = sq.conv(x_0, p_w, None, {CONV})
        r = aten.relu(h)
        m = aten.mul.Tensor(r, 0.5)
        s = aten.add.Tensor(m, h)
        mask = aten.gt.Scalar(s, 0)
        z = aten.where.ScalarOther(mask, s, 1.0)
        y = sq.conv(z, p_v, None, {CONV})
        """,
    )
    assert becomes(before, after)


def test_an_operand_that_broadcasts_moves_its_axes():
    shapes = f"{IMAGE}, c: f32[4, 1, 1], row: f32[6], n: f32[2, 1, 1, 1], number: f32[]"
    before = graph(
        f"{shapes} -> y",
        """
        first = aten.permute(x_0, [0, 3, 1, 2])
        a = aten.mul.Tensor(first, c)
        b = aten.add.Tensor(row, a)
        d = aten.sub.Tensor(b, n)
        e = aten.div.Tensor(d, number)
        y = aten.permute(e, [0, 2, 3, 1])
        """,
    )
    after = graph(
        f"{shapes} -> y",
        """
        c4 = aten.view(c, [1, 4, 1, 1])
        channels = aten.permute(c4, [0, 2, 3, 1])
        a = aten.mul.Tensor(x_0, channels)
        row4 = aten.view(row, [1, 1, 1, 6])
        columns = aten.permute(row4, [0, 2, 3, 1])
        b = aten.add.Tensor(columns, a)
        samples = aten.permute(n, [0, 2, 3, 1])
        d = aten.sub.Tensor(b, samples)
        y = aten.div.Tensor(d, number)
        """,
    )
    assert becomes(before, after)


def test_an_image_that_only_broadcasts_leaves_the_op_as_it_is():
    before = graph(
        "x_0: f32[2, 1, 1, 4], z: f32[2, 4, 5, 6] -> y",
        """
        first = aten.permute(x_0, [0, 3, 1, 2])
        y = aten.mul.Tensor(z, first)
        """,
    )
    assert becomes(before, before)


@pytest.mark.parametrize("overload", ["Tensor", "Scalar"])
def test_the_gradient_of_a_mean_is_expanded_channels_last(overload):
    shapes = "x_0: f32[2, 5, 6, 3], p_w: f32[4, 3, 3, 3], g_0: f32[2, 4]"
    before = graph(
        f"{shapes} -> dw",
        f"""
        g4 = aten.view(g_0, [2, 4, 1, 1])
        whole = aten.expand(g4, [2, 4, 5, 6])
        mean = aten.div.{overload}(whole, 30.0)
        g = aten.permute(mean, [0, 2, 3, 1])
        dw = sq.conv_weight_grad(g, x_0, [4, 3, 3, 3], {CONV})
        """,
    )
    after = graph(
        f"{shapes} -> dw",
        f"""
        g4 = aten.view(g_0, [2, 4, 1, 1])
        small = aten.permute(g4, [0, 2, 3, 1])
        whole = aten.expand(small, [2, 5, 6, 4])
        g = aten.div.{overload}(whole, 30.0)
        dw = sq.conv_weight_grad(g, x_0, [4, 3, 3, 3], {CONV})
        """,
    )
    assert becomes(before, after)


@pytest.mark.parametrize(
    ("axes", "moved", "order"),
    [
        ([2, 3], [1, 2], None),
        ([1], [3], None),
        ([0], [0], [2, 0, 1]),
        ([0, 3], [0, 2], [1, 0]),
        ([1, 2, 3], [1, 2, 3], None),
        ([], [], [0, 3, 1, 2]),
    ],
)
def test_a_sum_goes_over_the_same_axes_at_their_places(axes, moved, order):
    before = graph(
        f"{IMAGE} -> y",
        f"""
        first = aten.permute(x_0, [0, 3, 1, 2])
        y = sq.ordered_sum(first, {axes}, False)
        """,
    )
    program = f"s = sq.ordered_sum(x_0, {moved}, False)"
    if order is not None:
        program += f"\ny = aten.permute(s, {order})"
    assert becomes(before, graph(f"{IMAGE} -> {'s' if order is None else 'y'}", program))
    before = graph(
        f"{IMAGE} -> y",
        f"""
        first = aten.permute(x_0, [0, 3, 1, 2])
        s = sq.ordered_sum(first, {axes}, True)
        y = aten.sub.Tensor(first, s)
        """,
    )
    after = graph(
        f"{IMAGE} -> y",
        f"""
        s = sq.ordered_sum(x_0, {moved}, True)
        d = aten.sub.Tensor(x_0, s)
        y = aten.permute(d, [0, 3, 1, 2])
        """,
    )
    if axes:
        assert becomes(before, after)


def test_a_concatenation_is_along_its_axis_whichever_part_is_an_image():
    shapes = f"{IMAGE}, z: f32[2, 3, 5, 6]"
    before = graph(
        f"{shapes} -> y",
        """
        first = aten.permute(x_0, [0, 3, 1, 2])
        a = aten.cat([z, first], 1)
        b = aten.cat([first, a], -3)
        y = aten.permute(b, [0, 2, 3, 1])
        """,
    )
    after = graph(
        f"{shapes} -> y",
        """
        last = aten.permute(z, [0, 2, 3, 1])
        a = aten.cat([last, x_0], 3)
        y = aten.cat([x_0, a], 3)
        """,
    )
    assert becomes(before, after)


@pytest.mark.parametrize(
    ("pad", "moved"),
    [
        ([1, 2], [0, 0, 1, 2, 0, 0, 0, 0]),
        ([1, 2, 3, 4], [0, 0, 1, 2, 3, 4, 0, 0]),
        ([0, 0, 0, 0, 1, 2], [1, 2, 0, 0, 0, 0, 0, 0]),
        ([1, 2, 3, -1, 5, 6, 7, 8], [5, 6, 1, 2, 3, -1, 7, 8]),
    ],
)
def test_padding_is_of_the_same_axes(pad, moved):
    before = graph(
        f"{IMAGE} -> y",
        f"""
        first = aten.permute(x_0, [0, 3, 1, 2])
        p = aten.constant_pad_nd(first, {pad}, 2.0)
        y = aten.permute(p, [0, 2, 3, 1])
        """,
    )
    after = graph(f"{IMAGE} -> y", f"y = aten.constant_pad_nd(x_0, {moved}, 2.0)")
    assert becomes(before, after)


@pytest.mark.parametrize(("axis", "moved"), [(0, 0), (1, 3), (2, 1), (-1, 2)])
def test_a_slice_is_of_the_same_axis(axis, moved):
    before = graph(
        f"{IMAGE} -> y",
        f"""
        first = aten.permute(x_0, [0, 3, 1, 2])
        s = aten.slice.Tensor(first, {axis}, 1, 4, 2)
        y = aten.permute(s, [0, 2, 3, 1])
        """,
    )
    after = graph(f"{IMAGE} -> y", f"y = aten.slice.Tensor(x_0, {moved}, 1, 4, 2)")
    assert becomes(before, after)


def test_an_image_that_is_also_returned_is_permuted_for_that():
    before = graph(
        f"{SHAPES} -> y, image",
        f"""
        h = sq.conv(x_0, p_w, None, {CONV})
        first = aten.permute(h, [0, 3, 1, 2])
        r = aten.relu(first)
        image = aten.clone(r)
        last = aten.permute(r, [0, 2, 3, 1])
        y = sq.conv(last, p_v, None, {CONV})
        """,
    )
    after = graph(
        f"{SHAPES} -> y, image",
        f"""
        h = sq.conv(x_0, p_w, None, {CONV})
        r = aten.relu(h)
        c = aten.clone(r)
        image = aten.permute(c, [0, 3, 1, 2])
        y = sq.conv(r, p_v, None, {CONV})
        """,
    )
    assert becomes(before, after)


@pytest.mark.parametrize(
    "program", ["", "image = aten.relu(x_0)", "image = aten.expand(x_0, [2, 3, 5, 6])"]
)
def test_forward_and_backward_read_one_tensor(program):
    """A product of backward is found by the operand that it shares with the forward one."""
    image = "image" if program else "x_0"
    module = graph(
        "x_0: f32[2, 3, 5, 6], p_w: f32[4, 3, 3, 3], g_0: f32[2, 5, 6, 4] -> y, dw",
        f"""
        {program}
        one = aten.permute({image}, [0, 2, 3, 1])
        y = sq.conv(one, p_w, None, {CONV})
        two = aten.permute({image}, [0, 2, 3, 1])
        dw = sq.conv_weight_grad(g_0, two, [4, 3, 3, 3], {CONV})
        """,
    )
    y, dw = _outputs(channels_last(module))
    assert y.args[0] is dw.args[1]


def test_a_view_of_a_permuted_tensor_is_a_reshape():
    before = graph(
        f"{IMAGE} -> y",
        """
        r = aten.relu(x_0)
        first = aten.permute(r, [0, 3, 1, 2])
        y = aten.reshape(first, [2, -1])
        """,
    )
    view = next(node for node in before.graph.nodes if node.name == "y")
    after = graph(
        f"{IMAGE} -> y",
        """
        r = aten.relu(x_0)
        first = aten.permute(r, [0, 3, 1, 2])
        y = aten.reshape(first, [2, 120])
        """,
    )
    view.target = torch.ops.aten.view.default
    assert same(channels_last(before), after)


class Flat(nn.Module):
    """Images between products, and a flattening that shows the model's own order of axes."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.two = nn.Conv2d(7, 5, 3, stride=2)
        self.head = nn.Linear(60, 2)

    def forward(self, x):
        h = torch.relu(self.norm(self.one(x)))
        h = nn.functional.max_pool2d(torch.cat([x, h * h.mean((2, 3), keepdim=True)], 1), 2)
        return self.head(self.two(nn.functional.pad(h, (1, 0, 2, 1))).flatten(1)), h


def test_a_models_forward_and_backward_compute_the_same():
    captured = capture(Flat(), (torch.randn(2, 3, 12, 14),), {})
    before = canonicalize(captured.graph)
    done = channels_last(before)
    permutes = done.graph.find_nodes(op="call_function", target=torch.ops.aten.permute.default)
    # the input, the second output and its gradient, the flattening and its gradient
    assert len(permutes) == 5
    generator = torch.Generator().manual_seed(1)
    inputs = [
        torch.randn(node.meta["val"].shape, generator=generator).to(node.meta["val"].dtype)
        for node in done.graph.find_nodes(op="placeholder")
    ]
    with torch.no_grad():
        for got, wanted in zip(done(*inputs), captured.graph(*inputs), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_copy_for_the_layout_goes_and_one_that_is_returned_stays():
    before = graph(
        f"{IMAGE} -> y, first",
        """
        p = aten.permute(x_0, [0, 3, 1, 2])
        copy = aten.clone(p)
        h = aten.relu(copy)
        y = aten.permute(h, [0, 2, 3, 1])
        q = aten.permute(x_0, [0, 3, 1, 2])
        first = aten.clone(q)
        """,
    )
    after = graph(
        f"{IMAGE} -> y, first",
        """
        y = aten.relu(x_0)
        copy = aten.clone(x_0)
        first = aten.permute(copy, [0, 3, 1, 2])
        """,
    )
    assert becomes(before, after)
