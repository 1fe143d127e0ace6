"""expose_index_ranges as the program before and after, and what intervals prove."""

import pytest

from sqcompile.passes.expose_index_ranges import expose_index_ranges
from sqcompile.passes.intervals import Intervals
from tests.passes.programs import graph, same

INPUTS = "p_w: f32[9, 4], x_0: i64[5], x_1: i64[5], x_2: f32[5, 7]"


def test_the_ranges_of_computed_numbers_are_outputs():
    program = """
        next = aten.add.Tensor(x_0, 1)
        back = aten.add.Tensor(next, 9)
        negative = aten.lt.Scalar(next, 0)
        counted = aten.where.self(negative, back, next)
        flat = aten.reshape(counted, [5])
        rows = sq.take(p_w, flat, 0)
        more = sq.take(p_w, next, 0)
        again = sq.take(p_w, next, 0)
        both = sq.nll_loss(x_2, next, None, -100)
        loss = both[0]
        sums = sq.take_backward(more, next, 0, 3, -1)
    """
    done, uses = expose_index_ranges(graph(f"{INPUTS} -> rows, more, again, loss, sums", program))
    ranges = """
        from_end = sq.index_range(next, None)
        plain = sq.index_range(next, None)
        classes = sq.index_range(next, -100)
        added = sq.index_range(next, None)
    """
    expected = f"{INPUTS} -> rows, more, again, loss, sums, from_end, plain, classes, added"
    assert same(done, graph(expected, program + ranges))
    limits = [(use.low, use.rows, use.unit, use.ignored) for use in uses]
    assert limits == [
        (-9, 9, "row", None),
        (0, 9, "row", None),
        (0, 7, "class", -100),
        (0, 3, "row", None),
    ]


@pytest.mark.parametrize(
    "program",
    [
        "i = aten.clone(x_0)",
        "i = aten.clamp(x_0, 0, 8)",
        'i = constant([8, 0], "i64")',
        "i = aten.full([3], 8)",
    ],
)
def test_inputs_and_what_is_proven_have_no_range(program):
    before = graph(f"{INPUTS} -> rows", f"{program}\nrows = sq.take(p_w, i, 0)")
    done, uses = expose_index_ranges(before)
    assert done is before and not uses


def test_a_choice_that_only_looks_like_counting_from_the_end_is_not_taken_for_it():
    program = """
        negative = aten.lt.Scalar(x_1, 0)
        back = aten.add.Tensor(x_0, 9)
        chosen = aten.where.self(negative, back, x_0)
        rows = sq.take(p_w, chosen, 0)
    """
    _, (use,) = expose_index_ranges(graph(f"{INPUTS} -> rows", program))
    assert use.numbers.name == "chosen" and use.low == 0


WIDE = (-(2**63), 2**63 - 1)


@pytest.mark.parametrize(
    ("program", "interval"),
    [
        ("y = aten.clone(x)", WIDE),
        ("y = aten.add.Tensor(x, 1)", WIDE),  # which wraps
        ("y = aten.add.Tensor(c, 1)", (-2, 6)),
        ("y = aten.sub.Tensor(c, d)", (-7, 4)),
        ("y = aten.mul.Tensor(c, d)", (-12, 20)),
        ("y = aten.mul.Scalar(c, -3)", (-15, 9)),
        ("y = aten.neg(c)", (-5, 3)),
        ("y = aten.abs(c)", (0, 5)),
        ("y = aten.abs(d)", (1, 4)),
        ("y = aten.clamp(x, 2)", (2, WIDE[1])),
        ("y = aten.clamp(c, None, 1)", (-3, 1)),
        ("y = aten.clamp(c, 7, 9)", (7, 7)),
        ("y = aten.where.self(m, c, d)", (-3, 5)),
        ("y = aten.where.ScalarOther(m, d, 9)", (1, 9)),
        ("y = aten.cat([c, d])", (-3, 5)),
        ("y = aten.constant_pad_nd(d, [1, 1], -2)", (-2, 4)),
        ("y = aten.slice.Tensor(d, 0, 1, 2)", (1, 4)),
        ("y = sq.take(d, x, 0)", (1, 4)),
        ("y = aten.sum(m)", (0, 3)),
        ("y = aten.sum(c)", (-9, 15)),
        ("y = aten.lt.Scalar(x, 3)", (0, 1)),
    ],
)
def test_intervals(program, interval):
    start = 'e = constant([-3, 5, 0], "i64")\nc = aten.clamp(e, -3, 5)\n'
    start += 'd = constant([4, 1, 2], "i64")\n'
    module = graph("x: i64[3], m: bool[3] -> y", start + program)
    (node,) = module.graph.output_node().args[0]
    assert Intervals(module).of(node) == interval


def test_floats_prove_nothing():
    """A NaN that is limited to 0 .. 8 is still a NaN, and its integer any."""
    program = "y = aten.clamp(x, 0, 8)\nz = aten._to_copy(y)"
    module = graph("x: f32[3] -> z", program)
    (node,) = module.graph.output_node().args[0]
    node.meta["val"] = node.meta["val"].long()
    assert Intervals(module).of(node) == WIDE
