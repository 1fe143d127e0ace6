"""Recipes: how many bits, groups and scales every product and norm gets, as data.

A recipe is a frozen dataclass that goes to JSON and back. Nothing about numbers of bits stands
anywhere else.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from math import inf
from pathlib import Path
from typing import Any, TypeGuard

from sqcompile.errors import UsageError

FIRST, LAST = "<first>", "<last>"
_SAVED_STEPS = {2: 0.9957, 3: 0.5860, 4: 0.3352, 5: 0.1881, 6: 0.1041, 7: 0.0569, 8: 0.0308}
"""Step of the mid-rise uniform quantiser of least squared error for a standard normal value
(Max, "Quantizing for minimum distortion", 1960), by bits."""


_ROW_RANGE = 8.0
"""Standard deviations to which the saved value of a layer norm reaches, both ways. Features that
stand out by more than the 3 or 4 of a normal distribution carry much of a layer norm's gradient:
ending the grid there cost a small language model 3 points of accuracy (docs/accuracy.md)."""


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_share(value: object) -> bool:
    return _is_number(value) and 0 < value <= 1


def _is_limit(value: object) -> bool:
    return _is_number(value) and 0 <= value < inf


def _is_count(value: object) -> bool:
    return isinstance(value, int) and _is_number(value) and value >= 0


def _is_step(value: object) -> bool:
    return _is_number(value) and 0 < value < inf


def _check_numbers(record: "Recipe | Rule", what: str) -> None:
    """Types and ranges of every field that has a number or a truth value."""
    for f in fields(record):
        value = getattr(record, f.name)
        optional = isinstance(record, Rule) and value is None
        if f.name.endswith(("_bits", "groups")):
            lowest = 1 if f.name.endswith("groups") else 2
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not optional and not (whole and lowest <= value <= 8):
                raise UsageError(
                    f"{what}: {f.name} is {value!r}; it is a whole number from {lowest} to 8"
                )
        elif f.name == "activation_tokens" and not (_is_count(value) and value <= 4096):
            raise UsageError(
                f"{what}: activation_tokens is {value!r}; it is a whole number from 0 to 4096"
            )
        elif f.name == "activation_clip" and not (optional or _is_share(value)):
            raise UsageError(f"{what}: activation_clip is {value!r}; it is above 0, at most 1")
        elif f.name == "activation_limit" and not (optional or _is_limit(value)):
            raise UsageError(f"{what}: activation_limit is {value!r}; it is a number from 0 on")
        elif f.type is bool and not isinstance(value, bool):
            raise UsageError(f"{what}: {f.name} is {value!r}; it is true or false")


WIDEST_ACTIVATION = 8
"""Bits of an activation with its shift: what a target multiplies by an 8-bit weight."""


def _check_activation(bits: int, groups: int, what: str) -> None:
    if bits + groups - 1 > WIDEST_ACTIVATION:
        raise UsageError(
            f"{what}: activation_bits is {bits} and activation_groups {groups}; with its shift an "
            f"activation has {bits + groups - 1} bits (bits + groups - 1), "
            f"{WIDEST_ACTIVATION} at most"
        )


@dataclass(frozen=True)
class Precision:
    """Bits of the operands of one layer's products, ShiftQuant groups of its gradients and of its
    activations, the range of its activations' grid as a share of their absmax, and where they are
    limited before that, in mean magnitudes."""

    weight_bits: int
    activation_bits: int
    gradient_bits: int
    groups: int
    activation_clip: float = 1.0
    activation_groups: int = 1
    activation_limit: float = 0.0


@dataclass(frozen=True)
class Rule:
    """What differs in the layers that `path` names: a glob over dotted module paths
    ("blocks.*.conv1"), or "<first>" or "<last>" for the first or last product of the model.
    None leaves the recipe's value."""

    path: str
    weight_bits: int | None = None
    activation_bits: int | None = None
    gradient_bits: int | None = None
    groups: int | None = None
    activation_clip: float | None = None
    activation_groups: int | None = None
    activation_limit: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise UsageError(
                f"a rule's path is {self.path!r}; it is a glob over module paths, {FIRST} or {LAST}"
            )
        _check_numbers(self, f"rule {self.path}")

    def matches(self, path: str, is_first: bool, is_last: bool) -> bool:
        """Whether the rule is about the product of the module at `path`."""
        ends = {FIRST: is_first, LAST: is_last}
        return ends.get(self.path, False) or fnmatchcase(path, self.path)


