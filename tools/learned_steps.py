"""Learned steps of activations and weights against the steps of w4a4g4, in float training.

    python tools/learned_steps.py --data DIR --seeds 4 --jobs 2

Trains `resnet8-16px` in PyTorch with the inputs of the inner convolutions rounded to 4 bits in
forward, and gradients passed straight through: what 4 bits forward cost, without integer gradients
and norms. Recipes of the compiler are not involved. Gaps are points of accuracy below fp32 of the
same seed: mean, and the mean's standard error.

    ours      w4a4g4's: weights by output channel, activations in three groups, clipped at 0.7
    learned   the same weights, a learned step a tensor for activations (LSQ, Esser et al., arXiv
              1902.08153, equations 1 to 3 and section 2.2)
    both      learned steps for activations, and for weights by output channel
"""

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the modules beside this one
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout, not installed

from activation_schemes import by_channel
from protocols.run import FP32, train
from protocols.summary import summarise
from protocols.table import PROTOCOLS

import sqcompile
from sqcompile.ops.quantize import absmax, quant_scale, quantize
from sqcompile.recipe import Recipe

BITS = 4
PRECISION = Recipe.load("w4a4g4").precision("blocks.0.conv1", False, False)


class LearnedStep(nn.Module):
    """x on a grid with a step that training learns, of one value or one for each row of x; the
    grid is unsigned for x that is never negative."""

    def __init__(self, rows: int, signed: bool) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.zeros(rows))
        self.low, self.high = (
            (-(2 ** (BITS - 1)), 2 ** (BITS - 1) - 1) if signed else (0, 2**BITS - 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Values of x's shape, multiples of the step."""
        rows = len(self.step)
        if not bool(self.step.any()):  # the first batch says how large the values are
            with torch.no_grad():
                self.step += 2 * x.detach().abs().reshape(rows, -1).mean(1) / self.high**0.5
        slower = (x.numel() / rows * self.high) ** -0.5
        step = (self.step * slower + (self.step * (1 - slower)).detach()).abs()
        step = step.view(rows, *[1] * (x.dim() - 1)) if rows > 1 else step
        inside = (x / step).clamp(self.low, self.high)
        return (inside + (inside.round() - inside).detach()) * step


def straight_through(x: Tensor, on_grid: Callable[[Tensor], Tensor]) -> Tensor:
    """The values of `on_grid`, with x's gradient."""
    return x + (on_grid(x.detach()) - x).detach()


def our_activation(x: Tensor) -> Tensor:
    """As w4a4g4 rounds an image (N, C, H, W)."""
    return by_channel(x.permute(0, 2, 3, 1).contiguous(), PRECISION).permute(0, 3, 1, 2)


def our_weight(w: Tensor) -> Tensor:
    """As w4a4g4 rounds a weight (O, I, KH, KW): a scale for every output channel."""
    r = absmax(w, None, [1, 2, 3])
    return quantize(w, r, BITS, True).float() * quant_scale(r, BITS, True, 1)


class RoundedConv(nn.Module):
    """A convolution whose operands are rounded in forward."""

    def __init__(self, conv: nn.Conv2d, scheme: str) -> None:
        super().__init__()
        self.conv = conv
        learned = {"ours": (), "learned": ("x",), "both": ("x", "w")}[scheme]
        self.x = LearnedStep(1, signed=False) if "x" in learned else None
        self.w = LearnedStep(conv.out_channels, signed=True) if "w" in learned else None

    def forward(self, x: Tensor) -> Tensor:
        """What the convolution gives of rounded operands."""
        x = self.x(x) if self.x else straight_through(x, our_activation)
        weight = self.conv.weight
        weight = self.w(weight) if self.w else straight_through(weight, our_weight)
        return F.conv2d(x, weight, None, self.conv.stride, self.conv.padding)


def rounded(make: Callable[[], nn.Module], scheme: str) -> nn.Module:
    """The network with its inner convolutions rounded; stem and head stay as they are."""
    model = make()
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d) and path != "stem":
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, RoundedConv(module, scheme))
    return model


def run(scheme: str, seed: int, data: str, epochs: int) -> dict[str, Any]:
    """One training run -> its accuracies and losses."""
    sqcompile.set_num_threads(1)
    protocol = PROTOCOLS["resnet8-16px"]
    make = protocol.make_model
    protocol = replace(
        protocol,
        make_model=make if scheme == FP32 else partial(rounded, make, scheme),
        schedule=replace(protocol.schedule, epochs=epochs),
    )
    with TemporaryDirectory() as folder:
        _, result = train(protocol, None, seed, protocol.load(Path(data)), Path(folder) / "state")
    return result or {}


SCHEMES = ("ours", "learned", "both")


@click.command(help=__doc__)
@click.option("--data", required=True, help="The folder with CIFAR-10, as accuracy.py takes it.")
@click.option("--seeds", type=click.IntRange(1), default=4, show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=15, show_default=True)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True)
def main(data: str, seeds: int, epochs: int, jobs: int) -> None:
    """Train and print."""
    names = (FP32, *SCHEMES)
    wanted = [(name, seed) for seed in range(seeds) for name in names]
    with ProcessPoolExecutor(jobs) as pool:
        results = list(
            pool.map(
                run, *zip(*wanted, strict=True), *zip(*[(data, epochs)] * len(wanted), strict=True)
            )
        )
    found = {
        name: [r for (one, _), r in zip(wanted, results, strict=True) if one == name]
        for name in names
    }
    for name, row in summarise(found).items():
        loss = sum(one["losses"][-1] for one in found[name]) / seeds
        gaps = "  ".join(
            f"{split} gap {row[split]['gap']:+.2f} +- {row[split]['gap_se']:.2f}"
            for split in ("validation", "test")
        )
        click.echo(f"{name:8} {seeds} seeds  {gaps}  training loss {loss:.4f}")


if __name__ == "__main__":
    main()
