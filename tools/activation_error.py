"""How much of a layer's result the quantisation of its input loses, on a model's real activations.

    python tools/activation_error.py examples/gpt.py
    python tools/activation_error.py examples/digits_resnet.py --recipe w4a4g4 --json errors.json

Trains the model for some steps in fp32, then quantises the input of every convolution and linear
layer at the recipe's own bits, groups and clip by several schemes, with the references of
sqcompile.ops, and compares the layer's result with that of the input as it is. Weights are not
quantised: what is seen is the activation's share. The first and the last layer are left out.

one range: a scale for all. channel: and a power of two for every channel or feature. tokens: a
power of two for every feature of 16 tokens; in convolutions, for every channel of an image. float
by row: a float scale for every token or image.
"""

import json
import sys
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout, not installed

from activation_schemes import SCHEMES
from gradient_error import forever, recorded, train
from gradient_schemes import Layer

from sqcompile.errors import SqError, UsageError
from sqcompile.modelfile import ModelFile, load
from sqcompile.recipe import Recipe

Errors = dict[str, dict[str, float]]
"""Relative squared error by layer, then by scheme."""


def result(layer: Layer, x: Tensor) -> Tensor:
    """What the layer gives for an input, without its bias, in float64."""
    x, w = x.double(), layer.w.double()
    if layer.window is None:
        return x @ w.t()
    return F.conv2d(x.permute(0, 3, 1, 2), w, None, *layer.window)


def errors(layer: Layer, recipe: Recipe) -> dict[str, float]:
    """Squared error over squared size of the layer's result, by scheme."""
    precision = recipe.precision(layer.path, False, False)
    exact = result(layer, layer.x)
    size = float(exact.square().sum())
    return {
        name: float((result(layer, scheme(layer.x, precision)) - exact).square().sum()) / size
        for name, scheme in SCHEMES.items()
    }


def study(file: ModelFile, recipe: Recipe, steps: int, learning_rate: float) -> Errors:
    """Train, and measure all layers between the first and the last on one batch. Raises UsageError
    for a model with no such layer."""
    model = file.make_model().train()
    train(file, model, steps, learning_rate)
    inputs, target = next(forever(file))
    with recorded(model) as layers:
        file.call("loss", model(*inputs), target).backward()
    inner = [layers[number] for number in sorted(layers)[1:-1]]
    if not inner:
        raise UsageError(f"{file.path}: no Conv2d or Linear layer between the first and the last")
    return {layer.path: errors(layer, recipe) for layer in inner}


def mean(found: Errors) -> dict[str, float]:
    """Over the layers."""
    return {name: sum(one[name] for one in found.values()) / len(found) for name in SCHEMES}


@click.command(help=__doc__)
@click.argument("model_file", type=click.Path(path_type=Path))
@click.option("--recipe", default="w6a6g6", help="Name or .json file: bits, groups and clip.")
@click.option("--steps", default=60, type=click.IntRange(0), help="fp32 training steps first.")
@click.option("--lr", default=0.05, help="Their learning rate.")
@click.option("--seed", default=0)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def main(
    model_file: Path, recipe: str, steps: int, lr: float, seed: int, json_file: Path | None
) -> None:
    """Print the table, and write it as JSON. The model file is executed."""
    torch.manual_seed(seed)
    try:
        found = study(load(model_file), Recipe.load(recipe), steps, lr)
    except SqError as error:
        raise click.ClickException(str(error)) from error
    table = Table("layer", *SCHEMES)
    for path, row in found.items():
        table.add_row(path, *(f"{value:.3e}" for value in row.values()))
    table.add_section()
    table.add_row(f"mean of {len(found)}", *(f"{value:.3e}" for value in mean(found).values()))
    Console(width=100).print(table)
    if json_file:
        json_file.write_text(json.dumps({"layers": found, "mean": mean(found)}))


if __name__ == "__main__":
    main()
