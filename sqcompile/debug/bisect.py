"""Which quantisation of a step costs most, and a recipe that spends bits there.

The measure is the squared error of all parameters' gradients together, relative to their squares,
against the same step in float: one step, the given weights and batch, one set of draws. It says
what a gradient loses, not what an epoch of training will.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from sqcompile.capture import Capture
from sqcompile.debug.difference import total
from sqcompile.debug.layers import (
    GRADIENT,
    RESULT,
    Call,
    Values,
    has_norms,
    of_graph,
    quantising,
    until,
)
from sqcompile.passes.assign_precision import ProductSpec, assign_precision
from sqcompile.passes.contraction import FLOAT_PRODUCTS
from sqcompile.passes.editing import calls
from sqcompile.recipe import Precision, Recipe, Rule

EXACT = 8
"""The most bits that a recipe can give: what stands for "not quantised" here."""
RAISED: dict[str, dict[str, Any]] = {
    "weights": {"weight_bits": EXACT},
    "activations": {
        "activation_bits": EXACT,
        "activation_groups": 1,
        "activation_clip": 1.0,
        "activation_limit": 0.0,
    },
    "gradients": {"gradient_bits": EXACT, "groups": 1},
}
"""What a rule changes to raise one role of a layer to 8 bits."""
NORMS: dict[str, Any] = {
    "norm_input_bits": EXACT,
    "norm_grad_bits": EXACT,
    "norm_saved_bits": EXACT,
    "norm_saved_step": None,
    "row_norm_saved_step": None,
}
"""The same for all norms, which rules do not reach."""
LEAST_GAIN = 0.03
"""The share of the error that a change must take away to be proposed."""
FEW = 3
"""Layers that are raised one by one without being raised together first."""


@dataclass(frozen=True)
class Cost:
    """What quantising costs at one place. layer: a module's path; role: "weights", "activations",
    "gradients", or "norms" of all the model; raised: the step's error with 8 bits here and the
    recipe everywhere else; alone: its error with the recipe here and 8 bits everywhere else, None
    where raising it gains too little to ask."""

    layer: str
    role: str
    raised: float
    alone: float | None


@dataclass(frozen=True)
class Stage:
    """Errors behind a part of the pipeline: of gradients and of the model's results."""

    name: str
    gradients: float
    results: float


