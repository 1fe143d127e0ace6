"""Training steps on VTA's simulator beside the CPU target: are all bits the same, in every order?

    python tools/vta_steps.py
    python tools/vta_steps.py --model digits --hw pynq --geometry 0,4 --steps 20 --seeds 1

Models: `digits` (examples/digits_resnet.py, 16 images), `resnet20` (a block of each of ResNet-20's
stages on 16x16 images), `gpt` (a block of examples/gpt.py). Both targets train the same weights on
the same inputs with SGD, a step for every seed of the interleaving or more; after each step
outputs, gradients, parameters and running statistics are compared. Cycles are the simulator's
model.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout, not installed

import sqcompile

# isort: split
import torch
from torch import Tensor, nn

from examples import digits_resnet, gpt, resnet20
from sqcompile.backends import targets
from sqcompile.backends.vta import hardware
from sqcompile.report import data
from sqcompile.runtime import vta
from sqcompile.runtime.step import CompiledStep


def _stages() -> nn.Module:
    return nn.Sequential(
        resnet20.Block(16, 16, 1), resnet20.Block(16, 32, 2), resnet20.Block(32, 64, 2)
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "digits": (digits_resnet.make_model, lambda: digits_resnet.digits()[0][:16]),
    "resnet20": (_stages, lambda: torch.randn(2, 16, 16, 16)),
    "gpt": (lambda: gpt.Block(32, 2), lambda: torch.randn(2, 8, 32)),
}
GEOMETRIES = ("0,4", "2,3", "1,5")
"""LOG_BATCH and LOG_BLOCK that leave an instruction's fields their room."""


@dataclass(frozen=True)
class Result:
    """A model on an accelerator: how many steps had the CPU's bits, the share of multiply-
    accumulates on it, cycles of a step, and the share in which GEMM is at work."""

    model: str
    hw: str
    geometry: str
    steps: int
    equal: int
    on_target: float
    cycles: int
    utilisation: float


def results(
    models: tuple[str, ...],
    chips: tuple[str, ...],
    geometries: tuple[str, ...],
    seeds: int,
    steps: int,
) -> Iterator[Result]:
    """Every combination."""
    for model in models:
        for chip in chips:
            for geometry in geometries:
                with tempfile.TemporaryDirectory() as folder:
                    file = Path(folder, "hw.json")
                    file.write_text(json.dumps(described(chip, geometry)))
                    yield compared(model, chip, geometry, str(file), seeds, max(seeds, steps))


def described(chip: str, geometry: str) -> dict[str, int]:
    """The accelerator called `chip` with another tile."""
    batch, block = map(int, geometry.split(","))
    return hardware.get(chip).parameters() | {"LOG_BATCH": batch, "LOG_BLOCK": block}


def compared(model: str, chip: str, geometry: str, file: str, seeds: int, steps: int) -> Result:
    """Train on both targets."""
    torch.manual_seed(0)
    make, draw = MODELS[model]
    net, x = make().train(), draw()
    accelerator = sqcompile.compile(deepcopy(net), (x,), target=targets.get("vta", hw=file))
    cpu = sqcompile.compile(net, (x,))
    equal = 0
    for number in range(steps):
        with vta.interleaving(number % seeds):
            ours = trained(accelerator, x, number)
        theirs = trained(cpu, x, number)
        equal += all(map(torch.equal, ours, theirs))
    report = data.report(accelerator)
    known = report["accelerator"]
    share = report["macs"]["on_target_share"]
    shown = (share, known["cycles"], known["utilisation"])
    return Result(model, chip, geometry, steps, equal, *shown)


def trained(step: CompiledStep, x: Tensor, seed: int) -> list[Tensor]:
    """One step of SGD, the output's gradient drawn from `seed` -> output, gradients, parameters and
    running statistics."""
    optimizer = torch.optim.SGD(step.parameters(), 0.01)
    optimizer.zero_grad()
    y = step(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)))
    optimizer.step()
    found = [y.detach(), *(one.grad for one in step.parameters() if one.grad is not None)]
    return found + [one.clone() for one in step.state_dict().values()]


@click.command(help=__doc__)
@click.option(
    "--model", "models", multiple=True, default=tuple(MODELS), type=click.Choice(list(MODELS))
)
@click.option("--hw", "chips", multiple=True, default=("pynq", "pynq-int4"), metavar="NAME")
@click.option("--geometry", "geometries", multiple=True, default=GEOMETRIES, metavar="BATCH,BLOCK")
@click.option("--seeds", default=16, show_default=True, help="Of the order of the modules.")
@click.option("--steps", default=1, show_default=True, help="At least so many.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def main(
    models: tuple[str, ...],
    chips: tuple[str, ...],
    geometries: tuple[str, ...],
    seeds: int,
    steps: int,
    json_file: Path | None,
) -> None:
    """Print the table; exit code 1 when a bit differs."""
    table = Table("model", "hardware", "tile", "steps", "equal", "MACs there", "cycles", "GEMM")
    found = []
    for one in results(models, chips, geometries, seeds, steps):
        found.append(one)
        tile = "x".join(str(1 << int(log)) for log in one.geometry.split(","))
        shares = [f"{one.on_target:.1%}", f"{one.cycles:,}", f"{one.utilisation:.1%}"]
        table.add_row(one.model, one.hw, tile, str(one.steps), str(one.equal), *shares)
    Console(width=100).print(table)
    if json_file:
        json_file.write_text(json.dumps([asdict(one) for one in found]))
    sys.exit(any(one.equal < one.steps for one in found))


if __name__ == "__main__":
    main()
