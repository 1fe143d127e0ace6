"""How much accuracy integer training costs: recipes against fp32, on fixed protocols.

    python tools/accuracy.py --protocol digits --recipe w4a4g4,naive-4bit --seeds 3
    python tools/accuracy.py --protocol resnet8-16px --data DIR --jobs 2 --json out.json

For a seed all runs share initial weights, the order of batches and their augmentation; integer
runs take the seed for stochastic rounding too. Gaps are those of the accuracy after the last
epoch, fp32 minus ours, in percentage points, paired by seed: mean, standard deviation, and the
mean's standard error. Recipes are chosen by the validation split; the test split is for reporting.

Every run is a process of its own with one thread, and its result is a file in --results: runs that
are there, with the same recipe and schedule, are not made again, and one that was interrupted goes
on from its last epoch, to the same bits. --fresh makes all of them again: use it after a change of
the compiler, which results do not record.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the modules beside this one
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout, not installed

import sqcompile  # before torch, so that OpenMP's workers sleep when they wait

# isort: split
from protocols.protocol import Schedule
from protocols.run import FP32, train
from protocols.summary import lines, summarise
from protocols.table import PROTOCOLS

from sqcompile.errors import SqError
from sqcompile.recipe import Recipe

RECIPES = "naive-4bit,paper-4bit,w4a4g4,w4a4g4-limited,w6a6g6,w8a8g8"


@dataclass(frozen=True)
class Job:
    """A run to be made: its recipe is fp32 or what Recipe.load takes."""

    protocol: str
    recipe: str
    seed: int
    changes: tuple[tuple[str, float], ...]
    data: str | None
    results: str

    @property
    def schedule(self) -> Schedule:
        """The protocol's, with the changes."""
        return replace(PROTOCOLS[self.protocol].schedule, **dict(self.changes))

    @property
    def path(self) -> Path:
        """Where its result is kept; runs of another schedule have a folder of their own."""
        told = ",".join(f"{name}={value:g}" for name, value in self.changes)
        return Path(self.results, self.protocol, told, f"{_name(self.recipe)}-{self.seed}.json")

    def identity(self) -> dict[str, Any]:
        """What makes a kept result this job's."""
        recipe = None if self.recipe == FP32 else Recipe.load(self.recipe).to_json()
        identity = {"recipe": recipe, "schedule": asdict(self.schedule)}
        identity |= {"version": sqcompile.__version__}
        return json.loads(json.dumps(identity))  # as it comes back from a file

    @property
    def checkpoint(self) -> Path:
        """Where an interrupted run is kept: a run of another recipe or schedule has another."""
        told = json.dumps(self.identity(), sort_keys=True).encode()
        return self.path.with_suffix(f".{sha256(told).hexdigest()[:12]}.checkpoint")

    def command(self) -> list[str]:
        """The process that makes it."""
        given = ["--protocol", self.protocol, "--recipe", self.recipe]
        for name, value in self.changes:
            given += [f"--{name}", str(value)]
        given += ["--results", self.results, "--one", str(self.seed)]
        return [sys.executable, __file__, *given, *(["--data", self.data] if self.data else [])]


def _name(recipe: str) -> str:
    return recipe if recipe == FP32 else Recipe.load(recipe).name


def kept(job: Job) -> dict[str, Any] | None:
    """The result of a job that was made before."""
    if not job.path.exists():
        return None
    result: dict[str, Any] = json.loads(job.path.read_text())
    identity, wanted = result["identity"], job.identity()
    if wanted["recipe"] and isinstance(identity.get("recipe"), dict):
        later = wanted["recipe"].keys() - identity["recipe"].keys()
        identity["recipe"] |= {name: getattr(Recipe, name) for name in later}  # the default
    return result if identity == wanted else None


