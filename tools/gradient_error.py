"""How much of a layer's gradients quantisation loses, on a model's real gradients.

    python tools/gradient_error.py examples/digits_resnet.py
    python tools/gradient_error.py model.py --recipe w6a6g6 --draws 32 --json errors.json

Trains the model for some steps in fp32 so that its gradients are real, then quantises the gradient
that reaches every convolution and linear layer by several schemes, with the references of
sqcompile.ops, and compares dX and dW with what the unquantised gradient gives.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout, not installed

from gradient_schemes import (
    BOUND,
    ROLES,
    SCHEMES,
    Errors,
    Layer,
    Row,
    Window,
    mean,
    measure,
    schemes_of,
)

from sqcompile.errors import SqError, UsageError
from sqcompile.modelfile import ModelFile, load
from sqcompile.recipe import Recipe


def train(file: ModelFile, model: nn.Module, steps: int, learning_rate: float) -> None:
    """Train by SGD with momentum, starting data() again when an epoch is over."""
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    for _, (inputs, target) in zip(range(steps), forever(file), strict=False):
        optimizer.zero_grad()
        file.call("loss", model(*inputs), target).backward()
        optimizer.step()
    optimizer.zero_grad()


def forever(file: ModelFile) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """Batches of data(), epoch after epoch. Raises UsageError for an epoch without batches."""
    while True:
        batch = None
        for batch in file.batches():
            yield batch
        if batch is None:
            raise UsageError(f"{file.path}: data() gave no batch")


@contextmanager
def recorded(model: nn.Module) -> Iterator[dict[int, Layer]]:
    """Collect the calls of convolution and linear layers whose output gets a gradient, numbered
    in forward order."""
    layers: dict[int, Layer] = {}
    numbers = count()
    handles = [
        module.register_forward_hook(recorder(path, layers, numbers))
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def recorder(path: str, layers: dict[int, Layer], numbers: Iterator[int]) -> Callable[..., None]:
    """A forward hook. It takes the gradient from the output tensor: a module's backward hook does
    not go with an in-place activation behind the layer."""

    def hook(module: nn.Conv2d | nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x, w, number = inputs[0].detach(), module.weight.detach().clone(), next(numbers)

        def keep(g: Tensor) -> None:
            if isinstance(module, nn.Conv2d):
                images = (v.permute(0, 2, 3, 1).contiguous() for v in (g, x))
                layers[number] = Layer(path, *images, w, window(path, module))
            else:
                rows = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
                layers[number] = Layer(path, rows[0], rows[1], w, None)

        if output.requires_grad:
            output.register_hook(keep)  # type: ignore[no-untyped-call]

    return hook


def window(path: str, module: nn.Conv2d) -> Window:
    """Stride, padding, dilation and groups. Raises UsageError for padding other than zeros."""
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise UsageError(f"{path}: only numeric zero padding is measured")
    return module.stride, module.padding, module.dilation, module.groups


def study(
    file: ModelFile, recipe: Recipe, steps: int, batches: int, draws: int, learning_rate: float
) -> list[Row]:
    """Train, take the gradients of `batches` batches, and measure all of them; one row per layer
    and role, the mean over batches (and over calls of a layer that is called twice)."""
    model = file.make_model().train()
    train(file, model, steps, learning_rate)
    rows: list[Row] = []
    for _, (inputs, target) in zip(range(batches), forever(file), strict=False):
        with recorded(model) as layers:
            file.call("loss", model(*inputs), target).backward()
        if not layers:
            raise UsageError(f"{file.path}: no Conv2d or Linear layer gets a gradient")
        ends = min(layers), max(layers)
        for number, layer in sorted(layers.items()):
            precision = recipe.precision(layer.path, number == ends[0], number == ends[1])
            for role in ROLES:
                row = measure(layer, role, precision, draws, recipe.activation_tokens)
                rows += [row] if row is not None else []
    return merged(rows)


def merged(rows: list[Row]) -> list[Row]:
    """The mean of the rows of one layer and role, in order of first appearance."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.role, row.path), []).append(row)
    return [
        Row(same[0].path, same[0].role, same[0].bits, same[0].groups, mean(same))
        for same in groups.values()
    ]


