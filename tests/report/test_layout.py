"""Pictures: everything is drawn once, nothing overlaps, forward goes down, backward up."""

import random
from collections import Counter

import pytest

from sqcompile.passes.entries import Entry, Ref
from sqcompile.report.drawing import components, drawing, groups
from sqcompile.report.layout import laid_out
from sqcompile.report.picture import pictures
from tests.report.conftest import rewritten


def node(name, *inputs, module="", op="aten.relu", part="forward"):
    return Entry(name, op, tuple(("", Ref(one)) for one in inputs), module=module, part=part)


def compiled(step):
    """Forward and backward one behind the other, and where backward begins."""
    named = {stage.name: stage.entries for stage in step.variants[0].stages}
    return (*named["forward"], *named["backward"]), len(named["forward"])


@pytest.mark.parametrize(
    ("module", "parts"),
    [
        ("", ()),
        ("stem", ("stem",)),
        ("blocks.0.shortcut.1", ("blocks.0", "shortcut.1")),
        ("0", ("0",)),
        ("net.0.0.conv", ("net.0.0", "conv")),
    ],
)
def test_numbers_stay_with_what_they_count(module, parts):
    assert components(module) == parts


def test_a_module_that_is_left_and_entered_again_is_two_groups():
    stage = [
        node("a", module="m"),
        node("b", "a", module="n"),
        node("c", "b", module="m"),
        node("d", "a", module="m"),
    ]
    found, edges = groups([0, 1, 2, 3], drawing(stage), 0)
    assert [(group.name, group.nodes) for group in found] == [
        ("m", (0,)),
        ("n", (1,)),
        ("m", (2, 3)),
    ]
    assert edges == [(0, 1), (0, 2), (1, 2)]


def test_items_are_their_op_and_what_is_handed_over_its_maker():
    stage = [
        node("x_0", op="placeholder"),
        node("pair", "x_0", op="sq.pair"),
        node("left", "pair", op="getitem"),
        node("y", "left"),
        node("output", "y", "left", op="output"),
        node("left", op="placeholder", part="backward"),
        node("g_0", op="placeholder", part="backward"),
        node("dx", "left", "g_0", part="backward"),
    ]
    drawn = drawing(stage, 5)
    assert [(one.place, one.backward) for one in drawn.nodes] == [
        (0, False),
        (1, False),
        (3, False),
        (6, True),
        (7, True),
    ]
    assert drawn.edges == ((0, 1), (1, 2), (1, 4), (3, 4))


@pytest.mark.parametrize("name", ["mlp", "resnet", "gpt"])
def test_pictures_of_models(name):
    stage, begins = compiled(rewritten(name))
    drawn = drawing(stage, begins)
    found = pictures(stage, begins)
    assert list(found)[-2:] == ["layers", "ops"]
    for picture in found.values():
        places = [shape[4] for shape in picture["shapes"]]
        flat = [p for one in places for p in (one[1] if isinstance(one, list) else [one])]
        assert Counter(flat) == Counter(one.place for one in drawn.nodes)
        apart(picture["shapes"])
        one_way(picture)
        for box in picture["boxes"]:
            assert box[0] >= 0 and box[0] + box[2] <= picture["width"] + 1
            assert box[1] >= 0 and box[1] + box[3] <= picture["height"] + 1


def apart(shapes):
    for number, (x, y, width, height, *_) in enumerate(shapes):
        for left, top, wide, high, *_ in shapes[number + 1 :]:
            assert x + width <= left or left + wide <= x or y + height <= top or top + high <= y


def one_way(picture):
    """Within forward edges go down, within backward up; between them, to the right."""
    for source, target, saved, *bends in picture["edges"]:
        (x, y, width, height, _, side), (left, top, wide, high, _, other) = (
            picture["shapes"][number] for number in (source, target)
        )
        assert saved == (side != other) and len(bends) % 2 == 0
        if saved:
            assert (side, other) == (0, 1) and x + width < left
        else:
            assert top >= y + height if side == 0 else top + high <= y


def test_both_boxes_of_a_module_stand_at_one_height():
    picture = pictures(*compiled(rewritten("resnet")))["layers"]
    tops = {0: {}, 1: {}}
    for _, y, _, height, path, side in picture["boxes"]:
        tops[side].setdefault(path, y + height / 2)
    assert set(tops[0]) == set(tops[1]) == {"blocks.0", "blocks.1"}
    assert all(abs(tops[0][path] - tops[1][path]) <= 30 for path in tops[0])


def test_layouts_repeat_and_hold_for_any_graph():
    """igraph crashed or gave uninitialised numbers for some of these with edges left long."""
    random.seed(3)
    for count in (1, 2, 7, 23, 40):
        for density in (0.02, 0.1, 0.3):
            stage = [
                node(f"n{n}", *(f"n{m}" for m in range(n) if random.random() < density))
                for n in range(count)
            ]
            drawn = drawing(stage)
            boxes = [laid_out(drawn, range(count), lambda nodes, depth: False) for _ in range(2)]
            assert boxes[0] == boxes[1]
            apart([(one.x, one.y, one.width, one.height) for one in boxes[0].children])
