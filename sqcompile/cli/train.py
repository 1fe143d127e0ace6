"""sqcompile train: train a model file's model in integers, beside fp32 when asked."""

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import click

from sqcompile.cli import completing, options
from sqcompile.cli.output import Output

if TYPE_CHECKING:
    from sqcompile.training import Epoch


@click.command(
    short_help="Train a model in integers, beside fp32 with --compare-fp32.",
    epilog="The model file may define eval_data() (batches for the accuracy), "
    "accuracy(output, target) (a share of 1) and optimizer(parameters).",
)
@click.argument("model_file", metavar="MODEL.PY", shell_complete=completing.file)
@options.target
@options.recipe
@click.option("--epochs", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--compare-fp32",
    is_flag=True,
    help="Train the same initial weights in fp32 PyTorch too, on the same batches in the same "
    "order.",
)
@click.option(
    "--optimizer",
    type=click.Choice(["sgd", "adamw"]),
    default="sgd",
    show_default=True,
    help="sgd has momentum 0.9.",
)
@click.option(
    "--lr",
    type=click.FloatRange(0, min_open=True),
    default=0.05,
    show_default=True,
    help="Learning rate of the first epoch; it falls along a cosine.",
)
@click.option(
    "--weight-decay", type=click.FloatRange(0), default=5e-4, show_default=True, metavar="X"
)
@click.option(
    "-o",
    "--output",
    "folder",
    metavar="DIR",
    help="Run folder for the trained step and the report.  [default: runs/MODEL]",
)
@options.evaluation
@options.stats
@options.threads
@options.common
@click.pass_obj
def command(
    output: Output,
    model_file: str,
    target_name: str,
    mcpu: str | None,
    arch: str | None,
    int4: bool,
    hw: str | None,
    recipe: str,
    seed: int,
    check_finite: bool,
    epochs: int,
    compare_fp32: bool,
    optimizer: str,
    lr: float,
    weight_decay: float,
    folder: str | None,
    with_eval: bool,
    stats: bool | None,
    threads: int | None,
) -> None:
    """Train the model in MODEL.PY with integer kernels and write the run folder.

    Besides make_model() and example_inputs(), MODEL.PY defines data(), which returns an iterable of
    (input, target) batches and is called once an epoch, and loss(output, target). Random numbers
    that data() draws from torch, numpy or random depend on --seed and the epoch alone. The report's
    statistics of tensors (--stats) are of the trained step, on the first batch and with its loss.

    \b
      sqcompile train examples/digits_resnet.py --epochs 10 --compare-fp32
    """
    target = options.chosen_target(target_name, mcpu=mcpu, arch=arch, int4=int4, hw=hw)
    from sqcompile import api, modelfile, training
    from sqcompile.cli.compile import (
        made,
        measured,
        prepare_eval,
        require_storable,
        run_folder,
        statistics,
        tell,
        write_run,
    )
    from sqcompile.debug import sides
    from sqcompile.recipe import Recipe
    from sqcompile.report import data, saved, text
    from sqcompile.runtime import machines

    device = machines.device_type(target.name)
    machines.require(device)
    path = run_folder(folder, model_file)
    chosen = Recipe.load(recipe)
    options.use_threads(threads)
    file = modelfile.load(model_file)
    training.check(file)
    model, inputs = made(file, seed)
    training.trained_parameters(model, file)
    reference = deepcopy(model)
    with output.status(f"compiling {model_file} with {chosen.name} for {target.name}"):
        step = api.compile(
            model, inputs, target=target, recipe=chosen, seed=seed, check_finite=check_finite
        )
        if with_eval or file.has("eval_data"):  # whose accuracy would compile it after an epoch
            prepare_eval(step, inputs)
    require_storable(step)
    eager_layers = saved.saved_by_layer(reference, inputs)
    for one in (step, reference):
        one.to(device)
    settings = training.Settings(epochs, optimizer, lr, weight_decay, seed)
    models = {chosen.name: step} | ({"fp32": reference} if compare_fp32 else {})
    runs = {
        name: training.fit(trained, file, settings, _progress(output, name, epochs)).to_json()
        for name, trained in models.items()
    }
    report = data.report(
        step,
        eager_layers=eager_layers,
        training={"epochs": epochs, "settings": vars(settings), "runs": runs},
        executed_by=machines.executor(target.name) or device,
    )
    if measured(stats, report):
        step.to("cpu").train()
        report["tensors"] = statistics(output, step, *sides.first_batch(file, seed))
    write_run(step, file, report, path)
    output.show(text.training_table(report["training"]))
    for line in _closing(runs):
        output.say(line)
    tell(output, report, path)


def _progress(output: Output, name: str, epochs: int) -> Any:
    def told(number: int, epoch: "Epoch") -> None:
        accuracy = "" if epoch.accuracy is None else f", accuracy {100 * epoch.accuracy:.2f} %"
        output.note(f"{name}  epoch {number + 1}/{epochs}: loss {epoch.loss:.4f}{accuracy}")

    return told


def _closing(runs: dict[str, Any]) -> list[str]:
    """`accuracy   w4a4g4 97.20 %, fp32 97.60 %` and the step times."""
    from sqcompile.report.format import duration

    accuracies = [
        f"{name} {100 * run['accuracy']:.2f} %"
        for name, run in runs.items()
        if run["accuracy"] is not None
    ]
    times = [f"{name} {duration(run['step_ms'])}" for name, run in runs.items()]
    why = next((run["unjudged"] for run in runs.values() if run["unjudged"]), "")
    told = ", ".join(accuracies) or (f"not known: {why}" if why else "")
    lines = [f"accuracy   {told}"] if told else []
    return [*lines, f"step       {', '.join(times)} (median, optimiser included)"]