def summary(rows: Sequence[Row], recipe: Recipe) -> dict[str, Any]:
    """Means over the layers at the recipe's own bits (layers that a rule changes are left out),
    and what the schemes claim: of the means, and in how many of the layers it holds."""
    result: dict[str, Any] = {}
    for role in ROLES:
        own = [r for r in rows if r.role == role and r.bits == recipe.gradient_bits]
        if not own:
            continue
        means = mean(own)
        result[role] = {
            "layers": len(own),
            "schemes": {scheme: asdict(errors) for scheme, errors in means.items()},
            "claims": {
                claim: {
                    "mean": holds(relative_errors(means)),
                    "layers": sum(holds(relative_errors(row.schemes)) for row in own),
                }
                for claim, holds in claims_of(role).items()
            },
        }
    return result


def relative_errors(schemes: dict[str, Errors]) -> dict[str, float]:
    """The relative MSE of every scheme."""
    return {scheme: errors.relative_mse for scheme, errors in schemes.items()}


def no_worse_than(other: str, error: dict[str, float]) -> bool:
    """Whether outer scales and shifts lose at most what free scales on `other` lose."""
    return error["outer + shift"] <= error[other]


def paper_between(bound: str, error: dict[str, float]) -> bool:
    """Whether shifts alone lose at most what one scale loses, and at least what `bound` loses."""
    return error[bound] <= error["paper"] <= error["per tensor"]


def claims_of(role: str) -> dict[str, Callable[[dict[str, float]], bool]]:
    """What the schemes claim, by text; each is judged on relative errors by scheme."""
    bound = BOUND[role]
    claims: dict[str, Callable[[dict[str, float]], bool]] = {}
    claims[f"outer + shift no worse than {bound}"] = partial(no_worse_than, bound)
    claims["outer + shift no worse than per channel"] = partial(no_worse_than, "per channel")
    claims["outer + shift no worse than own draws"] = partial(no_worse_than, "own draws")
    claims[f"paper between per tensor and {bound}"] = partial(paper_between, bound)
    return claims


def show(rows: Sequence[Row], total: dict[str, Any], recipe: Recipe, console: Console) -> None:
    """A table for each role and number, a line per layer, and the means; then the claims."""
    for role in ROLES:
        for name in ("relative_mse", "cosine", "bias"):
            table = Table(title=f"{role}: {name.replace('_', ' ')}", title_justify="left")
            table.add_column("layer")
            table.add_column("bits", justify="right")
            for scheme in schemes_of(role):
                table.add_column(scheme, justify="right")
            for row in (row for row in rows if row.role == role):
                cells = [getattr(errors, name) for errors in row.schemes.values()]
                table.add_row(row.path, f"{row.bits}, G={row.groups}", *map(number, cells))
            if role in total:
                table.add_section()
                cells = [errors[name] for errors in total[role]["schemes"].values()]
                label = f"mean of {total[role]['layers']}"
                table.add_row(label, f"{recipe.gradient_bits}", *map(number, cells))
            console.print(table)
    for scheme, text in SCHEMES.items():
        console.print(f"{scheme}: {text}", highlight=False)
    for role, found in total.items():
        for claim, held in found["claims"].items():
            verdict = "yes" if held["mean"] else "NO"
            layers = f"in {held['layers']} of {found['layers']} layers"
            console.print(f"{role}: {claim}: {verdict} in the mean, {layers}", highlight=False)


def number(value: float) -> str:
    """Four decimals, however small."""
    return f"{value:.4f}"


@click.command(help=__doc__)
@click.argument("model_file", type=click.Path(path_type=Path))
@click.option("--recipe", default="w4a4g4", help="Name or .json file: bits, groups and rules.")
@click.option("--steps", default=60, type=click.IntRange(0), help="fp32 training steps first.")
@click.option("--batches", default=1, type=click.IntRange(1), help="Batches to measure.")
@click.option("--draws", default=4, type=click.IntRange(1), help="Stochastic draws of each.")
@click.option("--learning-rate", default=0.05, help="Of the fp32 steps.")
@click.option("--seed", default=0, help="torch.manual_seed, before the model is made.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all numbers.")
def main(
    model_file: Path, recipe: str, steps: int, batches: int, draws: int, learning_rate: float,
    seed: int, json_file: Path | None,
) -> None:  # fmt: skip
    """The command line."""
    torch.manual_seed(seed)
    try:
        chosen = Recipe.load(recipe)
        rows = study(load(model_file), chosen, steps, batches, draws, learning_rate)
    except SqError as error:
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)
    total = summary(rows, chosen)
    show(rows, total, chosen, Console())
    if json_file is not None:
        settings = {"steps": steps, "batches": batches, "draws": draws, "seed": seed}
        report = {
            "model": model_file.name, "recipe": chosen.name, **settings, "mean": total,
            "layers": [asdict(row) for row in rows],
        }  # fmt: skip
        json_file.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