class Bisection:
    """Errors of a prepared call under recipes, against its own float graph."""

    def __init__(self, float_step: Capture, call: Call) -> None:
        self.float_step, self.call = float_step, call
        self.layers = layers_of(float_step)
        self.exact = self.run(until(quantising(Recipe()), "assign_precision"))

    def run(self, passes: Sequence[Any]) -> Values:
        """The step behind passes."""
        return of_graph(self.float_step, self.call, list(passes))

    def error(self, recipe: Recipe) -> float:
        """Of the gradients."""
        return total(self.exact, self.run(quantising(recipe)), GRADIENT)

    def stages(self, recipe: Recipe) -> Iterator[Stage]:
        """The error behind each part of the pipeline that quantises, each with those before it."""
        passes = quantising(recipe)
        for name, last in (
            ("products", "quantize_operands"),
            ("products and norms", "share_quantized"),
            ("products, norms and slopes", passes[-1].name),
        ):
            values = self.run(until(passes, last))
            yield Stage(
                name, total(self.exact, values, GRADIENT), total(self.exact, values, RESULT)
            )

    def costs(self, recipe: Recipe, told: Callable[[str], None] = lambda text: None) -> list[Cost]:
        """The cost of layers and roles that have less than 8 bits, the largest gain first. Layers
        of a role are raised together, and halved, as long as they gain something together: what
        is left out gains less than 3 % in a group of its own."""
        before, best = self.error(recipe), exact_recipe(recipe)
        found = []
        for role, change in RAISED.items():
            layers = {
                layer: {name: getattr(precision, name) for name in change}
                for layer, precision in self.precisions(recipe).items()
            }
            below = [layer for layer, own in layers.items() if own != change]
            for layer in self._worth(recipe, change, below, before):
                told(f"{layer} {role}")
                raised = self.error(with_rules(recipe, {layer: change}))
                rest = with_rules(best, {layer: layers[layer]})
                found.append(self._cost(layer, role, raised, before, rest))
        if has_norms(self.float_step) and norms_raised(recipe) != recipe:
            raised = self.error(norms_raised(recipe))
            rest = replace(best, **{name: getattr(recipe, name) for name in NORMS})
            found.append(self._cost("", "norms", raised, before, rest))
        return sorted(found, key=lambda cost: cost.raised)

    def _cost(self, layer: str, role: str, raised: float, before: float, rest: Recipe) -> Cost:
        gains = raised < (1 - LEAST_GAIN) * before
        return Cost(layer, role, raised, self.error(rest) if gains else None)

    def _worth(
        self, recipe: Recipe, change: dict[str, Any], layers: list[str], before: float
    ) -> list[str]:
        """The layers to raise one by one."""
        if len(layers) <= FEW:
            return layers
        together = self.error(with_rules(recipe, dict.fromkeys(layers, change)))
        if together > (1 - LEAST_GAIN) * before:
            return []
        half = len(layers) // 2
        halves = layers[:half], layers[half:]
        return [one for part in halves for one in self._worth(recipe, change, part, before)]

    def precisions(self, recipe: Recipe) -> dict[str, Precision]:
        """What every layer with a path gets."""
        last = len(self.layers) - 1
        return {
            path: recipe.precision(path, place == 0, place == last)
            for place, path in enumerate(self.layers)
            if path
        }


def layers_of(float_step: Capture) -> list[str]:
    """The module path of every forward product, in order."""
    graph = assign_precision(float_step.graph, Recipe())
    specs: list[ProductSpec] = [node.meta["sq"] for node in calls(graph, *FLOAT_PRODUCTS)]
    return [spec.module for spec in specs if spec.role == "fprop"]


def with_rules(recipe: Recipe, changes: dict[str, dict[str, Any]]) -> Recipe:
    """A recipe with a rule more for every layer in `changes`; later rules win."""
    rules = tuple(Rule(_literal(path), **change) for path, change in changes.items())
    return replace(recipe, rules=(*recipe.rules, *rules))


def _literal(path: str) -> str:
    """A path as a glob that matches nothing else."""
    return "".join(f"[{one}]" if one in "*?[" else one for one in path)


def norms_raised(recipe: Recipe) -> Recipe:
    """A recipe with 8 bits in all norms."""
    return replace(recipe, **NORMS)


def exact_recipe(recipe: Recipe) -> Recipe:
    """The recipe with 8 bits everywhere."""
    every = {name: value for change in RAISED.values() for name, value in change.items()}
    names = {field.name for field in fields(Recipe)}
    assert set(every) < names
    return replace(norms_raised(recipe), **every, activation_tokens=0, rules=())


@dataclass(frozen=True)
class Proposal:
    """A recipe that spends 8 bits where they gain most, and what it was measured to give."""

    recipe: Recipe
    changed: list[Cost]
    before: float
    after: float


def propose(search: Bisection, recipe: Recipe, costs: Sequence[Cost], most: int) -> Proposal | None:
    """The recipe with the `most` best changes, run once more; None where no change takes away 3 %
    of the error."""
    before = search.error(recipe)
    chosen = [one for one in costs if one.raised < (1 - LEAST_GAIN) * before][:most]
    if not chosen:
        return None
    changes: dict[str, dict[str, Any]] = {}
    for one in chosen:
        if one.layer:
            changes.setdefault(one.layer, {}).update(RAISED[one.role])
    better = with_rules(recipe, changes)
    if any(one.role == "norms" for one in chosen):
        better = norms_raised(better)
    better = replace(better, name=f"{recipe.name}-bisected")
    return Proposal(better, chosen, before, search.error(better))