def make(job: Job) -> None:
    """Run a job in this process and keep its result."""
    sqcompile.set_num_threads(1)
    protocol = replace(PROTOCOLS[job.protocol], schedule=job.schedule)
    recipe = None if job.recipe == FP32 else Recipe.load(job.recipe)
    data = protocol.load(Path(job.data) if job.data else None)
    checkpoint = job.checkpoint
    _, result = train(protocol, recipe, job.seed, data, checkpoint)
    aside = job.path.with_suffix(".part")
    aside.write_text(json.dumps({"identity": job.identity(), **(result or {})}, indent=1) + "\n")
    aside.replace(job.path)
    checkpoint.unlink()


def made(job: Job) -> dict[str, Any]:
    """The result of a job, from a process of its own unless it is kept."""
    if (found := kept(job)) is None:
        done = subprocess.run(job.command(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise click.ClickException(f"{_name(job.recipe)}, seed {job.seed}:\n{done.stderr}")
        found = kept(job)
        assert found is not None
        accuracy = 100 * found["validation"]["accuracy"]
        told = f"{_name(job.recipe):12} seed {job.seed}: {accuracy:.2f} % on the validation split"
        print(f"{job.protocol} {told}, {found['seconds']:.0f} s", file=sys.stderr, flush=True)
    return found


def results(jobs: Sequence[Job], at_once: int) -> dict[str, list[dict[str, Any]]]:
    """Every run of a protocol by the recipe's name, in the order of seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    with ThreadPoolExecutor(at_once) as pool:
        for job, result in zip(jobs, pool.map(made, jobs), strict=True):
            found.setdefault(_name(job.recipe), []).append(result)
    return found


@click.command(help=__doc__)
@click.option("--protocol", type=click.Choice(list(PROTOCOLS)), default="digits")
@click.option("--recipe", default=RECIPES, help="Names or JSON files, with commas between.")
@click.option("--seeds", type=click.IntRange(1), help="How many; the protocol's.")
@click.option("--epochs", type=click.IntRange(1), help="Instead of the protocol's.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="The largest learning rate.")
@click.option("--decay", type=click.FloatRange(0), help="Weight decay.")
@click.option("--warmup", type=click.FloatRange(0, 1, max_open=True), help="Share of steps.")
@click.option("--data", type=click.Path(exists=True, file_okay=False), help="Folder of the data.")
@click.option("--jobs", type=click.IntRange(1), default=1, help="Runs at a time.")
@click.option("--results", "folder", default="runs/accuracy", help="Where results are kept.")
@click.option("--fresh", is_flag=True, help="Make runs again that are there.")
@click.option("--json", "path", type=click.Path(dir_okay=False), help="Write the summary here.")
@click.option("--one", type=int, hidden=True)
def main(
    protocol: str,
    recipe: str,
    seeds: int | None,
    epochs: int | None,
    lr: float | None,
    decay: float | None,
    warmup: float | None,
    data: str | None,
    jobs: int,
    folder: str,
    fresh: bool,
    path: str | None,
    one: int | None,
) -> None:
    """Run a protocol, print a line for every recipe, write JSON."""
    chosen = PROTOCOLS[protocol]
    given = {"epochs": epochs, "lr": lr, "decay": decay, "warmup": warmup}
    usual = asdict(chosen.schedule)
    changes = tuple((k, v) for k, v in given.items() if v is not None and v != usual[k])
    try:
        if one is not None:
            make(Job(protocol, recipe, one, changes, data, folder))
            return
        names = [FP32, *(name.strip() for name in recipe.split(",") if name.strip() != FP32)]
        if len({_name(name) for name in names}) < len(names):
            raise click.UsageError(
                f"--recipe {recipe}: two recipes have one name; give every file a name of its own"
            )
        planned = [
            Job(protocol, name, seed, changes, data, folder)
            for seed in range(seeds or chosen.seeds)
            for name in names
        ]
        for job in planned if fresh else []:
            job.path.unlink(missing_ok=True)
            job.checkpoint.unlink(missing_ok=True)
        found = results(planned, jobs)
    except SqError as error:
        raise click.ClickException(str(error)) from error
    summary = summarise(found)
    for line in lines(summary):
        print(line)
    if path is not None:
        told = {"protocol": protocol, "title": chosen.title, "jobs": jobs}
        told |= {"schedule": asdict(planned[0].schedule), "runs": summary}
        Path(path).write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
