"""sqcompile bench: how long a run folder's step and its kernels take, beside PyTorch."""

import json
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sqcompile.cli import completing, options
from sqcompile.cli.output import Output
from sqcompile.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqcompile.modelfile import ModelFile
    from sqcompile.report.timing import Sample
    from sqcompile.runtime.step import CompiledStep
    from sqcompile.runtime.variant import Variant

PEER = "fp32 PyTorch"


def _counts(ctx: click.Context, parameter: click.Parameter, value: str | None) -> list[int]:
    if value is None:
        return []
    parts = value.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"'{value}' is no list of numbers from 1 on, e.g. 1,2")
    return [int(part) for part in parts]


@click.command(short_help="Time a run folder's step beside fp32 PyTorch.")
@click.argument("folder", metavar="DIR", shell_complete=completing.folder)
@click.option(
    "--threads",
    metavar="N,...",
    callback=_counts,
    help="Measure with each of these numbers of threads.  [default: all cores]",
)
@click.option(
    "--kernels",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    metavar="N",
    help="Show the N slowest kernels (--json has all of them).",
)
@click.option("--runs", type=click.IntRange(3), default=30, show_default=True)
@click.option("--warmup", type=click.IntRange(0), default=5, show_default=True)
@options.common
@click.pass_obj
def command(
    output: Output, folder: str, threads: list[int], kernels: int, runs: int, warmup: int
) -> None:
    """Time forward, backward, the whole step and every kernel of the artifact in DIR, on the CPU
    or, by events of its stream, on a GPU.

    PyTorch in fp32 takes turns with it when the model file that DIR was compiled from is still
    there, unchanged: it is executed then. A step is forward and backward, without an optimiser.

    \b
      sqcompile bench runs/digits --threads 1,2
    """
    from sqcompile.report import text
    from sqcompile.runtime import machines
    from sqcompile.runtime.artifact import load

    step = load(folder)
    device = machines.device_type(step.target)
    machines.require_timed(step.target)
    if threads and device != "cpu":
        raise UsageError(f"{folder} runs on a GPU: --threads is for the CPU")
    step.train()
    variant = next((v for v in step.variants if v.signature.gradients), None)
    if variant is None:
        raise UsageError(f"{folder} holds no training step: nothing to time")
    step.to(device)
    samples = _samples(output, step, variant, _model_file(output, Path(folder)))
    counts = threads or [options.use_threads(None)]
    measured = []
    for count in counts:
        with output.status(_status(device, count)):
            row = run_at(samples, count, warmup=warmup, runs=runs)
            measured.append({**row, "kernels": _kernels(step, variant, runs)})
    timing = {"folder": folder, "device": machines.described(device) or device, "runs": measured}
    if device != "cpu":
        output.say(f"on {timing['device']}; time between events of its stream")
    output.show(text.timing_table(timing))
    if kernels:
        output.show(text.kernels_table(timing, kernels))
    for row in measured if PEER in samples else []:
        ours, peer = (row["rows"][f"{n} step"]["median_ms"] for n in (step.recipe.name, PEER))
        where = f"{row['threads']} threads" if device == "cpu" else device
        output.say(f"{where}: {peer / ours:.2f}x the speed of {PEER}")
    output.document(timing)


def _status(device: str, threads: int) -> str:
    if device != "cpu":
        return f"timing on {device}"
    return f"timing with {threads} thread{'s' if threads > 1 else ''}"


def _kernels(step: "CompiledStep", variant: "Variant", runs: int) -> list[dict[str, Any]]:
    """The time of every kernel of forward and backward, slowest first."""
    from sqcompile.report.timing import step_kernels

    return [vars(row) for row in step_kernels(step, variant, runs=runs)]


def run_at(samples: "Mapping[str, Sample]", threads: int, **counts: int) -> dict[str, Any]:
    """Measure with a number of threads -> {"threads", "rows"}."""
    from sqcompile.report.timing import measure

    options.use_threads(threads)
    rows = measure(samples, **counts)
    return {"threads": threads, "rows": {name: vars(times) for name, times in rows.items()}}


def _model_file(output: Output, folder: Path) -> "ModelFile | None":
    """The model file of a run folder when it is there and unchanged; says so when it is not."""
    from sqcompile import modelfile

    recorded = json.loads((folder / "manifest.json").read_text())["model_file"]
    if recorded is None:
        output.note("compiled from Python, without a model file: no comparison with PyTorch")
        return None
    path = Path(recorded["path"])
    if not path.is_file():
        output.note(f"{path} is no longer there: no comparison with PyTorch")
        return None
    if sha256(path.read_bytes()).hexdigest() != recorded["sha256"]:
        output.note(f"{path} has changed since it was compiled: no comparison with PyTorch")
        return None
    return modelfile.load(path)


def _samples(
    output: Output, step: "CompiledStep", variant: "Variant", file: "ModelFile | None"
) -> "dict[str, Sample]":
    from sqcompile.cli.compile import leaves_of
    from sqcompile.report import timing
    from sqcompile.runtime.signature import leaf_text

    device = variant.executable.device
    leaves = timing.on(device, timing.drawn(variant))
    samples: dict[str, Sample] = {}
    if file is not None:
        inputs = file.example_inputs()
        if tuple(map(leaf_text, leaves_of(inputs))) == variant.key.leaves:
            leaves = timing.on(device, leaves_of(inputs))
            samples[PEER] = timing.eager_sample(file.make_model().train(), inputs, device)
        else:
            output.note("example_inputs() has other shapes now: no comparison with PyTorch")
    return {step.recipe.name: timing.step_sample(step, variant, leaves), **samples}
