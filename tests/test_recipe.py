"""Recipes: names, rules, JSON in and out, and what is said about wrong ones."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqcompile.errors import UsageError
from sqcompile.recipe import FIRST, LAST, RECIPES, Precision, Recipe, Rule

BITS = st.integers(2, 8)
RULES = st.builds(
    Rule,
    path=st.sampled_from([FIRST, LAST, "blocks.*.conv1", "head", "*"]),
    weight_bits=st.none() | BITS,
    activation_bits=st.none() | BITS,
    gradient_bits=st.none() | BITS,
    groups=st.none() | st.integers(1, 8),
    activation_groups=st.none() | st.integers(1, 8),
    activation_limit=st.none() | st.floats(0, 100),
)
ACTIVATIONS = st.integers(2, 8).flatmap(
    lambda bits: st.tuples(st.just(bits), st.integers(1, 9 - bits))
)
ANY_RECIPE = st.builds(
    lambda activations, **rest: Recipe(
        activation_bits=activations[0], activation_groups=activations[1], **rest
    ),
    activations=ACTIVATIONS,
    name=st.text(min_size=1),
    weight_bits=BITS,
    gradient_bits=BITS,
    groups=st.integers(1, 8),
    activation_limit=st.integers(0, 9) | st.floats(0, 100),
    activation_tokens=st.integers(0, 64),
    outer_scales=st.booleans(),
    weight_granularity=st.sampled_from(["channel", "tensor"]),
    norm_saved_bits=BITS,
    norm_saved_step=st.none() | st.floats(1e-3, 1.0),
    row_norm_saved_step=st.none() | st.floats(1e-3, 1.0),
    rules=st.lists(RULES, max_size=4).map(tuple),
)


@given(ANY_RECIPE)
def test_json_gives_back_the_same_recipe(recipe):
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize(
    ("name", "bits", "groups", "activations", "outer", "saved_bits", "saved_step"),
    [
        ("w4a4g4", 4, 4, (0.7, 3), True, 4, 0.3352),
        ("w4a4g4-limited", 4, 4, (1.0, 3, 3.75), True, 4, 0.3352),
        ("w6a6g6", 6, 3, (1.0, 3), True, 8, 0.0308),
        ("w8a8g8", 8, 1, (1.0, 1), True, 8, 0.0308),
        ("paper-4bit", 4, 4, (1.0, 1), False, 4, 0.3352),
        ("naive-4bit", 4, 1, (1.0, 1), False, 4, 0.3352),
    ],
)
def test_named_recipes(name, bits, groups, activations, outer, saved_bits, saved_step):
    recipe = Recipe.load(name)
    assert recipe.name == name
    expected = Precision(bits, bits, bits, groups, *activations)
    assert recipe.precision("blocks.0", False, False) == expected
    assert recipe.outer_scales is outer
    assert (recipe.norm_saved_bits, recipe.norm_saved_step) == (saved_bits, saved_step)


def test_first_and_last_products_have_eight_bits_except_in_naive():
    ends = Precision(8, 8, 8, 1)
    for name in ("w4a4g4", "w4a4g4-limited", "w6a6g6", "w8a8g8", "paper-4bit"):
        recipe = RECIPES[name]
        assert recipe.precision("stem", True, False) == ends
        assert recipe.precision("head", False, True) == ends
    assert RECIPES["naive-4bit"].precision("stem", True, False) == Precision(4, 4, 4, 1)


def test_naive_has_one_scale_a_tensor_and_four_bits_in_norms():
    naive = RECIPES["naive-4bit"]
    assert (naive.weight_granularity, naive.norm_granularity) == ("tensor", "tensor")
    assert (naive.norm_input_bits, naive.norm_grad_bits, naive.norm_saved_bits) == (4, 4, 4)
    assert not naive.norm_reads_accumulators


def test_later_rules_win_and_leave_what_they_do_not_name():
    recipe = Recipe(
        rules=(Rule("blocks.*", weight_bits=6, groups=2), Rule("blocks.1.*", weight_bits=8))
    )
    assert recipe.precision("blocks.0.conv", False, False) == Precision(6, 4, 4, 2)
    assert recipe.precision("blocks.1.conv", False, False) == Precision(8, 4, 4, 2)
    assert recipe.precision("stem", False, False) == Precision(4, 4, 4, 4)


def test_an_activation_and_its_shift_have_eight_bits_at_most_in_every_product():
    wide = Rule("head", activation_bits=8)
    recipe = Recipe(activation_groups=5, rules=(wide, Rule("*.deep", activation_groups=2)))
    assert recipe.precision("blocks.0", False, False).activation_groups == 5
    assert recipe.precision("blocks.deep", False, False).activation_groups == 2
    with pytest.raises(UsageError, match="product of 'head': activation_bits is 8 and .* 12 bits"):
        recipe.precision("head", False, True)
    later = replace(recipe, rules=(wide, Rule("head", activation_groups=1)))
    assert later.precision("head", False, True).activation_groups == 1


def test_paths_match_with_case():
    recipe = Recipe(rules=(Rule("Head", weight_bits=8),))
    assert recipe.precision("head", False, False).weight_bits == 4


@pytest.mark.parametrize("bits", [1, 9, 0, -4, 4.0, "4", None, True])
def test_bits_are_whole_numbers_from_2_to_8(bits):
    with pytest.raises(UsageError, match="weight_bits is .*whole number from 2 to 8"):
        Recipe(weight_bits=bits)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": 0}, "groups is 0; it is a whole number from 1 to 8"),
        ({"activation_groups": 9}, "activation_groups is 9; it is a whole number from 1 to 8"),
        ({"activation_bits": 6, "activation_groups": 4}, "an activation has 9 bits"),
        ({"rules": [{"path": "head", "activation_groups": 0}]}, "rule head: activation_groups is"),
        ({"outer_scales": "yes"}, "outer_scales is 'yes'; it is true or false"),
        ({"weight_granularity": "row"}, "weight_granularity is 'row'; it is 'channel' or"),
        ({"activation_clip": 0}, "activation_clip is 0; it is above 0, at most 1"),
        ({"activation_clip": 1.5}, "activation_clip is 1.5"),
        ({"activation_clip": None}, "activation_clip is None"),
        ({"activation_limit": -1.0}, "activation_limit is -1.0; it is a number from 0 on"),
        ({"activation_limit": float("inf")}, "activation_limit is inf"),
        ({"activation_limit": True}, "activation_limit is True"),
        ({"rules": [{"path": "head", "activation_limit": "3"}]}, "rule head: activation_limit is"),
        ({"activation_tokens": -1}, "activation_tokens is -1; it is a whole number from 0 to 4096"),
        ({"activation_tokens": 2.0}, "activation_tokens is 2.0"),
        ({"rules": [{"path": "head", "activation_clip": "all"}]}, "rule head: activation_clip is"),
        ({"norm_saved_step": 0.0}, "norm_saved_step is 0.0; it is a number above 0"),
        ({"norm_saved_step": "small"}, "norm_saved_step is 'small'"),
        ({"norm_saved_step": float("nan")}, "norm_saved_step is nan"),
        ({"name": 4}, "a recipe's name is 4"),
        ({"weigth_bits": 4}, "no field 'weigth_bits'; did you mean 'weight_bits'"),
        ({"rules": "head"}, "a recipe's rules are 'head'; they are a list"),
        ({"rules": ["head"]}, "a rule is an object with a path"),
        ({"rules": [{"path": "head", "bits": 4}]}, "rule head has no field 'bits'"),
        ({"rules": [{"path": "head", "groups": 9}]}, "rule head: groups is 9"),
        ({"rules": [{"path": ""}]}, "a rule's path is ''"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(UsageError, match=message):
        Recipe.from_json(fields)


def test_a_misspelt_name_gets_a_suggestion_and_the_list():
    with pytest.raises(UsageError) as error:
        Recipe.load("w4a4g5")
    assert "did you mean 'w4a4g4'?" in str(error.value)
    assert all(name in str(error.value) for name in RECIPES)
    assert error.value.exit_code == 2


def test_a_file_is_a_recipe_named_after_it(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"weight_bits": 5, "rules": [{"path": LAST, "weight_bits": 8}]}))
    recipe = Recipe.load(path)
    assert recipe == replace(Recipe(), name="mine", weight_bits=5, rules=(Rule(LAST, 8),))
    assert Recipe.load(str(path)) == recipe
    assert Recipe.load({"name": "mine", **recipe.to_json()}) == recipe
    assert Recipe.load(recipe) is recipe


@pytest.mark.parametrize(
    ("content", "message"), [("{", "is not JSON"), ("[1]", "a JSON list, not an object")]
)
def test_a_file_that_is_no_recipe(tmp_path, content, message):
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        Recipe.load(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="cannot read recipe .*missing.json: No such file"):
        Recipe.load(tmp_path / "missing.json")
