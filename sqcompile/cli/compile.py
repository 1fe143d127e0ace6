"""sqcompile compile: a model file to a run folder."""

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sqcompile.cli import completing, options
from sqcompile.cli.output import Output
from sqcompile.errors import UsageError, VerificationError

if TYPE_CHECKING:
    from sqcompile.debug.layers import Objective
    from sqcompile.modelfile import ModelFile
    from sqcompile.runtime.step import CompiledStep
    from sqcompile.runtime.verify import VerifyResult

_DIFFERENCES = 20
"""How many differing values an error lists."""


@click.command(
    short_help="Compile a model's training step (the default command).",
    epilog="Exit codes: 3 the model does not load or trace, 4 unsupported ops (all of them are "
    "listed), 5 a target that is not there, 6 --verify found a difference or a product in float.",
)
@click.argument("model_file", metavar="MODEL.PY", shell_complete=completing.file)
@options.dims
@options.target
@options.recipe
@click.option(
    "-o",
    "--output",
    "folder",
    metavar="DIR",
    help="Run folder: code, weights, every graph as text, report.json, report.html.  "
    "[default: runs/MODEL]",
)
@options.evaluation
@click.option(
    "--verify",
    is_flag=True,
    help="Run the kernels and the eager reference graph: every output, running statistic and "
    "gradient must have the same bits. cuda without a GPU: in an emulator of its PTX; vta: in its "
    "simulator.",
)
@click.option(
    "--bench", is_flag=True, help="Time the step beside PyTorch in fp32, and its kernels."
)
@options.stats
@options.threads
@options.common
@click.pass_obj
def command(
    output: Output,
    model_file: str,
    dims: dict[str, int],
    target_name: str,
    mcpu: str | None,
    arch: str | None,
    int4: bool,
    hw: str | None,
    recipe: str,
    seed: int,
    check_finite: bool,
    folder: str | None,
    with_eval: bool,
    verify: bool,
    bench: bool,
    stats: bool | None,
    threads: int | None,
) -> None:
    """Compile the training step of the model in MODEL.PY to integers.

    MODEL.PY defines make_model() (or `model`) and example_inputs(), a tuple of tensors whose shapes
    are compiled for. It is executed: run only what you trust. The smallest one:

    \b
      import torch
      from torch import nn
      def make_model():
          return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
      def example_inputs():
          return (torch.randn(8, 16),)

    \b
      sqcompile model.py --recipe w6a6g6 --verify -o runs/mine

    sqcompile.load(DIR) gives the step back in Python, with no model file and no compiler.
    """
    target = options.chosen_target(target_name, mcpu=mcpu, arch=arch, int4=int4, hw=hw)
    from sqcompile import api, modelfile
    from sqcompile.recipe import Recipe
    from sqcompile.report import data, saved
    from sqcompile.runtime import machines

    if bench:
        machines.require_timed(target.name)
    path = run_folder(folder, model_file)
    chosen = Recipe.load(recipe)
    options.use_threads(threads)
    file = modelfile.load(model_file, dims=dims)
    model, inputs = made(file, seed)
    with output.status(f"compiling {model_file} with {chosen.name} for {target.name}"):
        step = api.compile(
            model, inputs, target=target, recipe=chosen, seed=seed, check_finite=check_finite
        )
        if with_eval:
            prepare_eval(step, inputs)
    require_storable(step)
    results, executed_by = _verified(output, step, inputs, with_eval) if verify else ([], None)
    timing = _timed(output, file, step, inputs) if bench else None
    report = data.report(
        step,
        eager_layers=saved.saved_by_layer(deepcopy(model), inputs),
        verification=results,
        timing=timing,
        executed_by=executed_by,
    )
    if measured(stats, report):
        report["tensors"] = statistics(output, step, inputs)
    write_run(step, file, report, path)
    tell(output, report, path)
    refuse(report, verify)


def run_folder(given: str | None, model_file: str) -> Path:
    """Where the run goes; raises UsageError, before anything is compiled, when `save` would."""
    from sqcompile.runtime.artifact import is_artifact

    path = Path(given) if given else Path("runs") / Path(model_file).stem
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file; give a folder with -o")
    if path.exists() and any(path.iterdir()) and not is_artifact(path):
        raise UsageError(f"{path} holds other files and is no run folder; give another with -o")
    return path


def made(file: "ModelFile", seed: int) -> tuple[Any, tuple[Any, ...]]:
    """A model in training mode with weights drawn from `seed`, and its example inputs."""
    import torch

    torch.manual_seed(seed)
    model = file.make_model().train()
    return model, file.example_inputs()


def prepare_eval(step: "CompiledStep", inputs: tuple[Any, ...]) -> None:
    """Compile the forward of evaluation too."""
    import torch

    step.eval()
    with torch.no_grad():
        step.prepare(*inputs)
    step.train()


def require_storable(step: "CompiledStep") -> None:
    """Raise UsageError, before anything is trained or measured, where `save` would."""
    from sqcompile.runtime.artifact import storable

    for variant in step.variants:
        storable(variant.signature)


def _verified(
    output: Output, step: "CompiledStep", inputs: tuple[Any, ...], with_eval: bool
) -> "tuple[list[VerifyResult], str]":
    """The results, and what executed the kernels."""
    import torch

    from sqcompile.runtime.verify import verify_on_target

    with output.status("verifying against the eager reference"):
        results, executed_by = verify_on_target(step, inputs)
        if with_eval:
            step.eval()
            with torch.no_grad():
                results += verify_on_target(step, inputs)[0]
            step.train()
    return results, executed_by


