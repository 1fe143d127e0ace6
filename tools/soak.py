"""Does memory stay flat while a compiled step trains for long?

    python tools/soak.py --minutes 10
    python tools/soak.py --model examples/digits_resnet.py --minutes 60 --bound-mb 8 --json out.json

Every step draws new inputs, runs forward, squared mean, backward and SGD with momentum; after each
interval the model is evaluated once and the resident set (VmRSS) is printed. The first interval is
warm-up: allocators fill their pools. Exit code 1 when the resident set is ever more than the bound
above what it was at the end of warm-up.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic

import click

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the modules beside this one
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout, not installed

import sqcompile  # before torch, so that OpenMP's workers sleep when they wait

# isort: split
import process_memory
import torch

from sqcompile import modelfile
from sqcompile.modelfile import ModelFile
from sqcompile.runtime.step import CompiledStep

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "resnet20.py"
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Sample:
    """The resident set after an interval, and the steps and seconds until then."""

    seconds: float
    steps: int
    resident: int


class Soak:
    """A compiled step that trains on what its model file draws."""

    def __init__(self, file: ModelFile, recipe: str) -> None:
        torch.manual_seed(0)
        self.file = file
        self.step: CompiledStep = sqcompile.compile(
            file.make_model().train(), file.example_inputs(), recipe=recipe
        )
        self.optimizer = torch.optim.SGD(self.step.parameters(), lr=1e-4, momentum=0.9)
        self.steps = 0

    def train(self) -> None:
        """One training step on new inputs."""
        self.optimizer.zero_grad()
        self.step(*self.file.example_inputs()).square().mean().backward()
        self.optimizer.step()
        self.steps += 1

    def evaluate(self) -> None:
        """One forward of evaluation on new inputs."""
        self.step.eval()
        with torch.no_grad():
            self.step(*self.file.example_inputs())
        self.step.train()

    def interval(self, seconds: float, start: float) -> Sample:
        """Train for some seconds, evaluate once, and look at the resident set."""
        end = monotonic() + seconds
        while monotonic() < end:
            self.train()
        self.evaluate()
        return Sample(monotonic() - start, self.steps, process_memory.resident())


def growth(samples: list[Sample]) -> int:
    """The most bytes above the end of warm-up, which is the first sample."""
    return max(sample.resident for sample in samples) - samples[0].resident


@click.command(help=__doc__)
@click.option("--model", "path", default=str(EXAMPLE), help="A model file.")
@click.option("--recipe", default="w4a4g4", show_default=True)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=10, show_default=True)
@click.option("--interval", type=float, default=60, show_default=True, help="Seconds.")
@click.option("--bound-mb", type=float, default=16, show_default=True, help="Most growth allowed.")
@click.option("--json", "written", type=click.Path(dir_okay=False), help="Write the result here.")
def main(
    path: str, recipe: str, minutes: float, interval: float, bound_mb: float, written: str | None
) -> None:
    """Train, print a line an interval, and fail when memory grew."""
    soak = Soak(modelfile.load(path), recipe)
    samples: list[Sample] = []
    start = monotonic()
    while monotonic() - start < 60 * minutes or len(samples) < 2:
        samples.append(soak.interval(interval, start))
        told = samples[-1]
        warm = "  (warm-up)" if len(samples) == 1 else ""
        print(
            f"{told.seconds / 60:7.1f} min {told.steps:8} steps "
            f"{told.resident / MEGABYTE:9.1f} MB resident{warm}",
            flush=True,
        )
    grown = growth(samples)
    if written is not None:
        result = {
            "model": path,
            "recipe": recipe,
            "bound_bytes": int(bound_mb * MEGABYTE),
            "growth_bytes": grown,
            "samples": [asdict(sample) for sample in samples],
        }
        Path(written).write_text(json.dumps(result, indent=1) + "\n")
    print(f"growth after warm-up: {grown / MEGABYTE:.1f} MB, bound {bound_mb:g} MB")
    if grown > bound_mb * MEGABYTE:
        raise click.ClickException(f"memory grew by {grown / MEGABYTE:.1f} MB")


if __name__ == "__main__":
    main()
