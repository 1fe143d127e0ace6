"""sqcompile bench: how long a run folder's step and its kernels take, beside PyTorch."""

import json
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sqcompile.cli import completing, options
from sqcompile.cli.output import Output
from sqcompile.errors import GateError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqcompile.bench.products import Form
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


def _words(ctx: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    if ctx.resilient_parsing:  # a shell completes the line: torch would keep it waiting
        return []
    from sqcompile.bench.steps import FORMS

    words = {"all": list(FORMS), "none": []}.get(value, value.split(","))
    for word in words:
        if word not in FORMS:
            raise click.BadParameter(f"no peer '{word}'; there are {', '.join(FORMS)}, all, none")
    return words


@click.command(
    short_help="Time a run folder's step and products beside PyTorch, compare, gate.",
    epilog="Exit codes: 5 a GPU that is not there, 7 --gate: a ratio fell below its bound.",
)
@click.argument("folder", metavar="[DIR]", required=False, shell_complete=completing.folder)
@click.option(
    "--threads",
    metavar="N,...",
    callback=_counts,
    help="Measure with each of these numbers of threads.  [default: all cores]",
)
@click.option(
    "--peers",
    metavar="WORD,...",
    callback=_words,
    default="fp32,bf16",
    show_default=True,
    help="PyTorch's steps that take turns: fp32, bf16 (autocast), compiled (torch.compile, which "
    "needs g++ and compiles for some seconds), all, none.",
)
@click.option(
    "--products",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Also time the N largest products one by one, beside torch._int_mm, onnxruntime, fp32 and "
    "bf16.  [default: none]",
)
@click.option(
    "--kernels",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    metavar="N",
    help="Show the N slowest kernels (--json and files have all of them).",
)
@click.option("--runs", type=click.IntRange(3), default=30, show_default=True)
@click.option("--warmup", type=click.IntRange(0), default=5, show_default=True)
@click.option("-o", "--output", "saved", metavar="FILE.json", help="Save the measurement.")
@click.option("--csv", "as_csv", metavar="FILE", help="Save its rows as CSV.")
@click.option(
    "--report/--no-report",
    "into_report",
    default=True,
    help="Put the times into DIR's report.json and report.html.  [default: report]",
)
@click.option(
    "--compare",
    "pair",
    nargs=2,
    metavar="A.json B.json",
    help="Measure nothing: compare two saved measurements, row by row.",
)
@click.option(
    "--gate",
    metavar="RATIO|FILE.json",
    help="Fail (exit code 7) where a peer's time over ours is below a bound: a number for the step "
    "beside fp32, a saved measurement, or a file of bounds.",
)
@click.option(
    "--slack",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="The share by which ratios of a saved measurement may fall at the gate.",
)
@options.common
@click.pass_obj
def command(
    output: Output,
    folder: str | None,
    threads: list[int],
    peers: list[str],
    products: int,
    kernels: int,
    runs: int,
    warmup: int,
    saved: str | None,
    as_csv: str | None,
    into_report: bool,
    pair: tuple[str, str] | None,
    gate: str | None,
    slack: float,
) -> None:
    """Time forward, backward, the whole step and every kernel of the artifact in DIR, on the CPU
    or, by events of its stream, on a GPU, and put them into its report.

    PyTorch takes turns with it in this process when the model file that DIR was compiled from is
    still there, unchanged: it is executed then. A step is forward and backward, without an
    optimiser. Products (--products) multiply drawn integers of the step's shapes.

    \b
      sqcompile bench runs/digits --threads 1,2
      sqcompile bench runs/digits --products 4 -o today.json
      sqcompile bench --compare before.json today.json
      sqcompile bench runs/digits --gate before.json
    """
    if pair:
        if folder:
            raise UsageError("--compare takes two saved measurements and no folder")
        _compare(output, *pair)
        return
    if folder is None:
        raise UsageError("name the run folder to measure, or two files with --compare")
    from sqcompile.bench import saved as files
    from sqcompile.bench import tables
    from sqcompile.bench.verdict import bounds
    from sqcompile.report import text

    counts = {"warmup": warmup, "runs": runs}
    wanted = bounds(gate, slack, threads or [options.use_threads(None)]) if gate else None
    timing = _measured(output, folder, threads, peers, products, counts)
    if timing["device"] != "cpu":
        output.say(f"on {timing['device']}; time between events of its stream")
    output.show(text.timing_table(timing))
    if kernels:
        output.show(text.kernels_table(timing, kernels))
    if products:
        output.show(tables.products_table(timing))
    for line in tables.skipped_lines(timing):
        output.note(line)
    _say_ratios(output, timing)
    _write(output, saved, json.dumps(timing, indent=1) + "\n")
    _write(output, as_csv, files.as_csv(timing) if as_csv else "")
    if into_report:
        _report(output, timing, folder)
    output.document(timing)
    if wanted is not None:
        _gate(output, timing, wanted)


def _measured(
    output: Output,
    folder: str,
    threads: list[int],
    peers: list[str],
    products: int,
    counts: dict[str, int],
) -> dict[str, Any]:
    """Everything that is measured of a run folder, as it is saved."""
    from sqcompile.bench.environment import environment
    from sqcompile.bench.saved import FORMAT, KIND
    from sqcompile.report.roofs import cpu_roofs
    from sqcompile.runtime import machines
    from sqcompile.runtime.artifact import load

    step = load(folder)
    device = machines.device_type(step.target)
    machines.require_timed(step.target)
    if threads and device != "cpu":
        raise UsageError(f"{folder} runs on a GPU: --threads is for the CPU")
    if not step.training:  # train() would switch modules that were saved in eval mode
        step.train()
    variant = next((v for v in step.variants if v.signature.gradients), None)
    if variant is None:
        raise UsageError(f"{folder} holds no training step: nothing to time")
    step.to(device)
    surroundings = environment()
    if surroundings["load"] > surroundings["cores"]:
        output.warn(
            f"the machine is busy (load {surroundings['load']:g} on {surroundings['cores']} "
            "cores): look at ratios and ranges, not at times"
        )
    file = _model_file(output, Path(folder))
    samples, skipped = _samples(output, step, variant, file, peers)
    forms = _forms(output, Path(folder), products if device == "cpu" else 0)
    measured = []
    for count in threads or [options.use_threads(None)]:
        with output.status(_status(device, count)):
            row = run_at(samples, count, **counts)
            row |= {"skipped": skipped, "products": _products(forms, count, counts)}
            measured.append({**row, "kernels": _kernels(step, variant, counts)})
    return {
        "kind": KIND,
        "format": FORMAT,
        "folder": folder,
        "device": machines.described(device) or device,
        "recipe": step.recipe.name,
        "inputs": list(variant.key.leaves),
        "environment": surroundings,
        "runs": measured,
        "roofs": cpu_roofs() if device == "cpu" else None,
    }


def _forms(output: Output, folder: Path, most: int) -> "list[tuple[Form, int, int]]":
    """The largest products of a run folder's report."""
    from sqcompile.bench.products import forms
    from sqcompile.report import data

    if not most:
        return []
    try:
        return forms(data.read(folder)["products"], most)
    except UsageError as error:
        output.note(f"products are not timed: {error}")
        return []


def _products(
    found: "list[tuple[Form, int, int]]", threads: int, counts: dict[str, int]
) -> list[dict[str, Any]]:
    from sqcompile.bench.products import measure

    rows = []
    for form, calls, macs in found:
        one = measure(form, threads=threads, **counts)
        times = {who: vars(row) for who, row in one["rows"].items()}
        rows.append({"product": str(form), "calls": calls, "macs": macs, **one, "rows": times})
    return rows


def _say_ratios(output: Output, timing: dict[str, Any]) -> None:
    from sqcompile.bench.saved import STEP, rows

    for row in rows(timing):
        if row.kind == STEP and row.part == "step" and row.ratio is not None:
            threads = f"{row.threads} thread{'s' if row.threads > 1 else ''}"
            where = threads if timing["device"] == "cpu" else timing["device"]
            output.say(f"{where}: {row.ratio:.2f}x the speed of {row.who}")


def _write(output: Output, path: str | None, content: str) -> None:
    from sqcompile.report.data import write_text

    if path is not None:
        output.say(f"written    {write_text(Path(path), content)}")


def _report(output: Output, timing: dict[str, Any], folder: str) -> None:
    """Put the times into the folder's report, or say why not: one saved from Python has none."""
    from sqcompile.report import timed

    try:
        output.say(f"written    {timed.put(timing, folder)}")
    except (UsageError, OSError) as error:
        output.note(f"the report does not have these times: {error}")


def _compare(output: Output, first: str, second: str) -> None:
    """Print two saved measurements' rows with verdicts."""
    from sqcompile.bench import tables, verdict
    from sqcompile.bench.environment import differences
    from sqcompile.bench.saved import KERNEL, read

    a, b = read(first), read(second)
    found = verdict.compare(a, b)
    if not found:
        raise UsageError(f"{first} and {second} have no row in common")
    for line in differences(a["environment"], b["environment"]):
        output.warn(f"measured on different machines or versions: {line}")
    output.show(tables.verdicts_table(found))
    hidden = sum(one.a.kind == KERNEL and one.verdict == verdict.SAME for one in found)
    if hidden:
        output.say(f"{hidden} kernels are the same and not shown")
    output.say(
        "verdict: faster or slower where the ranges of block medians do not touch, else same"
    )
    moved = [one for one in found if not one.a.ours and one.verdict != verdict.SAME]
    if moved:
        output.note(f"{len(moved)} rows of peers changed too: the machine is not what it was")
    output.document({"a": first, "b": second, "rows": [one.to_json() for one in found]})


def _gate(output: Output, timing: dict[str, Any], wanted: dict[str, float]) -> None:
    from sqcompile.bench import tables
    from sqcompile.bench.verdict import gate

    held = gate(timing, wanted)
    output.show(tables.gate_table(held))
    failed = [one for one in held if not one.passed]
    if failed:
        missing = sum(one.ratio is None for one in failed)
        hint = (
            f"\n  {missing} of them were not measured: give the --threads, --peers and --products "
            "of the bounds"
        )
        names = ", ".join(one.name for one in failed[:3]) + (", ..." if len(failed) > 3 else "")
        raise GateError(
            f"{len(failed)} of {len(held)} ratios are not above their bounds: {names}"
            + (hint if missing else "")
        )


def _status(device: str, threads: int) -> str:
    if device != "cpu":
        return f"timing on {device}"
    return f"timing with {threads} thread{'s' if threads > 1 else ''}"


def _kernels(
    step: "CompiledStep", variant: "Variant", counts: dict[str, int]
) -> list[dict[str, Any]]:
    """The time of every kernel of forward and backward, slowest first."""
    from sqcompile.report.timing import step_kernels

    return [vars(row) for row in step_kernels(step, variant, **counts)]


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
    output: Output,
    step: "CompiledStep",
    variant: "Variant",
    file: "ModelFile | None",
    peers: list[str],
) -> "tuple[dict[str, Sample], dict[str, str]]":
    """What takes turns, ours first, and why a peer does not."""
    from sqcompile.bench import steps
    from sqcompile.cli.compile import leaves_of
    from sqcompile.report import timing
    from sqcompile.runtime.signature import leaf_text

    device = variant.executable.device
    leaves = timing.on(device, timing.drawn(variant))
    samples: dict[str, Sample] = {}
    skipped: dict[str, str] = {}
    if file is not None and peers:
        inputs = file.example_inputs()
        if tuple(map(leaf_text, leaves_of(inputs))) == variant.key.leaves:
            leaves = timing.on(device, leaves_of(inputs))
            with output.status(f"preparing {', '.join(peers)}"):
                made = steps.peers(peers, lambda: file.make_model().train(), inputs, device)
            samples, skipped = made
        else:
            output.note("example_inputs() has other shapes now: no comparison with PyTorch")
    return {step.recipe.name: timing.step_sample(step, variant, leaves), **samples}, skipped
