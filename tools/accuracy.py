"""How much accuracy integer training costs: recipes against fp32 on a fixed protocol.

    python tools/accuracy.py --protocol digits --recipe w4a4g4,naive-4bit --seeds 3 --json out.json

For every seed all runs share initial weights and the order of batches; the integer runs also
take the seed for stochastic rounding. Accuracies are those after the last epoch, on data that
was not trained on. gap_points is the fp32 accuracy minus ours, in percentage points.
"""

import json
import sys
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout, not installed

from sqcompile import api, modelfile, training
from sqcompile.errors import UsageError
from sqcompile.recipe import Recipe

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@dataclass(frozen=True)
class Protocol:
    """A model file and how it is trained."""

    model_file: Path
    settings: training.Settings


PROTOCOLS = {
    "digits": Protocol(EXAMPLES / "digits_resnet.py", training.Settings(epochs=20)),
    "mlp": Protocol(EXAMPLES / "mlp.py", training.Settings(epochs=5, optimizer="adamw", lr=0.002)),
}


def accuracies(protocol: Protocol, recipes: list[Recipe], seed: int) -> dict[str, float]:
    """Accuracy (0..1) of fp32 and of every recipe, by name, for one seed."""
    file = modelfile.load(protocol.model_file)
    settings = replace(protocol.settings, seed=seed)
    torch.manual_seed(seed)
    initial = file.make_model()
    found = {"fp32": _trained(deepcopy(initial), file, settings)}
    for recipe in recipes:
        step = api.compile(deepcopy(initial), file.example_inputs(), recipe=recipe, seed=seed)
        found[recipe.name] = _trained(step, file, settings)
    return found


def _trained(
    model: torch.nn.Module, file: modelfile.ModelFile, settings: training.Settings
) -> float:
    accuracy = training.fit(model, file, settings).accuracy
    if accuracy is None:
        raise UsageError(f"{file.path} gives no accuracy: it needs eval_data() and class targets")
    return accuracy


def summarise(by_seed: list[dict[str, float]]) -> dict[str, Any]:
    """Per-seed accuracies, mean and standard deviation of every run; gap_points of the recipes,
    each seed's and their mean."""
    found: dict[str, Any] = {}
    for name in by_seed[0]:
        values = [one[name] for one in by_seed]
        found[name] = {
            "accuracy": values,
            "mean": mean(values),
            "sd": stdev(values) if len(values) > 1 else 0.0,
        }
        if name != "fp32":
            gaps = [100 * (one["fp32"] - one[name]) for one in by_seed]
            found[name] |= {"gap_points_by_seed": gaps, "gap_points": mean(gaps)}
    return found


@click.command(help=__doc__)
@click.option("--protocol", type=click.Choice(list(PROTOCOLS)), default="digits")
@click.option("--recipe", default="w4a4g4", help="Names or JSON files, with commas between.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--epochs", type=click.IntRange(1), help="Instead of the protocol's.")
@click.option("--json", "path", type=click.Path(dir_okay=False), help="Write the result here.")
def main(protocol: str, recipe: str, seeds: int, epochs: int | None, path: str | None) -> None:
    """Run a protocol, print a line for every run, write JSON."""
    chosen = PROTOCOLS[protocol]
    if epochs is not None:
        chosen = replace(chosen, settings=replace(chosen.settings, epochs=epochs))
    recipes = [Recipe.load(name.strip()) for name in recipe.split(",")]
    by_seed = []
    for seed in range(seeds):
        by_seed.append(accuracies(chosen, recipes, seed))
        told = ", ".join(f"{name} {100 * value:.2f} %" for name, value in by_seed[-1].items())
        print(f"seed {seed}: {told}", file=sys.stderr, flush=True)
    runs = summarise(by_seed)
    for name, run in runs.items():
        gap = f", gap {run['gap_points']:+.2f} points" if "gap_points" in run else ""
        print(f"{name:12} {100 * run['mean']:.2f} % (sd {100 * run['sd']:.2f}){gap}")
    if path is not None:
        data = {
            "protocol": protocol,
            "settings": vars(chosen.settings),
            "seeds": list(range(seeds)),
            "runs": runs,
        }
        Path(path).write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
