"""How VTA shifts the groups of every product of a training step, and what that makes of its cycles.

    python tools/vta_shifts.py
    python tools/vta_shifts.py --model gpt --hw pynq-int4 --steps 3

Models: `resnet20` (a block of each of ResNet-20's stages, 16 images of 32x32 pixels), `gpt` (a
block of examples/gpt.py, 128 features, 4 heads, 4 sequences of 64 tokens) and `digits`
(examples/digits_resnet.py, 64 images). A row is a product with groups: cycles with operands that
are shifted and with sorted ones, all in one group, the way that was chosen from these, sorted ones
in equal groups and in those that ask for the most planes, then the room for each group in the last
step, and its cycles (on average of products that share a program). Below are cycles of all programs
of that step, with operands that are shifted everywhere and as chosen, and how many programs were
written in it, for lengths that no step before had. A simulator runs the steps; cycles are its
model, with a DRAM that answers after 32.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

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
from sqcompile.backends.vta.graph.report import DRAM_LATENCY
from sqcompile.backends.vta.written import Written, proven
from sqcompile.report import data
from sqcompile.runtime import vta
from sqcompile.runtime.step import CompiledStep


def _stages() -> nn.Module:
    return nn.Sequential(
        resnet20.Block(16, 16, 1), resnet20.Block(16, 32, 2), resnet20.Block(32, 64, 2)
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "resnet20": (_stages, lambda: torch.randn(16, 16, 32, 32)),
    "digits": (digits_resnet.make_model, lambda: digits_resnet.digits()[0][:64]),
    "gpt": (lambda: gpt.Block(128, 4), lambda: torch.randn(4, 64, 128)),
}


def trained(model: str, hw: str, steps: int) -> tuple[CompiledStep, int]:
    """A model after some steps of SGD, whose last one alone is in `vta.written_for`, and how many
    programs that one wrote."""
    torch.manual_seed(0)
    make, draw = MODELS[model]
    x = draw()
    step = sqcompile.compile(make().train(), (x,), target=targets.get("vta", hw=hw))
    optimizer = torch.optim.SGD(step.parameters(), 0.01)
    for _ in range(steps):
        vta.written_for.clear()
        known = proven.cache_info().misses
        optimizer.zero_grad()
        y = step(x)
        y.backward(torch.randn_like(y))
        optimizer.step()
    return step, proven.cache_info().misses - known


def rows(step: CompiledStep) -> Iterator[dict[str, Any]]:
    """Every product of a step: how its groups are shifted, and cycles of its programs with operands
    that are shifted (`shifted`) and as they `ran`, on average where several products share one."""
    written = vta.written(step.variants[0].executable.binary)
    for row in data.report(step)["accelerator"]["programs"]:
        choices = [one for one in row["shifts"] if one]
        ran = shifted = float(row["cycles"])
        lengths: list[tuple[int, ...]] = []
        for name, choice in zip(row["programs"], row["shifts"], strict=True):
            if name in written:
                times = {of: n for (who, of), n in vta.written_for.items() if who == name}
                stated = choice["most"]["cycles"]
                ran += mean_cycles(written[name], times) - stated
                shifted += choice["shifted"] - stated
                lengths += times
        found = {"node": row["node"], "ran": ran, "shifted": shifted}
        yield found | {"choices": choices, "lengths": lengths}


def mean_cycles(product: Written, times: Mapping[tuple[int, ...], int]) -> float:
    """Of a program, by the room that it had and how often."""
    cycles = {room: product.program(room).cycles(DRAM_LATENCY).total for room in times}
    return sum(cycles[room] * often for room, often in times.items()) / sum(times.values())


def shown(row: Mapping[str, Any]) -> list[str]:
    """Cells of a product with groups."""
    choice = row["choices"][0]
    one, equal, most = (
        f"{choice[case]['cycles']:,}" if choice[case] else "-" for case in ("one", "equal", "most")
    )
    room = " ".join(",".join(map(str, lengths)) for lengths in row["lengths"])
    cycles = [f"{choice['shifted']:,}", one, choice["way"], equal, most]
    return [row["node"], *cycles, room, f"{row['ran']:,.0f}"]


@click.command(help=__doc__)
@click.option(
    "--model", "models", multiple=True, default=tuple(MODELS), type=click.Choice(list(MODELS))
)
@click.option("--hw", default="pynq-int4-out32", show_default=True, metavar="NAME|FILE.json")
@click.option("--steps", default=1, show_default=True, type=click.IntRange(1))
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def main(models: tuple[str, ...], hw: str, steps: int, json_file: Path | None) -> None:
    """Print a table for every model."""
    everything = {}
    for model in models:
        step, written = trained(model, hw, steps)
        found = list(rows(step))
        everything[model] = found
        columns = ("product", "shifted", "one group", "way", "equal", "most", "room", "ran")
        table = Table(*columns, title=f"{model} on {hw}, step {steps}")
        for row in found:
            if row["choices"]:
                table.add_row(*shown(row))
        Console(width=110).print(table)
        shifted, ran = (sum(row[name] for row in found) for name in ("shifted", "ran"))
        print(f"all programs: {shifted:,.0f} shifted, {ran:,.0f} as chosen ({ran / shifted:.1%})")
        print(f"programs written in the step: {written}")
    if json_file:
        json_file.write_text(json.dumps(everything))


if __name__ == "__main__":
    main()