def _timed(
    output: Output, file: "ModelFile", step: "CompiledStep", inputs: tuple[Any, ...]
) -> dict[str, Any]:
    from sqcompile.bench.environment import environment
    from sqcompile.cli.bench import PEER, run_at
    from sqcompile.report import timing
    from sqcompile.report.roofs import cpu_roofs
    from sqcompile.runtime import machines

    surroundings = environment()
    variant = step.prepare(*inputs)
    device = variant.executable.device
    step.to(device)
    leaves = timing.on(device, leaves_of(inputs))
    samples = {
        step.recipe.name: timing.step_sample(step, variant, leaves),
        PEER: timing.eager_sample(file.make_model().train(), inputs, device),
    }
    with output.status("timing"):
        timed = run_at(samples, options.use_threads(None))
        timed["kernels"] = [vars(row) for row in timing.step_kernels(step, variant)]
        roofs = cpu_roofs() if device == "cpu" else None
    step.to("cpu")
    return {
        "device": machines.described(device) or device,
        "environment": surroundings,
        "runs": [timed],
        "roofs": roofs,
    }


def measured(stats: bool | None, report: dict[str, Any]) -> bool:
    """Whether --stats asks for the tensors' statistics, or the step is small enough without it."""
    return report["macs"]["total"] <= options.SMALL if stats is None else stats


def statistics(
    output: Output,
    step: "CompiledStep",
    inputs: tuple[Any, ...],
    objective: "Objective | None" = None,
) -> list[dict[str, Any]]:
    """What quantising does to every tensor of the step on these inputs, with the gradients of the
    objective or with drawn ones."""
    from sqcompile.debug.statistics import tensors_of

    with output.status("measuring ranges and errors of the quantised tensors"):
        return tensors_of(step, inputs, objective=objective)


def leaves_of(inputs: tuple[Any, ...]) -> list[Any]:
    """Positional arguments flattened, as a compiled variant reads them."""
    from torch.utils import _pytree as pytree

    return pytree.tree_leaves((inputs, {}))


def write_run(
    step: "CompiledStep", file: "ModelFile", report: dict[str, Any], folder: Path
) -> None:
    """Write the artifact with report.json and report.html, all of them or none."""
    from sqcompile.report import data, html
    from sqcompile.runtime.artifact import save

    def add(aside: Path) -> None:
        data.write(report, aside)
        html.write(report, {stage.name: stage.text for stage in step.variants[0].stages}, aside)

    save(step, folder, model_file=str(file.path), add=add)


def tell(output: Output, report: dict[str, Any], folder: Path) -> None:
    """Print what a report says in short, and where the rest is."""
    from sqcompile.report import data, text

    for rule in report["unused_rules"]:
        output.warn(f"the recipe's rule '{rule}' matches no product of the model")
    for fault in data.kernel_faults(report):
        output.warn(fault)
    if not report["verification"] and _left(report):  # else `refuse` says it
        output.warn(_left(report))
    for line in text.summary(report):
        output.say(line)
    if report["timing"]:
        output.show(text.timing_table(report["timing"]))
    output.say(f"written    {folder / 'report.html'}")
    output.document({**report, "folder": str(folder)})


def refuse(report: dict[str, Any], verify: bool) -> None:
    """With --verify, raise VerificationError for values that differ, products in float, too many
    that the target leaves to the CPU, and kernels whose code is not as it must be."""
    from sqcompile.report import data

    lines = [
        f"  {result['mode']}: {row['kind']} {row['name']}: {row['differing']} elements differ, "
        f"by at most {row['largest']:g}"
        for result in report["verification"]
        for row in result["different"]
    ]
    if lines:
        more = len(lines) - _DIFFERENCES
        shown = lines[:_DIFFERENCES] + ([f"  and {more} more"] if more > 0 else [])
        raise VerificationError(
            "the kernels and the reference graph differ:\n" + "\n".join(shown) + "\n"
            "  this is a bug in sqcompile: report it with the model file."
        )
    left = data.not_integer(report) if verify else []
    if left:
        raise VerificationError("products that are not in integers:\n  " + "\n  ".join(left))
    if verify and (message := _left(report)):
        raise VerificationError(message)
    faults = data.kernel_faults(report) if verify else []
    if faults:
        raise VerificationError(
            "kernels whose code is not as it must be:\n  " + "\n  ".join(faults) + "\n"
            "  this is a bug in sqcompile: report it with the model file."
        )


def _left(report: dict[str, Any]) -> str:
    """Which products an accelerator leaves to the CPU, and why, where those are too many."""
    from sqcompile.report import data
    from sqcompile.report.format import share

    left, macs = data.off_target(report), report["macs"]
    if not left:
        return ""
    return (
        f"{share(macs['on_target'], macs['total'])} of the step's multiply-accumulates run on "
        f"{report['accelerator']['name']}, and {100 * data.LEAST_ON_TARGET:g} % must; "
        "left to the CPU:\n  " + "\n  ".join(left) + "\n"
        "  give --hw an accelerator that takes them, or all of the step to --target cpu."
    )
