"""The parts that programs are planned with, each against the plainest way to say it."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqcompile.backends.conv_geometry import Axis, backward, forward
from sqcompile.backends.vta.boxes import rectangles
from sqcompile.backends.vta.cuts import Span, cut, growing, parts, shrinking, taps_of, window
from sqcompile.backends.vta.digits import Digits
from sqcompile.backends.vta.hardware import Memory
from sqcompile.backends.vta.isa import Gemm, Load, Module, Store
from sqcompile.backends.vta.nests import Loop, nest
from sqcompile.backends.vta.spec import Values
from sqcompile.backends.vta.stream import Stream, Tiles
from sqcompile.backends.vta.writer import Slots
from tests.backends.vta.programs import PYNQ


@st.composite
def boxes(draw):
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    starts = [draw(st.integers(0, length - 1)) for length in shape]
    sizes = [draw(st.integers(1, n - start)) for n, start in zip(shape, starts, strict=True)]
    return shape, starts, sizes


@given(boxes())
def test_rectangles_are_a_box_in_its_order(box):
    shape, starts, sizes = box
    grid = np.arange(np.prod(shape)).reshape(shape)
    place = tuple(slice(a, a + n) for a, n in zip(starts, sizes, strict=True))
    found = []
    for one in rectangles(shape, starts, sizes):
        assert one.done == len(found)
        rows = one.first + np.arange(one.rows)[:, None] * one.stride
        found += (rows + np.arange(one.columns)).reshape(-1).tolist()
    assert found == grid[place].reshape(-1).tolist()


def test_what_is_contiguous_is_one_rectangle():
    assert len(list(rectangles((4, 5, 6), (1, 0, 0), (2, 5, 6)))) == 1
    assert len(list(rectangles((4, 5, 6), (1, 2, 0), (2, 3, 6)))) == 1
    assert len(list(rectangles((4, 5, 6), (1, 2, 1), (2, 3, 4)))) == 2


def test_a_step_from_row_to_row_that_has_no_field_is_one_rectangle_a_row():
    (first, second) = rectangles((2, 70000), (0, 5), (2, 3))
    assert (first.rows, first.columns, second.first) == (1, 3, 70005)


@given(st.lists(st.tuples(*[st.integers(1, 4)] + [st.integers(-3, 3)] * 3), max_size=5))
def test_a_nest_visits_what_its_loops_do(loops):
    made = nest([Loop(*loop) for loop in loops], (50, 60, 70))
    counts = [range(made.outer.length), range(made.inner.length)]
    found = [
        tuple(uop + i * np.array(made.outer[1:]) + j * np.array(made.inner[1:]))
        for i, j in itertools.product(*counts)
        for uop in made.uops
    ]

    def place(at):
        moves = (i * np.array(loop[1:]) for i, loop in zip(at, loops, strict=True))
        return tuple(np.array([50, 60, 70]) + sum(moves))

    expected = [place(at) for at in itertools.product(*(range(loop[0]) for loop in loops))]
    assert sorted(found) == sorted(expected)
    assert min(*made.outer, *made.inner) >= 0


@given(st.integers(-300, 300), st.integers(0, 600), st.sampled_from([2, 4, 8]), st.booleans())
def test_digits_are_elements_that_add_up_to_every_value(low, span, width, centred):
    values = np.arange(low, low + span + 1)
    made = Digits.of(Values(low, low + span), width, centred)
    digits = made.split(values).astype(np.int64)
    weights = 1 << made.width * np.arange(made.count)
    assert (made.offset + np.tensordot(weights, digits, 1) == values).all()
    assert digits.min() >= -(1 << width - 1)
    assert digits.max() < 1 << width - 1
    assert not (centred and made.offset)


def test_a_value_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="outside the range"):
        Digits.of(Values(-7, 7), 4).split(np.array([3, 9]))


@given(
    st.sampled_from([(1, 1, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), (2, 3, 0, 2), (5, 2, 3, 1)]),
    st.integers(9, 12),
    st.integers(1, 5),
    st.booleans(),
)
def test_the_lines_of_a_cut_hold_all_that_its_windows_touch(shape, size, length, back):
    kernel, stride, padding, dilation = shape
    out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    axis = Axis(size, out, kernel, stride, padding, dilation)
    lines = backward(axis) if back else forward(axis, False)
    taps = taps_of(lines)
    made = cut(lines, length, taps)
    windows = [window(lines, Span(*part, 0, taps)) for part in parts(lines.count, length)]
    there = [one for one in windows if one is not None]
    assert made.blocks == len(windows)
    assert made.sources == max(one.sources for one in there)
    inside = [
        sum(0 <= line < lines.source for line in range(one.source, one.source + one.sources))
        for one in there
    ]
    assert made.all_real == sum(inside)
    assert made.all_real + made.all_padding == sum(one.sources for one in there)


@given(st.integers(0, 9), st.integers(1, 40), st.integers(0, 6))
def test_the_ends_of_a_program_are_cut_into_halves(begin, size, halvings):
    part = (begin, begin + size)
    grown, shrunk = growing(part, halvings), shrinking(part, halvings)
    for pieces in (grown, shrunk):
        assert [at for piece in pieces for at in range(*piece)] == list(range(*part))
    assert [b - a for a, b in grown] == [b - a for a, b in reversed(shrunk)]
    assert growing((0, 8), 2) == [(0, 2), (2, 4), (4, 8)]


def test_slots_take_turns_and_remember():
    slots = Slots(10, 2)
    assert [slots.take(key) for key in "abacab"] == [
        (0, False),
        (10, False),
        (0, True),
        (10, False),
        (0, True),
        (10, False),
    ]


def test_tokens_are_where_modules_meet_and_nowhere_else():
    stream = Stream(PYNQ)
    first, second = (Tiles(Memory.INP, place, 4) for place in (0, 4))
    out = Tiles(Memory.OUT, 0, 1)

    def load(tiles):
        fields = {"memory": Memory.INP, "sram_base": tiles.first, "dram_base": 4096}
        stream.add(Load, fields | {"y_size": 1, "x_size": 4, "x_stride": 4}, writes=(tiles,))

    def gemm(tiles):
        loops = dict.fromkeys(("dst_out", "dst_in", "src_out", "src_in", "uop_bgn"), 0)
        loops |= dict.fromkeys(("iter_out", "iter_in", "uop_end"), 1)
        stream.add(Gemm, loops, (tiles,), (out,))

    load(first)
    load(second)  # waits for nothing
    gemm(second)  # the second load's token stands for the first one's too
    gemm(first)
    load(first)  # waits for the GEMM that read it last
    stream.add(
        Store,
        {"memory": Memory.OUT, "sram_base": 0, "dram_base": 8192}
        | {"y_size": 1, "x_size": 1, "x_stride": 1},
        (out,),
    )
    gemm(second)  # waits for the store
    program = stream.finished()
    assert [(one.module, one.queues("pop"), one.queues("push")) for one in program] == [
        (Module.LOAD, [], []),
        (Module.LOAD, [], ["l2g"]),
        (Module.COMPUTE, ["l2g"], []),
        (Module.COMPUTE, [], ["g2l", "g2s"]),
        (Module.LOAD, ["g2l"], ["l2g"]),
        (Module.STORE, ["g2s"], ["s2g"]),
        (Module.COMPUTE, ["s2g"], []),
        (Module.COMPUTE, ["l2g"], []),
    ]
