"""What a notebook shows of a step, a recipe and a verification."""

import html.parser

import pytest

from sqcompile.recipe import Recipe, Rule
from sqcompile.runtime.step import CompiledStep
from sqcompile.runtime.verify import Row, VerifyResult
from tests.models import make
from tests.report.conftest import rewritten

VOID = {"br", "meta"}


class Checked(html.parser.HTMLParser):
    """Reads HTML and fails where a tag is not closed or something is fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.words = [], []

    def handle_starttag(self, tag, attributes):
        names = {name for name, _ in attributes}
        assert tag != "script" and not names & {"src", "href"}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def words(shown):
    """The texts of well-formed HTML."""
    reader = Checked()
    reader.feed(shown)
    assert reader.open == []
    return reader.words


@pytest.fixture(scope="module")
def step():
    """A step whose variant went through the passes but through no compiler."""
    model, _ = make("mlp")
    made = CompiledStep(model, None, recipe=Recipe.load("w4a4g4"), target="cpu")
    (variant,) = rewritten("mlp").variants
    variant.graphs_at_hand = True
    made._by_key["first"] = variant
    return made


def test_a_step_shows_what_it_is(step):
    shown = words(step._repr_html_())
    assert {"target", "cpu", "recipe", "w4a4g4", "kept for backward"} <= set(shown)
    assert any(text.endswith("a step, 100 % in integers") for text in shown)
    assert "fprop" in shown and "sq.shift_matmul_dequantize" in shown


def test_a_loaded_step_shows_what_it_knows(step):
    loaded = CompiledStep(step.model, None, recipe=step.recipe, target="cpu")
    assert {"target", "recipe", "parameters"} <= set(words(loaded._repr_html_()))


def test_names_are_escaped():
    recipe = Recipe(name="<script>alert(1)</script>", rules=(Rule("a<b", 8),))
    shown = recipe._repr_html_()
    assert "<script>" not in shown
    assert "a<b" in words(shown)


def test_a_verification_shows_what_differs():
    rows = (Row("output", "0", True, 0, 0.0), Row("gradient", "0.weight", False, 3, 0.25))
    shown = words(VerifyResult("train", rows)._repr_html_())
    assert {"FAILED (train)", "1 of 2 values differ", "0.weight", "3", "0.25"} <= set(shown)
    passed = words(VerifyResult("eval", rows[:1])._repr_html_())
    assert {"PASSED (eval)", "1 values equal bit for bit"} <= set(passed)
