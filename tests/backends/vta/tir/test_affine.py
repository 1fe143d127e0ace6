"""Expressions of TIR in integers, against TVM's own evaluation and the plainest way to say it."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tvm import sym, tirx

from sqcompile.backends.vta.tir.affine import affine, evaluated, slacks
from sqcompile.backends.vta.tir.box import Access, Box, around
from sqcompile.backends.vta.tir.nest import Nest

U, V, W = (tirx.Var(name, "int32") for name in "ijk")
VALUES = st.integers(-20, 20)
small = st.integers(-3, 3)
LEAF = st.sampled_from([U, V]) | small.map(lambda value: tirx.const(value, "int32"))
EXPRESSIONS = st.recursive(
    LEAF,
    lambda inner: (
        st.tuples(inner, inner).map(lambda pair: pair[0] + pair[1])
        | st.tuples(inner, inner).map(lambda pair: pair[0] - pair[1])
        | st.tuples(inner, inner).map(lambda pair: tirx.min(*pair))
        | st.tuples(inner, inner).map(lambda pair: tirx.max(*pair))
        | st.tuples(inner, st.integers(1, 7)).map(lambda pair: tirx.floordiv(*pair))
        | st.tuples(inner, st.integers(1, 7)).map(lambda pair: tirx.floormod(*pair))
        | st.tuples(inner, small).map(lambda pair: pair[0] * pair[1])
    ),
    max_leaves=6,
)


@given(EXPRESSIONS, VALUES, VALUES)
def test_an_expression_has_the_value_that_tvm_finds(expression, i, j):
    (found,) = evaluated([expression], [U, V], {})(i, j)
    analyzer = sym.Analyzer()
    for var, value in ((U, i), (V, j)):
        analyzer.bind(var, tirx.const(value, "int32"))
    assert found == int(analyzer.simplify(expression))


def test_memory_is_read_where_an_expression_reads_it():
    table = tirx.decl_buffer((3, 2), "int32", name="turns")
    found = evaluated([table[U, 1] + V], [U, V], {"turns": [(1, 2), (3, 4), (5, 6)]})
    assert found(2, 10) == (16,)


def test_what_is_not_linear_in_inner_loops_is_refused():
    with pytest.raises(RuntimeError, match=r"i \* i is not linear in \['i'\]"):
        affine(U * U, [U])
    with pytest.raises(RuntimeError, match="is no comparison"):
        slacks(tirx.Or(U < V, V < U))
    with pytest.raises(RuntimeError, match="is no integer of outer loops"):
        evaluated([W + 1], [U, V], {})


@given(st.lists(st.tuples(small, small, st.integers(-6, 6)), max_size=4), small)
def test_a_nest_keeps_what_its_conditions_do(conditions, outer):
    """Each condition bounds one of two loops, or none: coefficient * (loop, or outer) <= limit."""
    loops = [tirx.For(var, 0, 5, tirx.ForKind.SERIAL, tirx.Evaluate(0)) for var in (U, V)]
    made, kept = [], set(product(range(5), repeat=2))
    for which, factor, limit in conditions:
        var = (U, V, W)[which % 3]
        made.append(var * factor <= limit + W)
        kept = {at for at in kept if (*at, outer)[which % 3] * factor <= limit + outer}
    found = Nest(loops, [W], made, [[U + 2 * V + W, V]], {}).at(outer)
    if found is None:
        assert not kept
        return
    lengths, (access,) = found
    touched = [
        tuple(s + a * di + b * dj for s, a, b in zip(access.starts, *access.steps, strict=True))
        for di, dj in product(*map(range, lengths))
    ]
    assert sorted(touched) == sorted((i + 2 * j + outer, j) for i, j in kept)


def test_a_condition_on_two_loops_is_refused():
    loops = [tirx.For(var, 0, 5, tirx.ForKind.SERIAL, tirx.Evaluate(0)) for var in (U, V)]
    with pytest.raises(RuntimeError, match="bounds several loops at once"):
        Nest(loops, [W], [U < V], [[U, V]], {})


def tiles(box):
    return set(product(*(range(a, a + n) for a, n in zip(*box, strict=True))))


BOXES = st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 3)), min_size=3, max_size=3).map(
    lambda axes: Box(*map(tuple, zip(*axes, strict=True)))
)


@given(BOXES, st.lists(st.integers(1, 4), min_size=3, max_size=3))
def test_boxes_are_sets_of_tiles(box, shape):
    grid = tiles(Box((0, 0, 0), tuple(shape)))
    assert box.meets(shape) == bool(tiles(box) & grid)
    assert [box.place(tile) for tile in sorted(tiles(box))] == list(range(box.tiles))
    if box.meets(shape):
        inside, (above, below, left, right) = box.clipped(shape)
        lines = {tile[1:] for tile in tiles(inside)}
        assert lines == {tile[1:] for tile in tiles(box)} & {tile[1:] for tile in grid}
        assert (above + inside.sizes[1] + below, left + inside.sizes[2] + right) == box.sizes[1:]
        assert inside.starts[1:] == (box.starts[1] + above, box.starts[2] + left)


@given(st.lists(BOXES, min_size=1, max_size=4))
def test_a_box_around_others_touches_all_of_them(boxes):
    found, every = around(boxes), set().union(*map(tiles, boxes))
    assert every <= tiles(found)
    for axis, (start, size) in enumerate(zip(*found, strict=True)):
        lines = {tile[axis] for tile in every}
        assert (min(lines), max(lines) + 1) == (start, start + size)


def test_an_access_touches_a_box():
    access = Access((4, 0), ((-1, 0), (0, 2)))
    assert access.box((3, 2)) == Box((2, 0), (3, 3))
