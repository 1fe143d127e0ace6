"""How long compiling a model's training step takes: the first time, and again from the cache.

    python tools/bench_compile.py --json out.json
    python tools/bench_compile.py --model gpt
    python tools/bench_compile.py --model examples/mlp.py --batch 1024

A model is one of tools/bench_step.py, at its sizes and with its recipe, or a model file. Two fresh
processes one after the other, with one cache folder that is empty at first. Seconds of
`sqcompile.compile` with what it imports (Dynamo), then what was imported before it.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout, not installed

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the modules beside this one


def made(path: str, batch: int) -> tuple[Any, tuple[Any, ...], str]:
    """(model, inputs, recipe) by a name of tools/step_models.py, or from a model file, whose inputs
    are repeated up to `batch`."""
    import torch
    from step_models import MODELS

    torch.manual_seed(0)
    if path in MODELS:
        spec = MODELS[path]
        return spec.make().train(), spec.batch()[:1], spec.recipe
    from sqcompile import modelfile

    file = modelfile.load(path)
    inputs = tuple(
        torch.cat([x] * (-(-batch // len(x))))[:batch].clone() for x in file.example_inputs()
    )
    return file.make_model().train(), inputs, "w4a4g4"


def timed(path: str, batch: int, recipe: str | None) -> dict[str, float]:
    """Seconds in this process, by what was done, in order."""
    seconds: dict[str, float] = {}
    start = perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        now = perf_counter()
        seconds[name], start = now - start, now

    import sqcompile

    lap("import sqcompile")
    import torch  # noqa: F401

    lap("import torch")
    compiling = sqcompile.compile
    lap("import TVM and the compiler")
    model, inputs, own = made(path, batch)
    lap("make the model")
    compiling(model, inputs, recipe=recipe or own)
    lap("compile")
    return seconds


def in_fresh_process(arguments: list[str], cache: str) -> dict[str, float]:
    """`timed` in a process of its own, with that cache folder."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", *arguments],
        env={**os.environ, "SQCOMPILE_CACHE_DIR": cache},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise click.ClickException(f"compiling failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


@click.command(help=__doc__)
@click.option("--model", "path", default="resnet20", show_default=True, metavar="NAME|FILE")
@click.option("--batch", type=click.IntRange(1), default=128, help="Of a model file's inputs.")
@click.option("--recipe", help="In place of the model's own, or of w4a4g4 for a model file.")
@click.option("--json", "written", type=click.Path(dir_okay=False), help="Write the result here.")
@click.option("--child", is_flag=True, hidden=True)
def main(path: str, batch: int, recipe: str | None, written: str | None, child: bool) -> None:
    """Compile twice, print a line for each, write JSON."""
    if child:
        print(json.dumps(timed(path, batch, recipe)))
        return
    arguments = ["--model", path, "--batch", str(batch)]
    arguments += ["--recipe", recipe] if recipe else []
    with tempfile.TemporaryDirectory() as cache:
        runs = {name: in_fresh_process(arguments, cache) for name in ("cold", "warm")}
    for name, seconds in runs.items():
        told = ", ".join(f"{what} {one:.2f}" for what, one in seconds.items() if what != "compile")
        print(f"{name}: compile {seconds['compile']:.2f} s ({told})")
    if written is not None:
        result: dict[str, Any] = {"model": path, "batch": batch, "recipe": recipe, "seconds": runs}
        Path(written).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
