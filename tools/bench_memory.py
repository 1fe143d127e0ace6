"""Memory of a training step, in integers and in fp32 PyTorch.

    python tools/bench_memory.py --json out.json
    python tools/bench_memory.py --model examples/mlp.py --batch 64 --recipe w8a8g8

Saved for backward: bytes that autograd is handed in one forward, measured with
torch.autograd.graph.saved_tensors_hooks on both sides. Each storage counts once, those of
parameters and buffers do not; an input of the model counts.

Step: how far the process grows. In a fresh process for each side the model is made (ours is
loaded from a run folder, so no compiler has left memory behind), the resident set is read, its
peak is reset, and some steps run: forward, squared sum, backward, SGD with momentum. The figure is
the peak (VmHWM) minus the resident set (VmRSS) before the first step: activations, gradients,
momentum, and all that kernels and allocators take. Page faults are the minor ones of the last step:
memory that was asked of the system again.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the modules beside this one
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout, not installed

import sqcompile  # before torch, so that OpenMP's workers sleep when they wait

# isort: split
import process_memory
import torch
from torch import Tensor, nn

from sqcompile import modelfile
from sqcompile.report.saved import saved_by_layer

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "resnet20.py"
FP32, OURS = "fp32", "sqcompile"


def made(path: str, batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model of a file, and its example inputs repeated or cut to `batch`."""
    torch.manual_seed(0)
    file = modelfile.load(path)
    model = file.make_model().train()
    inputs = file.example_inputs()
    resized = tuple(torch.cat([x] * (-(-batch // len(x))))[:batch].clone() for x in inputs)
    return model, resized


def grown(model: nn.Module, inputs: tuple[Tensor, ...], steps: int) -> dict[str, int]:
    """Resident bytes before the first step, the peak of `steps` steps, and the pages that the last
    one asked the system for."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    before = process_memory.resident()
    process_memory.reset_peak()
    for _ in range(steps):
        faults = process_memory.page_faults()
        optimizer.zero_grad()
        model(*inputs).square().sum().backward()
        optimizer.step()
    return {
        "before": before,
        "peak": process_memory.peak(),
        "after": process_memory.resident(),
        "last_step_page_faults": process_memory.page_faults() - faults,
    }


def in_fresh_process(side: str, arguments: list[str]) -> dict[str, int]:
    """`grown` of one side, in a process of its own."""
    command = [sys.executable, __file__, "--child", side, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"the process of {side} failed:\n{done.stderr}")
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return result


def measured(path: str, batch: int, recipe: str, steps: int) -> dict[str, Any]:
    """Both figures of both sides."""
    model, inputs = made(path, batch)
    saved = {FP32: sum(saved_by_layer(model, inputs).values())}
    step = sqcompile.compile(model, inputs, recipe=recipe)
    saved[OURS] = sum(saved_by_layer(step, inputs).values())
    with tempfile.TemporaryDirectory() as folder:
        step.save(f"{folder}/run")
        arguments = ["--model", path, "--batch", str(batch), "--steps", str(steps)]
        runs = {
            FP32: in_fresh_process(FP32, arguments),
            OURS: in_fresh_process(OURS, [*arguments, "--folder", f"{folder}/run"]),
        }
    taken = {side: run["peak"] - run["before"] for side, run in runs.items()}
    return {
        "model": path,
        "batch": batch,
        "recipe": recipe,
        "steps": steps,
        "saved_bytes": saved,
        "saved_ratio": saved[FP32] / saved[OURS],
        "step_bytes": taken,
        "step_ratio": taken[FP32] / taken[OURS],
        "processes": runs,
    }


def child(side: str, path: str, batch: int, steps: int, folder: str | None) -> dict[str, int]:
    """What a process of its own measures."""
    model, inputs = made(path, batch)
    if side == OURS:
        assert folder is not None
        model = sqcompile.load(folder)
    return grown(model, inputs, steps)


def lines(result: dict[str, Any]) -> list[str]:
    """The result as a small table."""
    rows = [f"{Path(result['model']).name}, batch {result['batch']}, {result['recipe']}"]
    for what, name in (("saved for backward", "saved"), ("a training step", "step")):
        sizes: dict[str, int] = result[f"{name}_bytes"]
        told = ", ".join(f"{side} {size / 1e6:.1f} MB" for side, size in sizes.items())
        rows.append(f"{what:20}{told}: {result[f'{name}_ratio']:.2f}x less")
    faults = ((side, run["last_step_page_faults"]) for side, run in result["processes"].items())
    told = ", ".join(f"{side} {count}" for side, count in faults)
    return [*rows, f"{'page faults':20}{told}, in the last step"]


@click.command(help=__doc__)
@click.option("--model", "path", default=str(EXAMPLE), help="A model file.")
@click.option("--batch", type=click.IntRange(1), default=128, show_default=True)
@click.option("--recipe", default="w4a4g4", show_default=True)
@click.option("--steps", type=click.IntRange(1), default=4, show_default=True)
@click.option("--json", "written", type=click.Path(dir_okay=False), help="Write the result here.")
@click.option("--child", "side", type=click.Choice([FP32, OURS]), hidden=True)
@click.option("--folder", hidden=True)
def main(
    path: str,
    batch: int,
    recipe: str,
    steps: int,
    written: str | None,
    side: str | None,
    folder: str | None,
) -> None:
    """Measure both sides, print a table, write JSON."""
    if side is not None:
        print(json.dumps(child(side, path, batch, steps, folder)))
        return
    result = measured(path, batch, recipe, steps)
    for line in lines(result):
        print(line)
    if written is not None:
        Path(written).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