_EIGHT_BIT_ENDS = (Rule(FIRST, 8, 8, 8, 1, 1.0, 1, 0.0), Rule(LAST, 8, 8, 8, 1, 1.0, 1, 0.0))


@dataclass(frozen=True)
class Recipe:
    """A whole recipe.

    weight_bits, activation_bits, gradient_bits: 2..8. groups: ShiftQuant groups of a gradient's
    reduced axis, 1..8. outer_scales: a float scale for every index of a gradient's free axis.
    weight_granularity: a scale per output "channel" or per "tensor". unsigned_activations: no
    sign bit for values that are never negative. activation_clip: the range of an activation's grid
    as a share of its absmax, at most 1; what is larger comes to the grid's end.
    activation_groups: ShiftQuant groups of an activation's reduced axis where the other operand is
    a weight, 1..8; activation_bits + activation_groups - 1 is at most 8, in every product.
    activation_limit: an activation beside a weight ends at so many times the mean magnitude of its
    elements that are not zero, and what lies beyond has no gradient; 0 for no limit. Clip and
    groups are of what is left.
    activation_tokens: rows of a linear layer's input that share the exponents of its features (the
    largest divisor of the number of rows that is no larger); 0 for all of them.
    norm_input_bits: of a norm's input that is not a product's accumulators; norm_grad_bits: of
    the gradient a norm's backward reads; norm_saved_bits, norm_saved_step: of the normalised
    value kept for backward, None for the step of least error at those bits (filled in when the
    recipe is made: give None again where dataclasses.replace changes the bits);
    row_norm_saved_step: the step in layer, RMS and group norms, None for a grid that ends at 8
    standard deviations;
    norm_reads_accumulators: batch norm reads its product's int32 results, not a quantised copy;
    norm_granularity: scales of norms' inputs and gradients per "channel" or per "tensor".
    activation_saved_bits: of a smooth activation's slope, and of a softmax that no product reads,
    kept for backward.
    check_finite: look for NaN and infinity at run time.
    rules: exceptions by module path; later ones win.
    """

    name: str = "custom"
    weight_bits: int = 4
    activation_bits: int = 4
    gradient_bits: int = 4
    groups: int = 4
    outer_scales: bool = True
    weight_granularity: str = "channel"
    unsigned_activations: bool = True
    activation_clip: float = 1.0
    activation_groups: int = 1
    activation_limit: float = 0.0
    activation_tokens: int = 0
    norm_input_bits: int = 8
    norm_grad_bits: int = 8
    norm_saved_bits: int = 4
    norm_saved_step: float | None = None
    row_norm_saved_step: float | None = None
    norm_reads_accumulators: bool = True
    norm_granularity: str = "channel"
    activation_saved_bits: int = 8
    check_finite: bool = False
    rules: tuple[Rule, ...] = _EIGHT_BIT_ENDS

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise UsageError(f"a recipe's name is {self.name!r}; it is a text")
        _check_numbers(self, f"recipe {self.name}")
        _check_activation(self.activation_bits, self.activation_groups, f"recipe {self.name}")
        for name in ("weight_granularity", "norm_granularity"):
            if getattr(self, name) not in ("channel", "tensor"):
                raise UsageError(
                    f"recipe {self.name}: {name} is {getattr(self, name)!r}; "
                    "it is 'channel' or 'tensor'"
                )
        bits = self.norm_saved_bits
        self._fill_step("norm_saved_step", _SAVED_STEPS[bits])
        self._fill_step("row_norm_saved_step", _ROW_RANGE / 2 ** (bits - 1))
        if not isinstance(self.rules, tuple) or not all(isinstance(r, Rule) for r in self.rules):
            raise UsageError(f"recipe {self.name}: rules is {self.rules!r}; it is a tuple of Rule")

    def _fill_step(self, name: str, default: float) -> None:
        value = getattr(self, name)
        if value is None:
            object.__setattr__(self, name, default)
        elif not _is_step(value):
            raise UsageError(f"recipe {self.name}: {name} is {value!r}; it is a number above 0")

    def precision(self, path: str, is_first: bool, is_last: bool) -> Precision:
        """What the product of the module at `path` gets; of the rules that match, later ones win.
        A product that is first and last matches both. Raises UsageError where its activations are
        too wide with their shift."""
        values = {f.name: getattr(self, f.name) for f in fields(Precision)}
        for rule in self.rules:
            if rule.matches(path, is_first, is_last):
                given = {name: getattr(rule, name) for name in values}
                values |= {name: value for name, value in given.items() if value is not None}
        found = Precision(**values)
        where = f"recipe {self.name}, product of '{path}'"
        _check_activation(found.activation_bits, found.activation_groups, where)
        return found

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON-able data; from_json gives it back."""
        data = asdict(self)
        data["rules"] = [
            {key: value for key, value in asdict(rule).items() if value is not None}
            for rule in self.rules
        ]
        return data

    def _repr_html_(self) -> str:
        """The recipe in a notebook."""
        from sqcompile.report.notebook import recipe_html

        return recipe_html(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Recipe":
        """A recipe from data; fields left out have the defaults. Raises UsageError on an unknown
        field, with the nearest known one, and on a wrong value."""
        _check_names(data, Recipe, f"recipe {data.get('name', 'custom')}")
        values = dict(data)
        if "rules" in values:
            rules = values["rules"]
            if not isinstance(rules, list | tuple):
                raise UsageError(f"a recipe's rules are {rules!r}; they are a list of objects")
            values["rules"] = tuple(_rule(rule) for rule in rules)
        return Recipe(**values)

    @staticmethod
    def load(source: "str | Path | Recipe | Mapping[str, Any]") -> "Recipe":
        """A recipe by name, from a .json file, from data, or as it is.

        Raises UsageError for a name or file that does not exist, or a file that is no recipe.
        """
        if isinstance(source, Recipe):
            return source
        if isinstance(source, Mapping):
            return Recipe.from_json(source)
        if str(source).endswith(".json"):
            return _from_file(Path(source))
        if source in RECIPES:
            return RECIPES[str(source)]
        close = get_close_matches(str(source), RECIPES, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise UsageError(
            f"there is no recipe '{source}'; {hint}named recipes: {', '.join(RECIPES)}; "
            "or give a .json file"
        )


def _from_file(path: Path) -> Recipe:
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read recipe {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"recipe {path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"recipe {path} is a JSON {type(data).__name__}, not an object")
    return Recipe.from_json({"name": path.stem, **data})


def _rule(data: object) -> Rule:
    if isinstance(data, Rule):
        return data
    if not isinstance(data, Mapping) or not isinstance(data.get("path"), str):
        raise UsageError(f"a rule is an object with a path, e.g. {{'path': 'head'}}; got {data!r}")
    _check_names(data, Rule, f"rule {data['path']}")
    return Rule(**data)


def _check_names(data: Mapping[str, Any], kind: type, what: str) -> None:
    known = [f.name for f in fields(kind)]
    for name in data:
        if name not in known:
            close = get_close_matches(str(name), known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"its fields: {', '.join(known)}"
            raise UsageError(f"{what} has no field '{name}'; {hint}")


_W4 = Recipe(name="w4a4g4", activation_clip=0.7, activation_groups=3)
_PAPER = replace(
    _W4, name="paper-4bit", outer_scales=False, activation_clip=1.0, activation_groups=1
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _W4,
        replace(_W4, name="w4a4g4-limited", activation_clip=1.0, activation_limit=3.75),
        Recipe(
            "w6a6g6",
            6,
            6,
            6,
            groups=3,
            activation_groups=3,
            activation_tokens=16,
            norm_saved_bits=8,
        ),
        Recipe("w8a8g8", 8, 8, 8, groups=1, norm_saved_bits=8),
        _PAPER,
        Recipe(
            "naive-4bit",
            groups=1,
            outer_scales=False,
            weight_granularity="tensor",
            norm_input_bits=4,
            norm_grad_bits=4,
            norm_reads_accumulators=False,
            norm_granularity="tensor",
            rules=(),
        ),
    )
}
"""The named recipes. naive-4bit is there for comparison: one scale a tensor, 4 bits everywhere."""
