"""The pictures and lines of docs/how-it-works.md are those of today's graphs."""

import re
from itertools import combinations

import graph_pictures
import pytest
from graph_pictures import Box, Picture

from sqcompile.api import Rewritten


@pytest.fixture(scope="module")
def step() -> Rewritten:
    return graph_pictures.rewritten()


@pytest.fixture(scope="module")
def pictures(step: Rewritten) -> dict[str, Picture]:
    return graph_pictures.pictures(step)


@pytest.mark.parametrize("name", graph_pictures.TITLES)
def test_a_picture_is_current(pictures: dict[str, Picture], name: str) -> None:
    text = (graph_pictures.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    digest = graph_pictures.DIGEST.search(text)
    assert digest is not None
    assert digest[1] == pictures[name].digest, "draw again: python tools/graph_pictures.py"


def test_the_lines_of_the_page_stand_in_the_graphs(step: Rewritten) -> None:
    page = (graph_pictures.FOLDER.parent / "how-it-works.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for block, stage in zip(blocks, step.stages[-2:], strict=True):
        there = {line.strip() for line in stage.text.splitlines()} | {"..."}
        assert [line for line in block.splitlines() if line not in there] == [], stage.name


def test_the_products_of_the_page_are_integers(pictures: dict[str, Picture]) -> None:
    for name, roles in (("forward", {"fprop"}), ("backward", {"dgrad", "wgrad"})):
        products = [box for box in pictures[name].boxes if box.kind == "product"]
        assert {box.notes[1].split()[0] for box in products} == roles
        assert not [box for box in pictures[name].boxes if box.kind == "multiplied"]


def test_no_box_covers_another(pictures: dict[str, Picture]) -> None:
    for name, picture in pictures.items():
        graph_pictures.svg(picture, name)
        assert not [pair for pair in combinations(picture.boxes, 2) if covered(*pair)], name


def covered(one: Box, other: Box) -> bool:
    aside = abs(one.x - other.x) * 2 >= one.width + other.width
    return not aside and abs(one.y - other.y) * 2 < one.height + other.height
